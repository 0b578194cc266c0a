"""What the layers of the fused optimizer share: its fields, what a rule says of itself, and how an op is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ._buckets import Bucket, Call
from ._history import RateHistory

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class FusedBase(torch.optim.Optimizer):
    """The ground of `LearnedRates`, `Checkpoints` and `FusedOptimizer`, which build on each other in this order."""

    _ops: tuple[str, str]  # (one pass, hypergradient passes)
    _exact_applies_moments: bool  # whether OBSERVE has already moved the states
    _hyper_lr: float  # default of the rules that use the cosine
    _additive_hyper_lr: float

    def _reset(self, max_grad_norm: float | None, seed: int) -> None:
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.last_grad_norm: Tensor | None = None
        self._buckets: dict[int, list[Bucket]] = {}  # by group index
        self._bucketed: dict[int, set[int]] = {}  # ids of the parameters in them
        self._members: dict[int, list[Tensor]] = {}  # the parameters that a group had at the last step
        self._global_rate: Tensor | None = None
        self._factors: Tensor | None = None
        self._history = RateHistory()
        self._steps = 0
        self._kernels: dict[tuple[str, str, str | None], ops.Kernel] = {}

    # ---- what a subclass says

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises for options that this rule does not take."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """The arenas of a group: name and dtype."""
        raise NotImplementedError

    def _states(self, bucket: Bucket) -> tuple[Tensor | None, ...]:
        """The arenas in the order of the op's schema."""
        raise NotImplementedError

    def _options(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The op's options that come after lr_scale."""
        raise NotImplementedError

    def _previous_known(self, group: dict[str, Any]) -> bool:
        """Whether the rule's states tell the previous direction."""
        return True

    def _first_updates(
        self, group: dict[str, Any], call: Call, grad_scale: Tensor | None, clip: Tensor | None
    ) -> Tensor:
        """Squared norms of the directions of a first step, float64 `[slots]`."""
        raise NotImplementedError

    # ---- ops

    def _kernel(self, name: str, bucket: Bucket, backend: str | None) -> ops.Kernel:
        if bucket.dtype is torch.float64:
            backend = "reference"  # the fused kernels compute in fp32
        key = (name, bucket.device.type, backend)
        if key not in self._kernels:
            self._kernels[key] = ops.resolve(*key)
        return self._kernels[key]

    def _squares(self, group: dict[str, Any], call: Call, of: str) -> Tensor:
        """Σ x² (of "grads" or "params") of each slot's tensor, over all shards; 0 for the slots without a gradient."""
        bucket, layout = call.bucket, call.layout
        squares = torch.zeros(len(bucket), dtype=torch.float64, device=bucket.device)
        kernel = self._kernel("grad_squares", bucket, None if group["backend"] == "triton" else group["backend"])
        explained(lambda: kernel(getattr(call, of), squares, layout.partials, layout.items, layout.chunks), call)
        return reduced(squares, bucket)


def explained(run: Callable[[], None], call: Call) -> None:
    """Runs an op, which checks before it writes. Where it refuses, says what is wrong in the user's words, or gives
    gradients that lie differently in memory their parameters' strides and runs it again."""
    try:
        run()
    except (RuntimeError, ValueError, TypeError):
        call.explain()
        if all(p.stride() == g.stride() for p, g in zip(call.params, call.grads, strict=True)):
            raise
        call.match_strides()
        run()


def on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return tensor if tensor is None or tensor.device == device else tensor.to(device, non_blocking=True)


def reduced(rows: Tensor, bucket: Bucket) -> Tensor:
    """Sums over the shards of a DTensor; other tensors are whole already."""
    if not bucket.is_sharded:
        return rows
    mesh, placements = bucket.sharding
    rows = rows.clone()
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            torch.distributed.all_reduce(rows, group=mesh.get_group(dim))
    return rows
