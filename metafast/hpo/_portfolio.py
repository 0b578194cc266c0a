"""The first configurations: those of which one is good in every task that is known."""

from __future__ import annotations

import numpy as np

_LEAST = 1e-9


def next_of_portfolio(values: np.ndarray, weights: np.ndarray, tried: np.ndarray) -> int:
    """The candidate that lowers the mean regret of the known tasks most, after what was tried.

    Args:
        values: `[T, M]`, what each known task has at each of M candidates; higher is better.
        weights: `[T]`, how much each task counts.
        tried: `[T, n]`, the same of n configurations that were tried; n may be 0.

    Returns:
        The number of the candidate.

    Example:
        >>> both = np.array([[1.0, 0.0, 0.8], [0.0, 1.0, 0.7]])
        >>> next_of_portfolio(both, np.array([0.5, 0.5]), np.zeros((2, 0)))
        2
    """
    best, worst = values.max(1, keepdims=True), values.min(1, keepdims=True)
    regret = (best - values) / np.maximum(best - worst, _LEAST)
    least = np.ones((len(values), 1))
    if tried.shape[1]:
        least = np.clip((best - tried) / np.maximum(best - worst, _LEAST), 0.0, 1.0).min(1, keepdims=True)
    return int((weights @ np.minimum(least, regret)).argmin())
