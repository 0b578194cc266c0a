"""The memory of the last inner-loop call on the CPU.

    bytes[0] = what the engine of this thread's last call of inner_loop, task_grad or task_hvp holds

That is all that such a call works in beside its arguments: the weight copies, activations and sums of every thread that
took tasks. It is kept for the next call of that shape, so it is the peak as well. The reference holds nothing and
writes 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._define import define

SCHEMA = "inner_loop_memory(Tensor(a!) bytes) -> ()"


def reference(bytes: Tensor) -> None:
    """Writes 0."""
    bytes.zero_()


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """The one argument there is."""
    return [(torch.zeros(1, dtype=torch.int64, device=device),)]


OP = define(SCHEMA, reference, sample_inputs)
