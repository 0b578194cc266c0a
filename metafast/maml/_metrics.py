"""What each task reached."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A mean over episodes and half the width of its 95 % interval."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def interval(values: Tensor) -> Interval:
    """The mean of independent values `[n]` and its 95 % interval, `1.96 s / sqrt(n)`."""
    values = values.double().flatten()
    spread = float(values.std(unbiased=True)) if len(values) > 1 else math.nan
    return Interval(float(values.mean()), 1.96 * spread / math.sqrt(len(values)), len(values))


def per_task(logits: Tensor, targets: Tensor, mask: Tensor | None, classes: Tensor | None) -> dict[str, Tensor]:
    """ "accuracy" `[T]` where targets are class numbers `[T, Q]`, else "mse" `[T]`."""
    valid = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if mask is None else mask
    count = valid.sum(1).clamp(min=1)
    logits = logits.detach()
    if targets.is_floating_point():
        error = (logits - targets.reshape(logits.shape)).square().mean(-1)
        return {"mse": torch.where(valid, error, 0).sum(1) / count}
    if classes is not None:
        outside = torch.arange(logits.shape[-1], device=logits.device) >= classes[:, None]  # [T, C]
        logits = logits.masked_fill(outside[:, None], -torch.inf)
    right = (logits.argmax(-1) == targets) & ~logits.isnan().any(-1)
    return {"accuracy": (right & valid).sum(1).to(torch.float32) / count}
