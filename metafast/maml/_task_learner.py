"""What `Trainer` and `evaluate` ask of a learner: to adapt to a batch of tasks and say how well it did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from metafast.data import TaskBatch

ON_NAN = ("raise", "drop", "ignore")


class TaskLearner(nn.Module):
    """A module that adapts to tasks; `parameters()` are what meta-training changes.

    Args:
        steps: of adaptation.
        order: 2 or 1, of the meta-gradient.
        on_nan: what becomes of tasks whose loss is not finite: "raise", "drop" or "ignore".
    """

    steps: int
    order: int
    on_nan: str

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """The query loss after adaptation, mean over tasks, and what each task reached."""
        raise NotImplementedError

    def trajectory(self, batch: TaskBatch, steps: int | None = None) -> Iterator[dict[str, Any]]:
        """What each task reached before adaptation and after each step."""
        raise NotImplementedError
