"""One call of an inner loop with all its arguments checked and in the ops' form, and what an engine gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

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
