"""Views of a map while a module is traced: flattening and its inverse, and what changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from metafast.innerloop._trace import Tracer


@dataclass
class Cell:
    """What a stand-in stands for: a value of the program, or the rows of an embedding that await their mean."""

    value: int
    rows: tuple[int, int] | None = None  # the table, and the padding index of an embedding bag


def flat(args: Any) -> Iterator[Any]:
    """The leaves of nested lists and tuples."""
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from flat(arg)
        else:
            yield arg


def alias(t: Tracer, x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Another stand-in for the same value."""
    return t.track(x.new_zeros(x.shape if shape is None else tuple(shape)), t.cell(x))


def reshape(t: Tracer, input: Any, *shape: Any, **kwargs: Any) -> Tensor:
    """`view` and `reshape`; -1 is what is left."""
    given = list(flat([*shape, *kwargs.values()]))
    if any(isinstance(size, torch.dtype) for size in given):
        raise t.fail("a view as another dtype")
    sizes = [int(size) for size in given]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = input.numel() // max(known, 1)
    return reshaped(t, input, tuple(sizes))


def flatten(t: Tracer, input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """`flatten`."""
    start, end = start_dim % input.dim(), end_dim % input.dim()
    sizes = tuple(input.shape)
    return reshaped(t, input, (*sizes[:start], math.prod(sizes[start : end + 1]), *sizes[end + 1 :]))


def unflatten(t: Tracer, input: Any, dim: int, sizes: Any) -> Tensor:
    """`unflatten`."""
    dim %= input.dim()
    return reshape(t, input, *input.shape[:dim], *sizes, *input.shape[dim + 1 :])


def squeeze(t: Tracer, input: Any, dim: Any = None) -> Tensor:
    """`squeeze`."""
    dims = range(input.dim()) if dim is None else [d % input.dim() for d in flat([dim])]
    return reshaped(t, input, tuple(s for d, s in enumerate(input.shape) if d not in dims or s != 1))


def unsqueeze(t: Tracer, input: Any, dim: int) -> Tensor:
    """`unsqueeze`."""
    sizes = list(input.shape)
    sizes.insert(dim % (input.dim() + 1), 1)
    return reshaped(t, input, tuple(sizes))


def reshaped(t: Tracer, input: Any, sizes: tuple[int, ...]) -> Tensor:
    """Flattening and its inverse view one map; the input may also get another shape before its first use."""
    cell = t.cell(input)
    if sizes == tuple(input.shape):
        return alias(t, input)
    if cell.rows is None and len(sizes) >= 2 and sizes[0] == input.shape[0]:
        c, h, w = t.values[cell.value]
        vector = h * w == 1 and sizes[1] == c and all(size == 1 for size in sizes[2:])
        if len(sizes) == 2 or sizes[1:] == (c, h, w) or vector:
            return alias(t, input, sizes)
        unused = not t.instructions and not t.norms
        if cell.value == 0 and unused and len(sizes) == 4 and input.is_floating_point():
            t.values[0] = (sizes[1], sizes[2], sizes[3])
            return alias(t, input, sizes)
    raise t.fail(f"reshaping {tuple(input.shape)} to {sizes}")


def same(t: Tracer, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`contiguous`, `clone`, and conversions to the dtype and device that are there already."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, torch.dtype) and arg != input.dtype:
            raise t.fail(f"conversion from {input.dtype} to {arg}")
        if isinstance(arg, torch.device) and arg != input.device:
            raise t.fail(f"a move from {input.device} to {arg}")
    return alias(t, input)


def clone(t: Tracer, input: Any, **kwargs: Any) -> Tensor:
    """A copy, which later in-place changes leave alone."""
    cell = t.cell(input)
    return t.track(input.new_zeros(input.shape), Cell(cell.value, cell.rows))


def to_float(t: Tracer, input: Any) -> Tensor:
    """`float`, where it changes nothing."""
    return same(t, input, torch.float32)
