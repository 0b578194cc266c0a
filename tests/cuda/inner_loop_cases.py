"""Arguments of `inner_loop` for convolutions as real models have them: tiles of every kind, split sums, strides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metafast.ops._inner_loop_samples import _Builder, _Data
from metafast.ops._program import Opcode, Program

TASKS, SUPPORT, QUERY = 2, 4, 3


def vectors() -> Program:
    """Channel counts that are copied four at a time: narrow and wide tiles, more columns than one tile, a stride."""
    b = _Builder(4, 11, 9)
    b.conv(8, 3)
    b.batch_norm()
    b.add(Opcode.RELU)
    b.conv(72, 3, stride=2)
    b.add(Opcode.GROUP_NORM, weight=b.param(72), bias=b.param(72), ints=(4,), attributes=(1e-5,))
    b.add(Opcode.RELU)
    b.conv(36, 3, stride=2)
    b.batch_norm()
    b.add(Opcode.RELU)
    b.linear(8)
    return b.program()


def grouped() -> Program:
    """Groups of four channels and of one, a kernel of one, a stride that leaves positions out."""
    b = _Builder(8, 9, 10)
    b.conv(16, 3, groups=2)
    b.add(Opcode.LAYER_NORM, weight=b.param(16 * 90), bias=b.param(16 * 90), attributes=(1e-5,))
    b.add(Opcode.RELU)
    b.conv(16, 5, groups=16)
    b.conv(12, 1, stride=3)
    b.add(Opcode.TANH)
    b.linear(3)
    return b.program()


def deep() -> Program:
    """Long sums: many positions, so that weight gradients are cut into parts."""
    b = _Builder(1, 20, 20)
    b.conv(8, 3)
    b.batch_norm()
    b.add(Opcode.RELU)
    b.conv(8, 3)
    b.pool(Opcode.MAX_POOL, 2, 2)
    b.linear(5)
    return b.program()


def freeze(program: Program, count: int) -> Program:
    """The first `count` parameters are not adapted."""
    return replace(program, params=tuple(replace(p, adapted=i >= count) for i, p in enumerate(program.params)))


def head() -> Program:
    """Only the last layer adapts, as in ANIL: all others are the same at every step."""
    b = _Builder(3, 8, 7)
    b.conv(8, 3)
    b.batch_norm()
    b.add(Opcode.RELU)
    b.pool(Opcode.MAX_POOL, 2, 2)
    b.conv(8, 3)
    b.add(Opcode.LAYER_NORM, weight=b.param(96), bias=b.param(96), attributes=(1e-5,))
    b.add(Opcode.GELU, ints=(0,))
    b.linear(5)
    return freeze(b.program(), 8)


def shortcut() -> Program:
    """Frozen maps that an adapted block reads twice, once around itself."""
    b = _Builder(4, 6, 5)
    first = b.conv(8, 3)
    b.conv(8, 3)
    b.add(Opcode.ADD, in0=first, in1=b.last)
    b.add(Opcode.TANH)
    b.linear(3)
    return freeze(b.program(), 2)


PROGRAMS = {"vectors": vectors, "grouped": grouped, "deep": deep, "head": head, "shortcut": shortcut}


def arguments(
    name: str, dtype: torch.dtype, device: str = "cpu", *, steps: int = 2, order: int = 2, budget: int = -1
) -> list[Any]:
    """All arguments of `inner_loop`, outputs included."""
    program = PROGRAMS[name]()
    data = _Data(program, device, dtype, 0, TASKS, masked=False)
    weights = data.weights(per_task=False)
    support, query = data.examples(SUPPORT), data.examples(QUERY)
    rates = data.to(torch.full((steps, len(program.params)), 0.05))
    query_weights = torch.zeros(steps + 1, dtype=torch.float64)
    query_weights[-1] = 1.0
    outputs = [
        weights.new_zeros(TASKS), weights.new_zeros(TASKS, steps), weights.new_zeros(TASKS, steps + 1),
        weights.new_zeros(TASKS, QUERY, program.classes), torch.zeros_like(weights), torch.zeros_like(rates),
        torch.zeros_like(support[0]), torch.zeros_like(query[0]), weights.new_zeros(TASKS, program.numel),
        weights.new_zeros(steps + 1, program.stats),
    ]  # fmt: skip
    return [
        *data.vectors, weights, rates, *support, *query, None, None, None, query_weights, None,
        steps, order, 0, 0.0, 0.99, 1e-8, 0.0, 0.0, 5, 0, budget, *outputs,
    ]  # fmt: skip
