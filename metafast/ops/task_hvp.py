"""The Hessian of every task's loss times a direction, and the same for its inputs.

    hvp[t]     = d<grads[t], tangents[t]> / dweights[t]
    mixed_x[t] = d<grads[t], tangents[t]> / dx[t]

by one pass of the directional derivative of `task_grad` (Pearlmutter's R-operator); the other arguments are those of
`task_grad`. `tangents` is `[T, P]`.

Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 1994.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _inner_loop_reference, _inner_loop_samples, _triton_inner_loop
from ._define import define
from .task_grad import INPUTS

SCHEMA = f"task_hvp({INPUTS}, Tensor tangents, Tensor(a!) hvp, Tensor(b!)? mixed_x) -> ()"


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples for the programs of `task_grad`."""
    return _inner_loop_samples.task_hvp(device, dtype, seed)


OP = define(SCHEMA, _inner_loop_reference.task_hvp, sample_inputs, triton=_triton_inner_loop.task_hvp)
