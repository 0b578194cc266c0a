"""The flat form of a model: what the inner-loop ops run, as one int64 and one float64 vector.

`Program` is the readable form; `encode` and `decode` go between the two. One task's data are `[N, C, H, W]` (a flat
`[N, F]` is C = F, H = W = 1) or tokens `[N, L]`. All parameters of the model, in its own order and in PyTorch's layout,
form one flat vector of P elements.

    header        16 integers: magic, version, values, parameters, instructions, P, loss (0 cross-entropy, 1 mean
                  squared error), value of the logits, S (elements of batch statistics), input (0 maps, 1 tokens), 0 ...
    values        4 integers each: c, h, w, 0
    parameters    8 integers each: offset, four sizes (1 where missing), adapted (0 or 1), 0, 0
    instructions  24 integers each: opcode, output value, two input values (-1: none), weight, bias (parameter or -1),
                  index of its first attribute, 0, then up to 16 integers whose meaning depends on the opcode
    attributes    attributes[0] is the label smoothing; then those of the instructions

Flattening is resolved when a model is traced: a Linear layer reads a whole map in (c, h, w) order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

MAGIC, VERSION = 0x4D46, 1
HEADER, VALUE, PARAM, INSTRUCTION, INTS = 16, 4, 8, 24, 16


class Opcode(IntEnum):
    """What an instruction computes; its integers and attributes in the comment."""

    CONV2D = 1  # kh kw sh sw ph pw groups; weight [O, I / groups, kh, kw]
    LINEAR = 2  # weight [out, c h w]
    BATCH_NORM = 3  # mode (0: of the task's batch, 1: fixed), offset of its mean[c], var[c] in the statistics; eps
    LAYER_NORM = 4  # over c, h, w; eps
    GROUP_NORM = 5  # groups; eps
    RELU = 6
    GELU = 7  # 0: erf, 1: tanh
    TANH = 8
    SIGMOID = 9
    SILU = 10
    LEAKY_RELU = 11  # attribute: slope
    MAX_POOL = 12  # kh kw sh sw ph pw
    AVG_POOL = 13  # kh kw sh sw ph pw, whether padding counts
    ADD = 14
    DROPOUT = 15  # attribute: p
    EMBED_MEAN = 16  # padding index or -1; weight [V, D]


class Loss(IntEnum):
    """The loss that ends a program."""

    CROSS_ENTROPY = 0
    MSE = 1


@dataclass(frozen=True)
class Param:
    """One parameter: where it lies in the flat vector, its shape, and whether the inner loop adapts it."""

    offset: int
    shape: tuple[int, ...]
    adapted: bool = True

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Instruction:
    """One layer of a program."""

    opcode: Opcode
    out: int
    in0: int
    in1: int = -1
    weight: int = -1
    bias: int = -1
    ints: tuple[int, ...] = ()
    attributes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Program:
    """A model and its loss.

    Args:
        values: `(c, h, w)` of every value; value 0 is the input.
        params: all parameters of the model, in order.
        instructions: in an order in which every input is there before it is read.
        logits: the value that the loss reads.
        loss: cross-entropy on classes, or mean squared error.
        label_smoothing: of cross-entropy.
        stats: elements of all batch statistics (a mean and a variance for every channel of every batch norm).
        tokens: the input is int64 tokens.
    """

    values: tuple[tuple[int, int, int], ...]
    params: tuple[Param, ...]
    instructions: tuple[Instruction, ...]
    logits: int
    loss: Loss = Loss.CROSS_ENTROPY
    label_smoothing: float = 0.0
    stats: int = 0
    tokens: bool = False
    numel: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", sum(p.numel for p in self.params))

    @property
    def classes(self) -> int:
        """The width of the logits."""
        return math.prod(self.values[self.logits])


def encode(program: Program, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The two vectors `(program, attributes)` of the ops."""
    ints = [MAGIC, VERSION, len(program.values), len(program.params), len(program.instructions), program.numel,
            int(program.loss), program.logits, program.stats, int(program.tokens)]  # fmt: skip
    ints += [0] * (HEADER - len(ints))
    attributes = [float(program.label_smoothing)]
    for c, h, w in program.values:
        ints += [c, h, w, 0]
    for param in program.params:
        # More than four sizes: no layer reads such a parameter, only its place counts.
        shape = param.shape if len(param.shape) <= 4 else (param.numel,)
        ints += [param.offset, *shape, *[1] * (4 - len(shape)), int(param.adapted), 0, 0]
    for i in program.instructions:
        row = [int(i.opcode), i.out, i.in0, i.in1, i.weight, i.bias, len(attributes), 0, *i.ints]
        ints += row + [0] * (INSTRUCTION - len(row))
        attributes += i.attributes
    return (
        torch.tensor(ints, dtype=torch.int64, device=device),
        torch.tensor(attributes, dtype=torch.float64, device=device),
    )


_ATTRIBUTES = {Opcode.BATCH_NORM, Opcode.LAYER_NORM, Opcode.GROUP_NORM, Opcode.LEAKY_RELU, Opcode.DROPOUT}


def decode(program: Tensor, attributes: Tensor) -> Program:
    """The readable form of the two vectors.

    Raises:
        ValueError: they are no program of this version.
    """
    return _decode(tuple(program.tolist()), tuple(attributes.tolist()))


def _decode(ints: Sequence[int], attributes: Sequence[float]) -> Program:
    if len(ints) < HEADER or ints[0] != MAGIC or ints[1] != VERSION:
        raise ValueError("program is no metafast program of version 1; build it by metafast.innerloop")
    values, params, instructions = ints[2], ints[3], ints[4]
    if len(ints) != HEADER + VALUE * values + PARAM * params + INSTRUCTION * instructions or not attributes:
        raise ValueError(f"program has {len(ints)} integers, which is not what its header says")
    at = HEADER
    shapes = tuple((ints[i], ints[i + 1], ints[i + 2]) for i in range(at, at + VALUE * values, VALUE))
    at += VALUE * values
    rows = [ints[i : i + PARAM] for i in range(at, at + PARAM * params, PARAM)]
    at += PARAM * params
    layers = []
    for i in range(at, at + INSTRUCTION * instructions, INSTRUCTION):
        row = ints[i : i + INSTRUCTION]
        opcode = Opcode(row[0])
        extra = (attributes[row[6]],) if opcode in _ATTRIBUTES else ()
        layers.append(Instruction(opcode, row[1], row[2], row[3], row[4], row[5], tuple(row[8:]), extra))
    return Program(
        values=shapes,
        params=tuple(Param(r[0], tuple(r[1:5]), bool(r[5])) for r in rows),
        instructions=tuple(layers),
        logits=ints[7],
        loss=Loss(ints[6]),
        label_smoothing=attributes[0],
        stats=ints[8],
        tokens=bool(ints[9]),
    )
