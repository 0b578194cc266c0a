"""What each task reached."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafast.metrics import Interval, episode_accuracy, mean_interval


def interval(values: Tensor) -> Interval:
    """The mean of independent values `[n]` with its 95 % interval; NaN where a value is not finite."""
    if not bool(values.isfinite().all()):
        return Interval(math.nan, math.nan, len(values))
    return mean_interval(values)


def per_task(logits: Tensor, targets: Tensor, mask: Tensor | None, classes: Tensor | None) -> dict[str, Tensor]:
    """ "accuracy" `[T]` where targets are class numbers `[T, Q]`, else "mse" `[T]`."""
    logits = logits.detach()
    if not targets.is_floating_point():
        return {"accuracy": episode_accuracy(logits, targets, mask, classes)}
    error = (logits - targets.reshape(logits.shape)).square().mean(-1)  # [T, Q]
    if mask is None:
        return {"mse": error.mean(1)}
    return {"mse": torch.where(mask, error, 0).sum(1) / mask.sum(1)}
