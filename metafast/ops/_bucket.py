"""The layout that a step op works on: tensors of one group, device and dtype, with their states in flat arenas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _rounding

CHUNK = 16384  # elements of one unit of work; csrc/rules/rule.h has the same number
ALIGN = 64  # elements: every segment of an arena starts on a cache line, whatever its dtype
STATS = ("g·g", "g·u", "u·u", "p·p")


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a bucket lives.

    Attributes:
        items: int64 `[n, 3]`, a row (slot, arena offset, numel) for each tensor of a call.
        chunks: int64 `[c, 3]`, a row (item, start, elements before) for each unit of work.
        partials: float64 `[c, 4]`, scratch for the sums of a chunk.
        arena_size: elements of a state arena.
    """

    items: Tensor
    chunks: Tensor
    partials: Tensor
    arena_size: int

    def subset(self, positions: Sequence[int]) -> Layout:
        """The layout of a call for some of the tensors (those with a gradient), in the same arenas."""
        items = self.items[torch.as_tensor(positions, dtype=torch.int64, device=self.items.device)]
        return _with_chunks(items, self.arena_size)


def make_layout(numels: Sequence[int], device: torch.device | str = "cpu") -> Layout:
    """Lays out one arena segment for each tensor, in order."""
    rows, offset = [], 0
    for slot, numel in enumerate(numels):
        rows.append((slot, offset, numel))
        offset += -(-numel // ALIGN) * ALIGN
    items = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)
    return _with_chunks(items, offset)


def _with_chunks(items: Tensor, arena_size: int) -> Layout:
    numels = items[:, 2].cpu()
    counts = (numels + CHUNK - 1) // CHUNK
    item = torch.repeat_interleave(torch.arange(len(numels), device="cpu"), counts)
    first = torch.cumsum(counts, 0) - counts
    start = (torch.arange(len(item), device="cpu") - first[item]) * CHUNK
    before = (torch.cumsum(numels, 0) - numels)[item] + start
    chunks = torch.stack([item, start, before], dim=1).contiguous().to(items.device)
    partials = torch.zeros(len(item), len(STATS), dtype=torch.float64, device=items.device)
    return Layout(items.contiguous(), chunks, partials, arena_size)


def flat(tensor: Tensor) -> Tensor:
    """The elements of a non-overlapping and dense tensor in the order of its memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def check(params: Sequence[Tensor], grads: Sequence[Tensor], items: Tensor) -> None:
    """What every backend checks of its tensors before it writes anything."""
    if not len(params) == len(grads) == items.shape[0]:
        raise ValueError(f"{len(params)} params, {len(grads)} grads and {items.shape[0]} items must agree")
    for index, (param, grad, numel) in enumerate(zip(params, grads, items[:, 2].tolist(), strict=True)):
        if grad.layout is not torch.strided:
            raise TypeError(f"grads[{index}] is {grad.layout}; dense gradients are accepted")
        if not param.dtype.is_floating_point or not grad.dtype.is_floating_point:
            raise TypeError(f"params[{index}] is {param.dtype} and its gradient {grad.dtype}; both must be real floats")
        if not param.numel() == grad.numel() == numel:
            raise ValueError(
                f"params[{index}] has {param.numel()} elements, its gradient {grad.numel()}, items say {numel}"
            )
        if not is_dense(param):
            raise ValueError(f"params[{index}] has gaps in memory; pass a contiguous copy")
        if _real_strides(param) != _real_strides(grad):
            raise ValueError(f"grads[{index}] lies in memory in another order than its parameter")


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the dimensions."""
    if tensor.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted((st, si) for st, si in zip(tensor.stride(), tensor.shape, strict=True) if si != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _real_strides(tensor: Tensor) -> list[int]:
    if tensor.numel() == 0:
        return []
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


class Segments:
    """What a reference sees of one tensor of a bucket: flat values in the compute dtype, and the way back."""

    def __init__(
        self,
        param: Tensor,
        grad: Tensor,
        arenas: Sequence[Tensor | None],
        master: Tensor | None,
        row: Sequence[int],
        key: int | None,
    ) -> None:
        slot, offset, numel = row
        self.slot = int(slot)
        self.dtype = torch.float64 if param.dtype is torch.float64 else torch.float32
        self._param = flat(param)
        self._master = None if master is None else master[offset : offset + numel]
        self._arenas = [None if a is None else a[offset : offset + numel] for a in arenas]
        self._word = None if key is None else _rounding.rounding_word(key, numel, param.device)
        self.p = (self._param if self._master is None else self._master).to(self.dtype)
        self.g = flat(grad).to(self.dtype)
        self.states = [None if a is None else a.to(self.dtype) for a in self._arenas]

    def store_param(self, value: Tensor) -> None:
        if self._master is not None:
            self._master.copy_(value)
        _rounding.store(self._param, value, self._word if self._master is None else None, 0)

    def store_states(self, *values: Tensor | None) -> None:
        for stream, (arena, value) in enumerate(zip(self._arenas, values, strict=True), start=1):
            if arena is not None and value is not None:
                _rounding.store(arena, value, self._word, stream)


def gradient_scale(
    grad_scale: Tensor | None, clip: Tensor | None, maximize: bool, device: torch.device
) -> Tensor | float:
    """The factor on raw gradients: clip / grad_scale, negative for maximize."""
    factor: Tensor | float = -1.0 if maximize else 1.0
    if clip is not None:
        factor = factor * clip.to(device=device, dtype=torch.float32).reshape(())
    if grad_scale is not None:
        factor = factor / grad_scale.to(device=device, dtype=torch.float32).reshape(())
    return factor


def skipped(found_inf: Tensor | None) -> bool:
    """Whether a GradScaler saw an infinity: the step must then leave everything as it is."""
    return found_inf is not None and bool(found_inf.reshape(()) != 0)


def write_stats(stats: Tensor, slot: int, g: Tensor | None, u: Tensor | None, p: Tensor | None) -> None:
    """Writes the sums that this pass knows into the tensor's row; an unknown operand leaves its columns."""
    pairs = ((g, g), (g, u), (u, u), (p, p))
    for column, (a, b) in enumerate(pairs):
        if a is not None and b is not None:
            stats[slot, column] = torch.dot(a.double(), b.double())


def sample_bucket(
    numels: Sequence[int], states: int, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Layout]:
    """Random tensors, gradients and positive state arenas for tests."""
    generator = torch.Generator().manual_seed(seed)

    def draw(numel: int) -> Tensor:
        return torch.randn(numel, generator=generator)

    params = [draw(n).to(device, dtype) for n in numels]
    grads = [draw(n).to(device, dtype) for n in numels]
    layout = make_layout(numels, device)
    arenas = [draw(layout.arena_size).square().to(device) for _ in range(states)]
    return params, grads, arenas, layout
