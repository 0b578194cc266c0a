"""No speed-up is reported on wrong numbers: three small steps of every contender against its reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contenders import Build, Contender

SHAPES = ((33, 65), (104,), (17, 3), (1,), ())
STEPS = 3


@torch.no_grad()
def check(contender: Contender) -> None:
    """Raises AssertionError where a contender's parameters are not those of its reference."""
    start = _params(0)
    with torch.enable_grad():
        moved = _train(contender.build)
        expected = _train(contender.reference) if contender.reference is not None else None
    for index, (before, after) in enumerate(zip(start, moved, strict=True)):
        if not bool(after.isfinite().all()):
            raise AssertionError(f"{contender.name}: tensor {index} is not finite after {STEPS} steps")
        if torch.equal(before, after):
            raise AssertionError(f"{contender.name}: tensor {index} did not move")
        if expected is None:
            continue
        distance = float((expected[index] - before).abs().max())
        error = float((expected[index] - after).abs().max())
        rounding = float(before.abs().max()) * 2.0**-22
        if error > contender.tolerance * distance + rounding:
            raise AssertionError(
                f"{contender.name}: tensor {index} is {error:.1e} from its reference, which moved it by {distance:.1e}"
            )


def _train(build: Build) -> list[Tensor]:
    params = _params(0)
    _set_grads(params, 1)
    step = build(params)
    for seed in range(1, STEPS + 1):
        _set_grads(params, seed)
        step()
    return [p.detach() for p in params]


def _params(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator)) for shape in SHAPES]


def _set_grads(params: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
