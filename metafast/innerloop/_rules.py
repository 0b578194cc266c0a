"""The inner optimizers: what turns the gradients of a task into its next weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from torch import Tensor

Hook = Callable[[int, Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with momentum, weight decay and a pull to the start.

    `d = g + weight_decay θ + prox (θ - θ_0)`, `v = momentum v + d`, `θ = θ - rate v`: `torch.optim.SGD`'s form.

    Args:
        momentum: at least 0 and below 1.
        weight_decay: at least 0.
        prox: at least 0; the gradient of `prox / 2 |θ - θ_0|²`, as in iMAML and proximal updates.

    Example:
        >>> SGD(momentum=0.9)
        SGD(momentum=0.9, weight_decay=0.0, prox=0.0)
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    prox: float = 0.0

    def __post_init__(self) -> None:
        _check("momentum", self.momentum, below=1.0)
        _check("weight_decay", self.weight_decay)
        _check("prox", self.prox)


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction, in `torch.optim.Adam`'s form (weight decay is added to the gradient).

    Args:
        beta1: decay of the first moment, at least 0 and below 1.
        beta2: decay of the second moment, at least 0 and below 1.
        eps: added to the root, above 0.
        weight_decay: at least 0.
        prox: at least 0, as for `SGD`.

    Example:
        >>> Adam(beta1=0.8)
        Adam(beta1=0.8, beta2=0.999, eps=1e-08, weight_decay=0.0, prox=0.0)

    Kingma & Ba, ICLR 2015.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    prox: float = 0.0

    def __post_init__(self) -> None:
        _check("beta1", self.beta1, below=1.0)
        _check("beta2", self.beta2, below=1.0)
        _check("weight_decay", self.weight_decay)
        _check("prox", self.prox)
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, got {self.eps!r}")


Rule = Union[SGD, Adam, Hook]  # noqa: UP007 a Callable inside `|` needs Python 3.11 at run time


def _check(name: str, value: Any, below: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not 0 <= value < below:
        limit = "" if below == float("inf") else f" and below {below:g}"
        raise ValueError(f"{name} must be at least 0{limit}, got {value!r}")


def make_rule(rule: str | Rule) -> Rule:
    """The rule that a name, a rule or a hook means."""
    named: dict[str, Rule] = {"sgd": SGD(), "momentum": SGD(momentum=0.9), "adam": Adam()}
    if isinstance(rule, str):
        if rule not in named:
            raise ValueError(
                f"rule={rule!r} is unknown; choose one of {', '.join(named)}, SGD(...), Adam(...) or a hook"
            )
        return named[rule]
    if isinstance(rule, SGD | Adam) or callable(rule):
        return rule
    raise TypeError(f"rule must be a name, SGD(...), Adam(...) or a callable, got {rule!r} ({type(rule).__name__})")
