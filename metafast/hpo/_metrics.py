"""Which way round a metric is."""

from __future__ import annotations

from metafast.hpo._types import DIRECTIONS

_UP = ("accuracy", "acc", "top1", "top5", "f1", "auc", "roc_auc", "precision", "recall", "r2", "bleu", "iou", "map")
_DOWN = ("loss", "cross_entropy", "nll", "mse", "rmse", "mae", "mape", "error", "wer", "cer", "perplexity")
KNOWN = {**dict.fromkeys(_UP, "maximize"), **dict.fromkeys(_DOWN, "minimize")}
_PREFIXES = ("val_", "valid_", "validation_", "test_", "train_", "eval_")


def plain(metric: str) -> str:
    """A metric's name without what it was measured on."""
    name = metric.lower().replace("/", "_").replace("-", "_").replace(" ", "_")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def check_direction(metric: str, direction: str, how: str) -> None:
    """Raises where a known metric is searched the wrong way round; `how` says what to write instead."""
    if not isinstance(metric, str):
        raise TypeError(f"metric must be a name such as 'accuracy', got {metric!r} ({type(metric).__name__})")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'maximize' or 'minimize', got {direction!r}")
    right = KNOWN.get(plain(metric), direction)
    if right != direction:
        raise ValueError(f"metric {metric!r} is to {right}, but the direction is {direction!r}; {how}")


def direction_of(metric: str) -> str | None:
    """The direction of a metric that is known by name."""
    return KNOWN.get(plain(metric))
