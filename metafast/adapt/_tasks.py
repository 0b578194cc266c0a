"""The examples of a batch of tasks, folded for one pass, and what is checked of their labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metafast.data import TaskBatch


@dataclass
class Examples:
    """The support or query sets of T tasks.

    Args:
        flat: `[T * N, ...]`, every padding replaced by the first example of its task, so that no part of a model sees
            an empty input.
        y: `[T, N]`.
        mask: `[T, N]`, False where an example is padding.
        kept: what a model keeps of these inputs from step to step.
    """

    flat: Tensor
    y: Tensor
    mask: Tensor | None
    kept: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(batch: TaskBatch, part: str) -> Examples:
        """Of a batch; `part` is "support" or "query"."""
        x, y, mask = (getattr(batch, f"{part}_{name}") for name in ("x", "y", "mask"))
        if mask is not None:
            rows = torch.arange(len(x), device=x.device)
            first = mask.to(torch.int64).argmax(1)
            shape = (*mask.shape, *[1] * (x.dim() - 2))
            x = torch.where(mask.view(shape), x, x[rows, first].unsqueeze(1))
            y = torch.where(mask, y, y[rows, first].unsqueeze(1))
        return Examples(x.flatten(0, 1), y, mask)


def one_task(x: Tensor, y: Tensor) -> TaskBatch:
    """A batch of one task with nothing to ask: its first example stands in for a query."""
    return TaskBatch(x[None], y[None], x[None, :1], y[None, :1])


def class_count(batch: TaskBatch, ways: int | None) -> int:
    """How many classes the heads have: `ways`, the most that a task has, or the support set's labels.

    Raises:
        TypeError: labels that are no class numbers.
        ValueError: labels beyond the head.
    """
    if batch.support_y.is_floating_point():
        raise TypeError(f"support_y must be int64 class numbers, got {batch.support_y.dtype}")
    if ways is None:
        batch.validate()
        ways = int(batch.classes.max()) if batch.classes is not None else int(_seen(batch).max()) + 1
    batch.validate(ways)
    return ways


def check_two_classes(batch: TaskBatch, classes: int) -> None:
    """Raises a ValueError where a support set has examples of one class only."""
    hot = torch.nn.functional.one_hot(batch.support_y.clamp(0, classes - 1), classes).bool()
    if batch.support_mask is not None:
        hot = hot & batch.support_mask.unsqueeze(-1)
    found = hot.any(1).sum(1)
    wrong = (found < 2).nonzero()
    if len(wrong):
        task = int(wrong[0])
        raise ValueError(
            f"support_y of task {task} must have examples of at least two classes, all are of class "
            f"{int(hot[task].any(0).nonzero()[0])}; there is nothing to tell apart"
        )


def _seen(batch: TaskBatch) -> Tensor:
    y, mask = batch.support_y, batch.support_mask
    return y if mask is None else torch.where(mask, y, 0)
