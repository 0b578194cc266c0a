"""Scores as the model sees them: higher is better, in units in which differences mean the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metafast.hpo._metrics import plain
from metafast.hpo._types import DIRECTIONS

ERRORS = frozenset({"wer", "cer", "error", "error_rate", "err", "eer"})
SHARES = frozenset({"accuracy", "acc", "top1", "top5", "f1", "auc", "roc_auc", "precision", "recall", "iou", "map"})
LOSSES = frozenset({"loss", "mse", "mae", "rmse", "nll", "perplexity", "ppl", "cross_entropy", "log_loss", "bpc"})
_TINY = 1e-12
_FLOOR = 0.25  # of the way from the reference to the best: how far below the reference a score still counts
_SPREADS = 4.0  # the same, of the way from the median to the best, where no reference is known


@dataclass(frozen=True)
class Scores:
    """How scores of a metric are read.

    Args:
        kind: "same" (as it comes), "error" (1 minus it), "log" (minus its logarithm), "negative".
        metric: its name.
    """

    kind: str
    metric: str

    @classmethod
    def of(cls, metric: str, direction: str, scores: Iterable[float] = ()) -> Scores:
        """By name and direction; scores settle whether an unknown metric to minimize is read by ratio.

        Raises:
            ValueError: a direction that is none.

        Example:
            >>> Scores.of("val_loss", "minimize").kind, Scores.of("accuracy", "maximize").kind
            ('log', 'same')
        """
        if direction not in DIRECTIONS:
            raise ValueError(f'direction must be "maximize" or "minimize", got {direction!r}')
        name = plain(metric)
        if direction == "maximize":
            return cls("same", name)
        if name in ERRORS:
            return cls("error", name)
        finite = [score for score in scores if math.isfinite(score)]
        if any(score <= 0 for score in finite):
            return cls("negative", name)
        return cls("log" if name in LOSSES or (finite and max(finite) > 8 * min(finite)) else "negative", name)

    def inward(self, scores: np.ndarray) -> np.ndarray:
        """Metric to what the model sees; NaN stays."""
        if self.kind == "log":
            return -np.log(np.maximum(scores, _TINY))
        return scores * 1.0 if self.kind == "same" else (1.0 if self.kind == "error" else 0.0) - scores

    def outward(self, values: np.ndarray) -> np.ndarray:
        """And back; shares stay in [0, 1], errors at least 0."""
        if self.kind == "log":
            return np.exp(np.clip(-values, -80, 80))
        if self.kind == "same":
            return np.clip(values, 0.0, 1.0) if self.metric in SHARES else values * 1.0
        return np.maximum(1.0 - values, 0.0) if self.kind == "error" else -values


def tame(values: np.ndarray, reference: float | None) -> np.ndarray:
    """Failed and diverged values lifted to the worst that still says something.

    Args:
        values: any shape, higher is better; NaN: failed.
        reference: the value of a predictor that has learned nothing.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.full_like(values, 0.0 if reference is None else reference)
    best, middle = values[finite].max(), float(np.median(values[finite]))
    if reference is not None and reference < best:
        floor = reference - _FLOOR * (best - reference)
        return np.maximum(np.where(finite, values, reference), floor)
    floor = middle - _SPREADS * (best - middle) if best > middle else -math.inf
    lifted = np.maximum(np.where(finite, values, -math.inf), floor)
    worst = lifted[np.isfinite(lifted)].min()
    return np.where(np.isfinite(lifted), lifted, worst)
