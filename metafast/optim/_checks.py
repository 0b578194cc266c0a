"""What an optimizer accepts, said once: every error names the argument, what came, and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..ops import BACKENDS
from ..ops._bucket import is_dense
from ..ops.hyper_adam import RULES

HYPERGRADS = (None, "global", "group", "tensor", "element")
# Keys that PyTorch, its schedulers and trainers put into a group; they are theirs, not options.
FOREIGN_KEYS = frozenset(
    "params param_names name group_name initial_lr max_lr min_lr base_lr lr_scale fix_step swa_lr base_momentum "
    "max_momentum foreach fused differentiable decoupled_weight_decay".split()
)


def number(name: str, value: Any, accepts: Callable[[float], bool], expected: str) -> None:
    """Raises unless `value` is a finite number that `accepts` takes."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number {expected}, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(float(value)) or not accepts(float(value)):
        raise ValueError(f"{name} must be finite and {expected}, got {value!r}")


def learning_rate(value: Any, *, adapted: bool) -> None:
    """A finite rate: 0 or more, above 0 where a hypergradient adapts it; a float or a tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"lr as a tensor must have one real element, got shape {tuple(value.shape)} of {value.dtype}"
            )
        if value.is_cuda:
            return  # reading it would synchronize with the device
        value = float(value)
    number("lr", value, lambda x: x > 0 if adapted else x >= 0, "above 0" if adapted else "at least 0")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def choice(name: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def storage_dtype(name: str, value: Any) -> None:
    choice(name, value, (torch.float32, torch.bfloat16))


def betas(value: Any) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {value!r}")
    for index, beta in enumerate(value):
        number(f"betas[{index}]", beta, lambda x: 0 <= x < 1, "in [0, 1)")


def common(group: dict[str, Any]) -> None:
    """Checks the options that all optimizers share."""
    choice("hypergrad", group["hypergrad"], HYPERGRADS)
    adapted = group["hypergrad"] is not None
    started = "_base_lr" in group  # then lr is a scheduler's, which may be 0
    learning_rate(group["lr"], adapted=adapted and not started)
    number("weight_decay", group["weight_decay"], lambda x: x >= 0, "at least 0")
    number("hyper_lr", group["hyper_lr"], lambda x: x >= 0, "at least 0")
    if group["safe_start"] is not None:
        number("safe_start", group["safe_start"], lambda x: x > 0, "above 0 (or None for no safe start)")
    choice("hyper_rule", group["hyper_rule"], RULES)
    for name in ("maximize", "capturable", "hyper_exact", "master_weights", "stochastic_rounding"):
        flag(name, group[name])
    bounds = group["lr_bounds"]
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"lr_bounds must be a pair (lowest, highest), got {bounds!r}")
    number("lr_bounds[0]", bounds[0], lambda x: x > 0, "above 0")
    number("lr_bounds[1]", bounds[1], lambda x: x >= bounds[0], f"at least lr_bounds[0] = {bounds[0]!r}")
    lr = group.get("_base_lr", group["lr"])
    if adapted and not isinstance(lr, Tensor) and not bounds[0] <= lr <= bounds[1]:
        raise ValueError(f"lr must lie inside lr_bounds={tuple(bounds)!r} when hypergrad adapts it, got {lr!r}")
    for name in ("state_dtype", "rate_dtype"):
        storage_dtype(name, group[name])
    if group["backend"] is not None:
        choice("backend", group["backend"], (None, *BACKENDS))


def keys(group: dict[str, Any], options: dict[str, Any]) -> None:
    """A misspelt option in a parameter group must not pass for the user's own data."""
    unknown = sorted(set(group) - set(options) - FOREIGN_KEYS)
    unknown = [key for key in unknown if not key.startswith("_")]
    if unknown:
        raise TypeError(
            f"a parameter group has unknown option(s) {', '.join(unknown)}; accepted: {', '.join(sorted(options))}. "
            "Keys of your own may start with an underscore, or be 'name'"
        )


def gradient(index: int, param: Tensor, grad: Tensor) -> None:
    """Raises for a gradient that no rule takes."""
    where = f"the gradient of parameter {index} (shape {tuple(param.shape)})"
    if grad.layout is not torch.strided:
        raise TypeError(
            f"{where} is {grad.layout}; dense gradients are accepted: use sparse=False in the embedding, "
            "or torch.optim.SparseAdam for these parameters"
        )
    if grad.is_complex() or param.is_complex():
        raise TypeError(f"{where} is complex ({grad.dtype}); real floating-point parameters are accepted")
    if grad.shape != param.shape:
        raise ValueError(f"{where} has shape {tuple(grad.shape)}")
    if grad.device != param.device:
        raise ValueError(f"{where} is on {grad.device}, the parameter on {param.device}")


def parameter(index: int, param: Tensor) -> None:
    """Raises for a parameter that no rule takes."""
    if not param.dtype.is_floating_point or param.dtype.itemsize < 2:
        raise TypeError(
            f"parameter {index} has dtype {param.dtype}; float32, bfloat16, float16 and float64 are accepted"
        )


def granularity(bucketed: str | None, group: dict[str, Any]) -> None:
    """Raises where a group's `hypergrad` is another one than at its first step."""
    if bucketed != group["hypergrad"]:
        raise ValueError(
            f"hypergrad of a parameter group must stay what it was at its first step, {bucketed!r}; "
            f"got {group['hypergrad']!r}: make a new optimizer"
        )


def unchanged(index: int, param: Tensor, dtype: torch.dtype, numel: int) -> None:
    """Raises for a parameter that has become another one since its first step."""
    if param.dtype != dtype and torch.float64 in (param.dtype, dtype):
        raise TypeError(
            f"parameter {index} is {param.dtype} now, and was {dtype} at its first step; "
            "convert the model before its first step, or make a new optimizer"
        )
    if not is_dense(param):
        raise ValueError(
            f"parameter {index} has gaps in memory now (strides {param.stride()}) and had none at its first step; "
            "give its data a layout without gaps, or make a new optimizer"
        )
    if param.numel() != numel:
        raise ValueError(
            f"parameter {index} has shape {tuple(param.shape)} now, and had {numel} elements at its first step; "
            "make a new optimizer for a model that has changed"
        )
