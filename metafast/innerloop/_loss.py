"""What an inner loop minimizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metafast.ops._program import Loss


@dataclass(frozen=True)
class LossKind:
    """A loss as a function (logits, targets) -> scalar, and as what a program may end in.

    Args:
        function: the mean over examples.
        kind: cross-entropy, mean squared error, or None for a function of the user.
        smoothing: of cross-entropy.
        name: for explanations.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    kind: Loss | None
    smoothing: float
    name: str


def make_loss(loss: Any, smoothing: float) -> LossKind:
    """The loss of a name or a function.

    Raises:
        TypeError: neither.
        ValueError: an unknown name, or a smoothing that is out of range or has no meaning here.
    """
    if isinstance(smoothing, bool) or not isinstance(smoothing, int | float):
        raise TypeError(f"label_smoothing must be a number, got {smoothing!r} ({type(smoothing).__name__})")
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {smoothing!r}")
    smoothing = float(smoothing)
    if loss == "cross_entropy" or loss is F.cross_entropy:
        return LossKind(
            partial(F.cross_entropy, label_smoothing=smoothing), Loss.CROSS_ENTROPY, smoothing, "cross_entropy"
        )
    if smoothing:
        raise ValueError(f"label_smoothing={smoothing} needs loss='cross_entropy', got {loss!r}")
    if loss == "mse" or loss is F.mse_loss:
        return LossKind(F.mse_loss, Loss.MSE, 0.0, "mse")
    if isinstance(loss, str):
        raise ValueError(f"loss={loss!r} is unknown; choose 'cross_entropy', 'mse' or a function (logits, y) -> scalar")
    if not callable(loss):
        raise TypeError(f"loss must be a name or a function, got {type(loss).__name__}")
    if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None and loss.reduction == "mean":
        return LossKind(loss, Loss.CROSS_ENTROPY, float(loss.label_smoothing), "cross_entropy")
    if isinstance(loss, nn.MSELoss) and loss.reduction == "mean":
        return LossKind(loss, Loss.MSE, 0.0, "mse")
    return LossKind(loss, None, 0.0, getattr(loss, "__name__", type(loss).__name__))
