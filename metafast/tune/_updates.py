"""The optimizers' updates as differentiable functions of weights, gradient, states and options.

Each equals one step of `torch.optim` on an elementwise level: `update(theta, grad, state, hyper, step, flags)` returns
the new weights and states. `hyper` maps an option's name to a number or a 0-d tensor, through which derivatives flow;
`step` counts the steps before this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metafast import optim

Hyper = Mapping[str, Any]
States = dict[str, Tensor]


def sgd(
    theta: Tensor, grad: Tensor, state: States, hyper: Hyper, step: int, flags: Mapping[str, bool]
) -> tuple[Tensor, States]:
    """SGD with (Nesterov) momentum and coupled decay; the first buffer is the gradient itself, as in PyTorch."""
    direction = (-grad if flags["maximize"] else grad) + hyper["weight_decay"] * theta
    if "momentum_buffer" not in state:
        return theta - hyper["lr"] * direction, {}
    buffer = direction
    if step > 0:
        buffer = hyper["momentum"] * state["momentum_buffer"] + (1 - hyper["dampening"]) * direction
    direction = direction + hyper["momentum"] * buffer if flags["nesterov"] else buffer
    return theta - hyper["lr"] * direction, {"momentum_buffer": buffer}


def adam(
    theta: Tensor, grad: Tensor, state: States, hyper: Hyper, step: int, flags: Mapping[str, bool]
) -> tuple[Tensor, States]:
    """Adam and AdamW (flag "decoupled"), with or without AMSGrad."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    grad = -grad if flags["maximize"] else grad
    if flags["decoupled"]:
        theta = theta * (1 - hyper["lr"] * hyper["weight_decay"])
    else:
        grad = grad + hyper["weight_decay"] * theta
    first = beta1 * state["exp_avg"] + (1 - beta1) * grad
    second = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad * grad
    new = {"exp_avg": first, "exp_avg_sq": second}
    largest = second
    if "max_exp_avg_sq" in state:
        largest = new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], second)
    # scalars in float64: 1 - beta2 ** t loses four digits of float32 at beta2 = 0.999
    bias1, bias2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    denominator = _root(largest) / bias2**0.5 + hyper["eps"]
    return theta - (hyper["lr"] / bias1) * (first / denominator), new


def _root(x: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0: an element that has never had a gradient has no say."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class Rule:
    """What the tuner knows of an optimizer."""

    update: Callable[..., tuple[Tensor, States]]
    options: tuple[str, ...]  # what can be tuned
    decoupled: bool = False

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states of a parameter in this group."""
        if self.update is sgd:
            return ("momentum_buffer",) if group["momentum"] != 0 else ()
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def flags(self, group: Mapping[str, Any]) -> dict[str, bool]:
        """The switches of a group that change the formula."""
        return {
            "maximize": bool(group["maximize"]),
            "nesterov": bool(group.get("nesterov", False)),
            "decoupled": self.decoupled or bool(group.get("decoupled_weight_decay", False)),
        }


_SGD = Rule(sgd, ("lr", "momentum", "dampening", "weight_decay"))
_ADAM = Rule(adam, ("lr", "beta1", "beta2", "eps", "weight_decay"))
_ADAMW = Rule(adam, _ADAM.options, decoupled=True)

RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: _SGD,
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAMW,
    optim.SGD: _SGD,
    optim.Adam: _ADAM,
    optim.AdamW: _ADAMW,
}
_UNMODELLED = {"hypergrad": None, "master_weights": False, "stochastic_rounding": False}


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The rule of an optimizer, or an error that says what can be tuned, and which of its options stand in the way."""
    rule = RULES.get(type(optimizer))
    if rule is None:
        names = ", ".join(sorted({f"{cls.__module__.split('.')[0]}.optim.{cls.__name__}" for cls in RULES}))
        raise TypeError(
            f"optimizer must be one of {names}, got {type(optimizer).__name__}: "
            "its update has no differentiable form here, so nothing of it can be tuned"
        )
    for index, group in enumerate(optimizer.param_groups):
        for option, off in _UNMODELLED.items():
            if group.get(option, off) != off:
                raise ValueError(
                    f"the optimizer has {option}={group[option]!r} in group {index}, whose effect on the update is "
                    f"not differentiated; make it with {option}={off!r}"
                )
    clipped = getattr(optimizer, "max_grad_norm", None)
    if clipped is not None:
        raise ValueError(
            f"the optimizer has max_grad_norm={clipped!r}; clipping is not differentiated: "
            "make it with max_grad_norm=None"
        )
    return rule
