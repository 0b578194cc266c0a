"""Measures and tests: rank correlation, coverage, the signed-rank test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_EXACT = 60  # pairs up to which the null distribution is counted out


def mid_ranks(values: Array) -> Array:
    """From 1 for the smallest; equal ones share the mean of theirs.

    Example:
        >>> mid_ranks(np.array([3.0, 1.0, 3.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return found


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; NaN where one of them is constant.

    Example:
        >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
        1.0
    """
    x, y = mid_ranks(a), mid_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return round(float((x * y).sum()) / size, 12) if size > 0 else math.nan


def coverage(truth: Array, low: Array, high: Array, floor: float) -> float:
    """Share of the truth inside intervals; both are cut at the floor, which truth cannot be below."""
    inside = (np.maximum(low, floor) <= truth + 1e-12) & (truth <= np.maximum(high, floor) + 1e-12)
    return float(inside.mean())


def calibration(truth: Array, mean: Array, std: Array, floor: float) -> list[float]:
    """Share of the truth inside the central intervals of normal distributions with each probability of `LEVELS`."""
    found = []
    for level in LEVELS:
        reach = NormalDist().inv_cdf(0.5 + level / 2) * std
        found.append(coverage(truth, mean - reach, mean + reach, floor))
    return found


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test of paired differences; those that are 0 are left out.

    Args:
        differences: one per pair.

    Returns:
        1 where all are 0. Counted out for up to 60 pairs, also where ranks are shared; normal beyond.

    Example:
        >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0])
        0.0625

    Source:
        F. Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1945.
    """
    values = np.array([each for each in differences if each != 0], dtype=np.float64)
    if not len(values):
        return 1.0
    doubled = np.round(2 * mid_ranks(np.abs(values))).astype(int)  # whole numbers, also of shared ranks
    plus, total = int(doubled[values > 0].sum()), int(doubled.sum())
    less = min(plus, total - plus)
    if len(values) <= _EXACT:
        ways = np.zeros(total + 1)
        ways[0] = 1.0
        for rank in doubled:
            shifted = np.zeros_like(ways)
            shifted[rank:] = ways[: total + 1 - rank]
            ways = (ways + shifted) / 2
        return min(1.0, 2 * float(ways[: less + 1].sum()))
    spread = math.sqrt(float((doubled.astype(float) ** 2).sum()) / 4)
    return min(1.0, 2 * NormalDist().cdf((less + 1 - total / 2) / spread))
