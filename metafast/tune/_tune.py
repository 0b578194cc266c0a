"""What a user says about one hyperparameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metafast._checks import positive
from metafast.tune._spaces import SPACES

if TYPE_CHECKING:
    from metafast.tune._methods import Method

PER = ("global", "group", "layer", "tensor")
HINT = "tune_hint"  # attribute of a tensor: fields of `Tune` that suit it, where none are given


@dataclass(frozen=True, eq=False)
class Tune:
    """One hyperparameter to be tuned: an option of the optimizer by name, or a tensor that the loss depends on.

    Args:
        what: "lr", "momentum", "dampening", "weight_decay", "beta1", "beta2", "betas" (both) or "eps", as the optimizer
            has them; or a floating-point leaf tensor of any shape that requires a gradient, such as the logarithm of a
            regularizer's weight or a label smoothing.
        per: how many values an option has: one ("global", default), one per parameter group ("group"), per module
            ("layer") or per parameter ("tensor"). Layers and tensors get parameter groups of their own, in the
            optimizer too.
        space: where it is learned: "log", "log1m" (1 - x in log space), "logit" or "linear". Default: "log" for lr,
            weight_decay and eps, "log1m" for momentum, dampening and betas, "linear" for tensors, and for those of
            `metafast.tune.regularizers` what suits them.
        bounds: lowest and highest value. Default: by option, wide; none for tensors, but for those of regularizers.
        rate: learning rate of this hyperparameter in its space. Default: the tuner's `hyper_lr`.
        max_step: largest change of a value in its space in one update. Default 1.
        name: of a tensor, in `tuner.state` and in messages. Default: its parameter name in the model, or "tensor0", ...
        method: hypergradient method of this one. Default: the tuner's.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; the message names it.

    Example:
        >>> import torch
        >>> Tune("lr", per="tensor", bounds=(1e-6, 1.0), rate=0.1).per
        'tensor'
        >>> smoothing = torch.tensor(0.1, requires_grad=True)
        >>> Tune(smoothing, space="logit", name="label smoothing").name
        'label smoothing'
    """

    what: str | Tensor
    per: str = "global"
    space: str | None = None
    bounds: tuple[float, float] | None = None
    rate: float | None = None
    max_step: float = 1.0
    name: str | None = None
    method: str | Method | None = None

    def __post_init__(self) -> None:
        if isinstance(self.what, Tensor):
            _check_tensor(self.what, self.name)
            for name, value in getattr(self.what, HINT, {}).items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
            if self.per != "global":
                raise ValueError(f"per is for options of the optimizer; a tensor has its own shape, got {self.per!r}")
        elif not isinstance(self.what, str):
            raise TypeError(f"what to tune must be an option's name or a tensor, got {type(self.what).__name__}")
        elif self.name is not None:
            raise ValueError(f"name is for tensors; the option {self.what!r} has a name, got {self.name!r}")
        if self.per not in PER:
            raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {self.per!r}")
        if self.space is not None and self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(map(repr, SPACES))}, got {self.space!r}")
        for name in ("rate", "max_step"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.bounds is not None:
            _check_bounds(self.bounds)


def _check_bounds(bounds: Any) -> None:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (lowest, highest), got {bounds!r}")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in bounds):
        raise TypeError(f"bounds must be two numbers, got {bounds!r}")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (lowest, highest) with lowest < highest, got {bounds!r}")


def _check_tensor(tensor: Tensor, name: str | None) -> None:
    what = f"the tensor {name!r} to tune" if name else "a tensor to tune"
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{what} must be floating-point, got {tensor.dtype}")
    if not tensor.is_leaf or not tensor.requires_grad:
        raise ValueError(
            f"{what} must be a leaf that requires a gradient, got is_leaf={tensor.is_leaf}, "
            f"requires_grad={tensor.requires_grad}; make it by torch.tensor(..., requires_grad=True), and compute from "
            "it inside the loss"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{what} is empty, shape {tuple(tensor.shape)}")
