"""The elements that dropout keeps, from a counter-based hash: they depend on (seed, task, step, instruction, element).

With `mix32` and `rounding_key` of `csrc/core/rounding.h`, all in 32-bit words:

    key  = mix32(rounding_key(seed, task, step) + (instruction + 1) 0x9e3779b9)
    word = rounding_word(key, element)
    kept = (word >> 8) >= ceil(p 2^24),  and then scaled by 1 / (1 - p)

`task` counts from the op's `first_task`; `instruction` is the position in the program; `element` is
`((n c + channel) h + row) w + column` with n the example's position in the task's data before mini-batches and masks.
An inner step k is step k, the query pass at θ_k is step 1,000,000 + k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._rounding import _MASK, _mix32, mix32, rounding_key

QUERY_STEP = 1_000_000


def dropout_keep(
    seed: int, task: int, step: int, instruction: int, example: Tensor, shape: tuple[int, int, int], p: float
) -> Tensor:
    """Which elements are kept: bool `[N, c, h, w]` for the example positions `example` `[N]`."""
    key = _mix32((rounding_key(seed, task, step) + (instruction + 1) * 0x9E3779B9) & _MASK)
    numel = math.prod(shape)
    element = example.to(torch.int64)[:, None] * numel + torch.arange(numel, device=example.device)
    word = mix32((((element & _MASK) ^ key) + (element >> 32) * 0x9E3779B9) & _MASK)
    return ((word >> 8) >= math.ceil(p * 2**24)).view(-1, *shape)
