"""Means over test episodes with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Half-widths of the 95 % interval of a mean in standard errors (Student's t), by degrees of freedom.
_T95 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
        2.042]  # fmt: skip


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval, `mean ± half`, over `n` values."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g}"


def mean_interval(values: Tensor | Sequence[float] | np.ndarray[Any, Any]) -> Interval:
    """The mean of independent values, such as accuracies of test episodes, with its 95 % confidence interval.

    `half = t s / √n`, where s is the sample standard deviation and t Student's quantile for n - 1 degrees of freedom.

    Args:
        values: one number per episode.

    Returns:
        `Interval(mean, half, n)`; `half` is NaN for a single value.

    Raises:
        ValueError: no values, more than one dimension, or values that are not finite.

    Example:
        >>> mean_interval([0.8, 0.9, 1.0, 0.9])
        Interval(mean=0.9, half=0.1299..., n=4)
        >>> print(mean_interval([0.8, 0.9, 1.0, 0.9]))
        0.9 ± 0.13
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    numbers = np.asarray(array, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values must be one number per episode, at least one, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values must be finite, got {int((~np.isfinite(numbers)).sum())} that are not")
    count = len(numbers)
    if count == 1:
        return Interval(float(numbers[0]), math.nan, 1)
    return Interval(float(numbers.mean()), _t95(count - 1) * float(numbers.std(ddof=1)) / math.sqrt(count), count)


def episode_accuracy(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, classes: Tensor | None = None
) -> Tensor:
    """The share of right answers in each task of a meta-batch.

    Args:
        logits: `[T, Q, classes]` scores.
        labels: int64 `[T, Q]`.
        mask: bool `[T, Q]`, False where an example is padding.
        classes: int64 `[T]`: only the first `classes[t]` logits of task t count.

    Returns:
        float32 `[T]`. Scores that are NaN count as wrong; a task without examples is NaN.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 9.0]]])
        >>> episode_accuracy(logits, torch.tensor([[0, 1], [0, 0]]))
        tensor([1.0000, 0.5000])
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits must be [T, Q, classes] and labels [T, Q], got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask must be {list(labels.shape)} as labels, got {list(mask.shape)}")
    if classes is not None:
        if classes.shape != labels.shape[:1]:
            raise ValueError(f"classes must be [{len(labels)}], got {list(classes.shape)}")
        beyond = torch.arange(logits.shape[2], device=logits.device) >= classes[:, None]
        logits = logits.masked_fill(beyond[:, None, :], -math.inf)
    right = (logits.argmax(2) == labels) & ~logits.isnan().any(2)
    counted = torch.ones_like(right) if mask is None else mask
    return (right & counted).sum(1) / counted.sum(1)


def _t95(freedom: int) -> float:
    if freedom < len(_T95):
        return _T95[freedom]
    z = 1.959964  # Cornish and Fisher's expansion; below 5e-4 off from 31 degrees of freedom on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
