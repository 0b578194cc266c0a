"""The learned rate of each segment (a tensor, a group, or all tensors) from its statistics.

With sums over the tensors of a segment and `cos = g·u / (|g| |u|)`:

    additive         r + hyper_lr g·u                   (Baydin et al. 2018, eq. 5: the hypergradient is -g·u)
    multiplicative   r (1 + hyper_lr cos)               (Baydin et al. 2018, section 3)
    normalized       r exp(hyper_lr cos)
    sign             r exp(hyper_lr sign(g·u))

then clamped to [lr_min, lr_max]. Statistics that are not finite leave the rate alone. The sums are exact integers of a
common power of two, so the order of the tensors cannot matter, not even in the last bit.

1. Baydin, Cornish, Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._bucket import skipped
from ._define import define
from .hyper_adam import RULES, exp

SCHEMA = (
    "hyper_rate(Tensor(a!) rate, Tensor stats, Tensor segments, Tensor? found_inf, "
    "int hyper_rule, float hyper_lr, float lr_min, float lr_max) -> ()"
)


def exact_sum(values: Tensor) -> float:
    """The sum of float64 values, rounded once: the same for every order of them."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0:
        return 0.0
    _, exponent = math.frexp(largest)
    bits = 62 - math.ceil(math.log2(values.numel()))
    total = sum(round(math.ldexp(value, bits - exponent)) for value in values.tolist())
    return math.ldexp(float(total), exponent - bits)


def next_rate(rate: float, hyper_rule: int, hyper_lr: float, gg: float, gu: float, uu: float) -> float:
    """The rule, before the bounds."""
    norm = math.sqrt(gg) * math.sqrt(uu)
    cosine = gu / norm if norm > 0 else 0.0
    rule = RULES[hyper_rule]
    if rule == "additive":
        return rate + hyper_lr * gu
    if rule == "multiplicative":
        return rate * (1.0 + hyper_lr * cosine)
    exponent = cosine if rule == "normalized" else math.copysign(1.0, gu) if gu != 0 else 0.0
    return rate * exp(hyper_lr * exponent)


@torch.no_grad()
def reference(
    rate: Tensor,
    stats: Tensor,
    segments: Tensor,
    found_inf: Tensor | None,
    hyper_rule: int,
    hyper_lr: float,
    lr_min: float,
    lr_max: float,
) -> None:
    """The update in plain Python. `segments` int64 `[slots]` names each row's rate, -1 for none."""
    if skipped(found_inf):
        return
    for index in range(rate.numel()):
        rows = stats[segments == index].double().cpu()
        if not rows.numel() or not bool(rows[:, :3].isfinite().all()):
            continue
        gg, gu, uu = (exact_sum(rows[:, column]) for column in range(3))
        updated = next_rate(float(rate[index]), hyper_rule, hyper_lr, gg, gu, uu)
        if math.isfinite(updated):
            rate[index] = min(max(updated, lr_min), lr_max)


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Every rule on rates of one, several and no tensors."""
    generator = torch.Generator().manual_seed(seed)
    stats = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    stats[:, (0, 2, 3)] = stats[:, (0, 2, 3)].square()
    segments = torch.tensor([0, 1, 1, 1, -1, 3, 3])
    rates = torch.full((4,), 1e-2, dtype=torch.float64, device=device)
    given = (stats.to(device), segments.to(device), None)
    return [(rates.clone(), *given, rule, 0.05, 1e-8, 10.0) for rule in range(len(RULES))]


OP = define(SCHEMA, reference, sample_inputs)
