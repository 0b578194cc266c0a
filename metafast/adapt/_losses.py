"""Losses of every task from the outputs of its head, and how good they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metafast.maml._metrics import per_task

LOSSES = ("cross_entropy", "span")


def task_losses(kind: str, outputs: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None) -> Tensor:
    """The mean loss of each task's examples, `[T]`.

    Args:
        kind: "cross_entropy" of classes, or "span": the mean of those of where a span starts and ends.
        outputs: `[T, N, C]`, or `[T, N, L, 2]` for spans.
        y: `[T, N]`: class numbers, or `start * L + end`.
        mask: `[T, N]`, False where an example is padding.
        classes: `[T]`, how many of the C each task has.
    """
    tasks, count = y.shape
    if kind == "span":
        length = outputs.shape[2]
        targets = torch.stack([y // length, y % length], -1)  # [T, N, 2]
        flat = outputs.transpose(2, 3).reshape(-1, length)
        each = F.cross_entropy(flat, targets.reshape(-1), reduction="none").view(tasks, count, 2).mean(2)
    else:
        if classes is not None:
            outside = torch.arange(outputs.shape[-1], device=outputs.device) >= classes[:, None, None]
            outputs = outputs.masked_fill(outside, -torch.inf)
        each = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(tasks, count)
    if mask is None:
        return each.mean(1)
    return torch.where(mask, each, 0).sum(1) / mask.sum(1).clamp(min=1)


@torch.no_grad()
def measures(kind: str, outputs: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None) -> dict[str, Any]:
    """The share of examples that are right, `[T]`, under "accuracy"."""
    if kind == "cross_entropy":
        return per_task(outputs, y, mask, classes)
    length = outputs.shape[2]
    start, end = outputs.argmax(2).unbind(-1)
    right = (start * length + end == y).to(outputs.dtype)
    valid = torch.ones_like(right) if mask is None else mask.to(right.dtype)
    return {"accuracy": (right * valid).sum(1) / valid.sum(1).clamp(min=1)}
