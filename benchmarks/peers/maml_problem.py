"""What a MAML peer is asked for: the gradient of the mean query loss over tasks, to the shared start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

MetaGradient = Callable[[], list[Tensor]]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


@dataclass(frozen=True)
class Problem:
    """One meta-gradient: K steps of SGD from `model` on each task, then the mean query loss.

    Attributes:
        model: start, an `nn.Sequential` whose batch normalizations use the statistics of the batch.
        loss: `"cross_entropy"` or `"mse"`, the mean over a set.
        support_x, support_y, query_x, query_y: `[tasks, examples, ...]`.
        lr: inner learning rate.
        steps: K.
        order: 2 for the exact meta-gradient, 1 where inner gradients are constants.
        layers: the model as data, for peers that are not PyTorch.
        chunk: tasks that a vectorizing peer takes at a time.
    """

    model: nn.Sequential
    loss: str
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    lr: float
    steps: int
    order: int
    layers: tuple[tuple[Any, ...], ...]
    chunk: int

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.support_x)

    @property
    def loss_fn(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as a function of logits and targets."""
        return LOSSES[self.loss]

    def task(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Support inputs and targets, query inputs and targets of one task."""
        return self.support_x[index], self.support_y[index], self.query_x[index], self.query_y[index]
