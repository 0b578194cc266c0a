"""No time is reported of a wrong gradient: every contender against a loop in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from benchmarks.peers import maml_loop

from .workloads import WORKLOADS

# Of the whole gradient, |g - g64| / |g64|. Five steps at the rate 0.4 amplify fp32 rounding on Omniglot.
TOLERANCE = {1: 1e-4}
TOLERANCE_MORE_STEPS = 1e-3
TOLERANCE_DOUBLE = 1e-9


@cache
def reference(workload: str, steps: int, order: int) -> tuple[Tensor, ...]:
    """The meta-gradient by a plain loop in float64."""
    return tuple(maml_loop.build(WORKLOADS[workload].problem(steps, order, torch.float64))())


def error(grads: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative distance of two gradients, by their norm; infinite where shapes differ or something is not finite."""
    if [g.shape for g in grads] != [e.shape for e in expected]:
        return float("inf")
    distance = sum(float((g.double() - e).square().sum()) for g, e in zip(grads, expected, strict=True))
    norm = sum(float(e.square().sum()) for e in expected)
    value = (distance / norm) ** 0.5
    return value if value == value else float("inf")


def tolerance(steps: int) -> float:
    """What fp32 may differ from float64."""
    return TOLERANCE.get(steps, TOLERANCE_MORE_STEPS)
