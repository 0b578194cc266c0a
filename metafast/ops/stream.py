"""The memory-speed limit of an optimizer step: the same streams read and written, with next to no arithmetic.

    w = -w      for each tensor of `writes`: one read and one write
    read r      for each tensor of `reads`

A negation flips one bit, so the time is that of memory; two calls give the old values back. It is what benchmarks
compare steps with, in the way of McCalpin's STREAM (https://www.cs.virginia.edu/stream/).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._define import define

SCHEMA = "stream(Tensor(a!)[] writes, Tensor[] reads) -> ()"


@torch.no_grad()
def reference(writes: list[Tensor], reads: list[Tensor]) -> None:
    """Negates each of `writes` in place."""
    for w in writes:
        w.neg_()
    for r in reads:
        r.sum()


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples that exercise the op: the streams of Adam, of SGD, and with half-size states; odd lengths."""
    generator = torch.Generator().manual_seed(seed)
    samples: list[tuple[Any, ...]] = []
    for numel, dtypes, reads in (
        (4097, (dtype,) * 3, 1),
        (63, (dtype,) * 2, 1),
        (20000, (dtype, torch.bfloat16, torch.float16), 2),
        (0, (dtype,), 0),
    ):
        writes = [torch.randn(numel, generator=generator).to(device, d) for d in dtypes]
        samples.append((writes, [torch.randn(numel, generator=generator).to(device, dtype) for _ in range(reads)]))
    return samples


OP = define(SCHEMA, reference, sample_inputs)
