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

# Of the whole gradient, |g - g64| / |g64|.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
SMALL = {"shots": 1, "queries": 3}  # sets of a check in float64


@cache
def reference(workload: str, steps: int, order: int) -> tuple[Tensor, ...]:
    """The meta-gradient of a workload's checked tasks, by a plain loop in float64."""
    return tuple(maml_loop.build(problem(workload, steps, order, torch.float64))())


def dtype_of(workload: str) -> torch.dtype:
    """What contenders are checked in."""
    return torch.float64 if WORKLOADS[workload].chaotic else torch.float32


def tolerance(workload: str) -> float:
    """How far from float64 a contender may be."""
    return TOLERANCE[dtype_of(workload)]


def problem(workload: str, steps: int, order: int, dtype: torch.dtype | None = None) -> Problem:
    """The problem that is checked: fewer tasks, and small sets in float64 where fp32 is chaotic."""
    chosen = WORKLOADS[workload]
    chosen = replace(chosen, tasks=chosen.checked, chunk=min(chosen.chunk, chosen.checked))
    if chosen.chaotic:
        chosen = replace(chosen, **SMALL)
    return chosen.problem(steps, order, dtype if dtype is not None else dtype_of(workload))


def error(grads: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative distance of two gradients, by their norm; infinite where shapes differ or something is not finite."""
    if [g.shape for g in grads] != [e.shape for e in expected]:
        return float("inf")
    distance = sum(float((g.double() - e).square().sum()) for g, e in zip(grads, expected, strict=True))
    norm = sum(float(e.square().sum()) for e in expected)
    value = (distance / norm) ** 0.5
    return value if value == value else float("inf")
