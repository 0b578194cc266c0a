"""The first configurations: those of which one is good in every task that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metafast.hpo._known import Known

NEARLY = 0.05  # of the best score: what counts as nearly as good
SHARE = 0.5  # of the loss that asks for that; the rest is regret
_LEAST = 1e-9


def losses(known: Sequence[Known], values: np.ndarray, best: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """How bad values are, `[T, M]` in [0, 1]: half the regret, half how far they are from nearly as good as the best.

    Args:
        known: T tasks.
        values: `[T, M]`, what each has at M configurations, in its own units.
        best: `[T, 1]`, the highest of them.
        worst: `[T, 1]`, the lowest.
    """
    regret = np.clip((best - values) / np.maximum(best - worst, _LEAST), 0.0, 1.0)
    near = regret.copy()
    for row, task in enumerate(known):
        top, here = (task.centre + task.spread * part for part in (best[row], values[row]))
        if task.scores.kind == "negative":
            continue
        if task.scores.kind == "log":
            gap = np.exp(np.clip(top - here, 0, 50)) - 1
        else:
            size = 1 - top if task.scores.kind == "error" else top
            gap = np.maximum(top - here, 0) / max(float(abs(size[0])), _LEAST)
        near[row] = gap / (gap + NEARLY)
    return SHARE * near + (1 - SHARE) * regret


def next_of_portfolio(known: Sequence[Known], values: np.ndarray, weights: np.ndarray, tried: int) -> int:
    """The candidate that lowers the mean loss of the known tasks most, after what was tried.

    Args:
        known: T tasks.
        values: `[T, M]`, what each has at M points, of which the first were tried.
        weights: `[T]`, how much each task counts.
        tried: how many were.

    Returns:
        The number of the candidate, counted after those.
    """
    best, worst = values.max(1, keepdims=True), values.min(1, keepdims=True)
    lost = losses(known, values, best, worst)
    least = lost[:, :tried].min(1, keepdims=True) if tried else np.ones((len(values), 1))
    return int((weights @ np.minimum(least, lost[:, tried:])).argmin())
