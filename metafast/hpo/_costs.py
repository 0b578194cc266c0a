"""What a training costs: a Gaussian process on the logarithm of seconds, from known tasks and what was measured."""

from __future__ import annotations

import math

import numpy as np

from metafast.hpo._encode import distances, matern
from metafast.hpo._surrogate import Query, Surrogate

_WIDE = 3.0  # standard deviation of a task's own log seconds
_NEW = 0.1  # variance of what is new in a task
_LENGTH = 0.5
_NOISE = 0.02


def log_seconds(surrogate: Surrogate, query: Query, measured: np.ndarray) -> tuple[np.ndarray, bool]:
    """Expected log seconds of whole trainings.

    Args:
        surrogate: what is known.
        query: the points, the first n of which have run.
        measured: `[n]`, log seconds of the whole trainings of these; NaN: not known.

    Returns:
        (`[M]`, whether their level is known and not only their differences).
    """
    known, weights = surrogate.costs(query)
    rows = np.flatnonzero(np.isfinite(measured))
    mean = weights @ known if len(known) else np.zeros(len(query.codes))
    if not len(rows):
        return mean, False
    basis = np.sqrt(weights)[:, None] * (known - mean) if len(known) else np.zeros((0, len(mean)))
    space = matern(
        distances(list(query.axes.values()), query.codes[rows], query.codes), _LENGTH * math.sqrt(len(query.axes))
    )
    across = basis[:, rows].T @ basis + (_NEW if len(known) else 1.0) * space + _WIDE**2
    level = float(np.mean(measured[rows] - mean[rows]))
    rest = measured[rows] - mean[rows] - level
    solved = np.linalg.solve(across[:, rows] + _NOISE * np.eye(len(rows)), rest)
    return mean + level + across.T @ solved, True
