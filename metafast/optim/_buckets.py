"""Tensors of one group, device and dtype that a step op takes in one call, and the arenas that hold their states."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import Layout, make_layout
from ..ops._bucket import is_dense
from . import _checks

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment, misc]

_HUGE = 8 << 20  # bytes from which an arena asks for huge pages


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lives here: the tensor itself, or a DTensor's shard."""
    if DTensor is not None and isinstance(tensor, DTensor):
        shard: Tensor = tensor._local_tensor
        return shard
    return tensor


def placed_like(param: Tensor, grad: Tensor) -> Tensor:
    """A gradient with its parameter's placements; tensor parallelism leaves sums that are still to be made."""
    if sharding(grad) in ((), sharding(param)):
        return grad
    moved: Tensor = grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return moved


def sharding(param: Tensor) -> tuple[Any, ...]:
    """(mesh, placements) of a DTensor, or nothing."""
    if DTensor is not None and isinstance(param, DTensor):
        return (param.device_mesh, param.placements)
    return ()


def filled(numel: int, fill: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new arena; a large one on a Linux CPU lies in huge pages: 2 to 10 % of a step are TLB misses without them."""
    nbytes = numel * dtype.itemsize
    if device.type != "cpu" or nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.full((numel,), fill, dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # zeros
    memory.madvise(mmap.MADV_HUGEPAGE)
    arena = torch.frombuffer(memory, dtype=dtype, count=numel)
    return arena if fill == 0.0 else arena.fill_(fill)


@torch.enable_grad()
def accumulator(param: Tensor) -> object:
    """The autograd node that adds to a parameter's gradient: it owns the parameter, but not its storage."""
    node = param.expand_as(param).grad_fn
    return None if node is None else node.next_functions[0][0]


def bucket_key(param: Tensor) -> tuple[Any, ...]:
    """Parameters with equal keys go into one call."""
    shard = local(param)
    return (shard.device, shard.dtype, is_dense(shard), *sharding(param))


class Bucket:
    """Some parameters of a group, their layout, arenas and per-tensor rows.

    `states` maps a state's name to its arena; a parameter's entry in the optimizer's state is a view of the arenas with
    the parameter's own shape and strides, so that checkpoints have PyTorch's layout.
    """

    def __init__(self, params: Sequence[Tensor], index: int) -> None:
        self.params = list(params)
        self.index = index
        shards = [local(p) for p in self.params]
        first = shards[0]
        self.device, self.dtype = first.device, first.dtype
        self.dense = is_dense(first)
        self.sharding = sharding(self.params[0])
        self.is_sharded = bool(self.sharding)
        self.layout = make_layout([s.numel() for s in shards], self.device)
        self.offsets: list[int] = self.layout.items[:, 1].tolist()
        self.states: dict[str, Tensor] = {}
        self.hypergrad: str | None = None  # what has a rate of its own here
        self.first: dict[str, Any] = {}  # the first parameter's views, which tell when a user has put other states
        self.master: Tensor | None = None
        self.step = torch.zeros(len(shards), dtype=torch.float32, device=self.device)
        self.stats = torch.zeros(len(shards), 4, dtype=torch.float64, device=self.device)
        self.ones = torch.ones(1, dtype=torch.float64, device=self.device)  # the rate that a scale multiplies
        self.rate: Tensor | None = None  # learned rates of the slots, or the one they share
        self.segments: Tensor | None = None
        self.places: Tensor | None = None  # int64 `[slots]`, where each parameter stands among all of the optimizer
        self.starting = False  # before the first step of a new learned rate
        self._subsets: dict[tuple[int, ...], tuple[Layout, Tensor]] = {}
        # An owner in C++ for each parameter: a tensor that only Python owns takes and drops the GIL in every call.
        self._owners = [] if self.is_sharded else [accumulator(p) for p in self.params]
        # Only these can change their memory format without changing anything else that a step looks at.
        self._watched = [p for p in self.params if p.dim() >= 2]
        self._formats = self._current_formats()

    def __len__(self) -> int:
        return len(self.params)

    def arena(self, name: str, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
        """A new state arena."""
        dtype = torch.float64 if self.dtype is torch.float64 else dtype
        self.states[name] = filled(self.layout.arena_size, fill, dtype, self.device)
        return self.states[name]

    def view(self, arena: Tensor, slot: int) -> Tensor:
        """The part of an arena that belongs to a slot, with the parameter's shape (a DTensor for a DTensor)."""
        param = self.params[slot]
        shard = local(param)
        strides = shard.stride() if self.dense else torch.empty(shard.shape, device="meta").stride()
        part = arena.as_strided(shard.shape, strides, self.offsets[slot])
        if not self.is_sharded:
            return part
        mesh, placements = self.sharding
        whole: Tensor = DTensor.from_local(
            part, mesh, placements, run_check=False, shape=param.shape, stride=param.stride()
        )
        return whole

    def moved(self) -> bool:
        """Whether a parameter has changed its memory format since the arenas were laid out."""
        return self._current_formats() != self._formats

    def _current_formats(self) -> list[tuple[int, ...]] | None:
        """Strides, or None while all are contiguous: a thousand tuples a step would wake the garbage collector."""
        shards = list(map(local, self._watched)) if self.is_sharded else self._watched
        return None if all(map(torch.Tensor.is_contiguous, shards)) else list(map(torch.Tensor.stride, shards))

    def subset(self, active: Sequence[int]) -> tuple[Layout, Tensor]:
        """(layout, segments) of a call for the slots with a gradient; cached, because the same ones come again."""
        key = tuple(active)
        if key not in self._subsets:
            if len(self._subsets) > 64:
                self._subsets.clear()
            layout = self.layout.subset(active)
            mask = torch.full((len(self),), -1, dtype=torch.int64, device=self.device)
            mask[list(active)] = 0
            self._subsets[key] = (layout, mask)
        return self._subsets[key]


class Call:
    """What one step passes to the ops for a bucket: the tensors that have a gradient now, as flat memory."""

    def __init__(self, bucket: Bucket, grads: list[Any]) -> None:
        self.bucket = bucket
        self.params: list[Tensor] = bucket.params
        self.grads: list[Tensor] = grads
        self.layout = bucket.layout
        self.inactive: Tensor | None = None
        self._copies: list[tuple[Tensor, Tensor]] = []
        types = set(map(type, grads))
        if type(None) in types:
            active = [slot for slot, grad in enumerate(grads) if grad is not None]
            self.layout, self.inactive = bucket.subset(active)
            self.params = [bucket.params[slot] for slot in active]
            self.grads = [grads[slot] for slot in active]
        if bucket.is_sharded:
            self.grads = [local(placed_like(p, g)) for p, g in zip(self.params, self.grads, strict=True)]
            self.params = [local(p) for p in self.params]
        if not bucket.dense:
            self._copy_params()

    def _copy_params(self) -> None:
        """Parameters with gaps in memory take a detour over contiguous copies."""
        originals = self.params
        self.params = [p.detach().contiguous() for p in originals]
        self.grads = [g.contiguous() for g in self.grads]
        self._copies = list(zip(originals, self.params, strict=True))

    def check(self) -> None:
        """Raises for a tensor that the op would refuse."""
        layouts = {grad.layout for grad in self.grads}
        dtypes = {tensor.dtype for tensor in (*self.params, *self.grads)}
        numels = list(map(torch.Tensor.numel, self.params))
        if (
            layouts != {torch.strided}
            or any(
                dtype.is_complex or (dtype is torch.float64) != (self.bucket.dtype is torch.float64) for dtype in dtypes
            )
            or numels != self.layout.items[:, 2].tolist()
        ):
            self.explain()

    def explain(self) -> None:
        """Raises for a gradient or a parameter that no op takes, in the user's words."""
        for position, (param, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            _checks.gradient(position, param, grad)
            _checks.unchanged(position, param, self.bucket.dtype, int(self.layout.items[position, 2]))

    def match_strides(self) -> None:
        """Gives every gradient its parameter's strides."""
        self.grads = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for p, g in zip(self.params, self.grads, strict=True)
        ]

    def finish(self) -> None:
        """Brings copies back, and tells autograd that the parameters have changed."""
        for original, copy in self._copies:
            original.detach().copy_(copy)
        if not self._copies:
            torch.autograd.graph.increment_version(self.params)


def partition(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Parameters by bucket key, in order."""
    buckets: dict[tuple[Any, ...], list[Tensor]] = {}
    for param in params:
        buckets.setdefault(bucket_key(param), []).append(param)
    return list(buckets.values())
