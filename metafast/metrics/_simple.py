"""Accuracy, and steps until a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of samples whose largest logit is that of the label.

    Args:
        logits: `[N, classes]` scores.
        labels: `[N]` class numbers.

    Returns:
        0 to 1. Scores that are NaN count as wrong.

    Raises:
        TypeError: not tensors.
        ValueError: shapes that do not fit, or no samples.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"logits and labels must be tensors, got {type(logits).__name__} and {type(labels).__name__}")
    if logits.dim() != 2 or labels.dim() != 1 or len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"logits must be [N, classes] and labels [N] with N of at least 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return right.sum().item() / len(labels)


def steps_to_threshold(
    steps: Sequence[int] | np.ndarray[Any, Any],
    values: Sequence[float] | np.ndarray[Any, Any],
    threshold: float,
    *,
    mode: str = "above",
) -> int | None:
    """The first step at which a metric reaches a threshold.

    Args:
        steps: steps of the curve, ascending.
        values: the metric at those steps.
        threshold: what is to be reached.
        mode: "above" for accuracy (`value >= threshold`), "below" for a loss (`value <= threshold`).

    Returns:
        The step, or None where it is never reached. NaN reaches nothing.

    Raises:
        ValueError: unequal lengths, an unknown mode, or a threshold that is not finite.

    Example:
        >>> steps_to_threshold([10, 20, 30], [0.5, 0.91, 0.95], 0.9)
        20
    """
    if mode not in ("above", "below"):
        raise ValueError(f"mode must be 'above' or 'below', got {mode!r}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold!r}")
    at, curve = np.asarray(steps), np.asarray(values, dtype=np.float64)
    if at.ndim != 1 or at.shape != curve.shape:
        raise ValueError(f"steps and values must be of one equal length, got shapes {at.shape} and {curve.shape}")
    reached = np.flatnonzero(curve >= threshold if mode == "above" else curve <= threshold)
    return int(at[reached[0]]) if reached.size else None
