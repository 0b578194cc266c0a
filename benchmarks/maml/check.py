"""No time is reported of a wrong gradient: every contender against a loop in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.peers import maml_loop
from benchmarks.peers.maml_problem import Problem

from .workloads import WORKLOADS

TOLERANCE = 1e-4  # of the whole gradient, |g - g64| / |g64|


@cache
def reference(workload: str, steps: int, order: int) -> tuple[Tensor, ...]:
    """The meta-gradient of a workload's checked tasks, by a plain loop in float64."""
    return tuple(maml_loop.build(problem(workload, steps, order, torch.float64))())


def problem(workload: str, steps: int, order: int, dtype: torch.dtype = torch.float32) -> Problem:
    """The problem that is checked: fewer tasks, and one step where several are chaotic."""
    chosen = WORKLOADS[workload]
    steps = chosen.check_steps(steps)
    return replace(chosen, tasks=chosen.checked, chunk=min(chosen.chunk, chosen.checked)).problem(steps, order, dtype)


def error(grads: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative distance of two gradients, by their norm; infinite where shapes differ or something is not finite."""
    if [g.shape for g in grads] != [e.shape for e in expected]:
        return float("inf")
    distance = sum(float((g.double() - e).square().sum()) for g, e in zip(grads, expected, strict=True))
    norm = sum(float(e.square().sum()) for e in expected)
    value = (distance / norm) ** 0.5
    return value if value == value else float("inf")
