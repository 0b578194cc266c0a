"""The spaces in which values are learned, so that a step cannot leave what is allowed, and counts in ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """A value x is learned as u, with x = value(u); `slope` is dx/du as a function of x."""

    raw: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    domain: str
    inside: Callable[[Tensor], Tensor]


SPACES = {
    "linear": Space(torch.clone, torch.clone, torch.ones_like, "finite", torch.isfinite),
    "log": Space(torch.log, torch.exp, torch.clone, "above 0", lambda x: x > 0),
    # 1 - x in log space: 0.9, 0.99 and 0.999 are equally far from each other
    "log1m": Space(lambda x: torch.log1p(-x), lambda u: -torch.expm1(u), lambda x: x - 1, "below 1", lambda x: x < 1),
    "logit": Space(
        torch.logit, torch.sigmoid, lambda x: x * (1 - x), "above 0 and below 1", lambda x: (x > 0) & (x < 1)
    ),
}
# Option: (space, lowest, highest). Momentum stays above 0, because at 0 PyTorch's SGD forgets its buffer, and at most
# 0.99, because a hypergradient over tens of steps does not see the harm of a memory of thousands.
DEFAULTS = {
    "lr": ("log", 1e-8, 10.0),
    "momentum": ("log1m", 1e-3, 0.99),
    "dampening": ("log1m", 0.0, 0.9999),
    "weight_decay": ("log", 1e-10, 1.0),
    "beta1": ("log1m", 0.0, 0.99),
    "beta2": ("log1m", 0.5, 0.9999),
    "eps": ("log", 1e-16, 0.1),
}
