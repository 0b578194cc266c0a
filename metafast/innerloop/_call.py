"""One call of an inner loop with all its arguments checked and in the ops' form, and what an engine gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from metafast.innerloop._layout import Layout
from metafast.innerloop._rules import Rule

if TYPE_CHECKING:
    from metafast.data import TaskBatch


@dataclass
class Call:
    """Detached tensors in the form of the op `inner_loop`."""

    batch: TaskBatch
    weights: Tensor  # [P] or [T, P]
    rates: Tensor  # [1 or K, R]
    batches: Tensor | None
    stats: Tensor | None
    query_weights: Tensor  # float64 [K + 1], on the CPU
    task_weights: Tensor | None  # float64 [T]
    steps: int
    order: int
    rule: Rule
    seed: int
    first_task: int
    memory_budget: int
    wants_weights: bool = True
    wants_rates: bool = False
    wants_support_x: bool = False
    wants_query_x: bool = False
    want_adapted: bool = False
    want_batch_stats: bool = False
    want_logits: bool = True  # else there is no query pass but for losses that count


@dataclass
class Result:
    """What an engine computes; the gradients are of the weighted sum over tasks."""

    task_losses: Tensor
    support_losses: Tensor
    query_losses: Tensor
    logits: Tensor
    grad_weights: Tensor | None = None
    grad_rates: Tensor | None = None
    grad_support_x: Tensor | None = None
    grad_query_x: Tensor | None = None
    adapted: Tensor | None = None  # [T, P]
    batch_stats: Tensor | None = None


def flat_starts(starts: list[Tensor], layout: Layout, tasks: int) -> Tensor:
    """The starts as one `[P]`, or `[T, P]` where any has a task dimension."""
    if [s.dim() for s in starts] == layout.ranks:
        return _flatten_dense_tensors(starts)
    parts = [s if s.dim() > rank else s.expand(tasks, *s.shape) for s, rank in zip(starts, layout.ranks, strict=True)]
    return torch.cat([part.reshape(tasks, -1) for part in parts], 1)


def detached(batch: TaskBatch) -> TaskBatch:
    """The batch without gaps and gradients, as the ops read it; itself where it is so."""
    values = _fields(batch)
    if all(v is None or v.is_contiguous() and not v.requires_grad for v in values.values()):
        return batch
    changed: Any = {name: None if v is None else v.detach().contiguous() for name, v in values.items()}
    return type(batch)(**changed)


def take_tasks(batch: TaskBatch, kept: list[int]) -> TaskBatch:
    """Some tasks of a batch."""
    taken: Any = {name: None if v is None else v[kept] for name, v in _fields(batch).items()}
    return type(batch)(**taken)


def _fields(batch: TaskBatch) -> dict[str, Tensor | None]:
    return {
        "support_x": batch.support_x, "support_y": batch.support_y, "query_x": batch.query_x, "query_y": batch.query_y,
        "support_mask": batch.support_mask, "query_mask": batch.query_mask, "classes": batch.classes,
    }  # fmt: skip
