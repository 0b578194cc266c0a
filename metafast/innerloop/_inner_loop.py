"""The inner loop of a model: adaptation to many tasks, and the gradient through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from metafast.innerloop._outcome import Explanation, Outcome
from metafast.innerloop._rules import Rule

if TYPE_CHECKING:
    from metafast.data import TaskBatch

Adapted = Sequence[str] | Callable[[str], bool] | None
Rates = float | Tensor | Mapping[str, Any]


class InnerLoop:
    """K steps of adaptation for every task of a batch, each task with its own weights, and their meta-gradient."""

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        label_smoothing: float = 0.0,
        steps: int = 5,
        rule: str | Rule = "sgd",
        order: int = 2,
        adapted: Adapted = None,
        engine: str = "auto",
        memory_budget: int | None = None,
        batch_norm: str = "auto",
        on_nan: str = "raise",
    ) -> None:
        raise NotImplementedError

    def __call__(
        self,
        batch: TaskBatch,
        *,
        rates: Rates = 0.01,
        per: str | None = None,
        params: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        order: int | None = None,
        query_weights: Sequence[float] | Tensor | None = None,
        task_weights: Sequence[float] | Tensor | None = None,
        batches: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        first_task: int = 0,
        want_adapted: bool = False,
        want_batch_stats: bool = False,
    ) -> Outcome:
        """Adapts to every task and evaluates; see the class."""
        raise NotImplementedError

    def adapt(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        classes: Tensor | None = None,
        rates: Rates = 0.01,
        per: str | None = None,
        params: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        batches: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        first_task: int = 0,
    ) -> dict[str, Tensor]:
        """The parameters after adaptation, detached: `[T, *shape]` each, or `[*shape]` when x has no task dimension."""
        raise NotImplementedError

    def gradient(
        self,
        params: Tensor | Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        classes: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        step: int = 0,
        first_task: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor | dict[str, Tensor]]:
        """(losses `[T]`, logits `[T, N, C]`, gradients in the form of `params`), differentiable once more."""
        raise NotImplementedError

    def explain(self) -> Explanation:
        """Which engine runs, and why; `print(inner.explain())` shows every layer."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parameters, in the order of the flat vector."""
        raise NotImplementedError

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        raise NotImplementedError

    @property
    def numel(self) -> int:
        """P, the number of elements of all parameters."""
        raise NotImplementedError

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """`[P]`, or `[T, P]` where any parameter has a task dimension."""
        raise NotImplementedError

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `[P]` or `[T, P]` by name."""
        raise NotImplementedError
