"""Data parallelism: every process sees its own batches, and all see the means of what these say."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metafast._collectives import together


class Parallel:
    """The processes of a `DistributedDataParallel` model, or of a group; one process for any other model.

    The tuner differentiates by `torch.autograd.grad`, which the hooks of DDP do not see. So the wrapper's own
    reduction is off while the tuner computes, and gradients, Hessian-vector products and validation gradients, all
    linear in the losses, are averaged here. A group is given where a trainer has averaged the training gradients.
    """

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        self.wrapped = model if isinstance(model, DistributedDataParallel) else None
        self.group: Any = model.process_group if isinstance(model, DistributedDataParallel) else group
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.size = 1 if self.group is None else dist.get_world_size(self.group)

    def local(self) -> contextlib.AbstractContextManager[Any]:
        """For losses that are computed through the wrapper: it leaves reductions to the tuner."""
        return contextlib.nullcontext() if self.wrapped is None else self.wrapped.no_sync()

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The means over processes; None where no process has a tensor, and counted as zero where some have one.

        Args:
            tensors: one for each of `like`, or None.
            like: tensors whose shapes, dtypes and devices they have.
        """
        if self.size == 1:
            return list(tensors)
        filled = [torch.zeros_like(x) if tensor is None else tensor for tensor, x in zip(tensors, like, strict=True)]
        there = torch.tensor([float(tensor is not None) for tensor in tensors], device=like[0].device)
        *sums, counts = together([*filled, there], lambda flat: dist.all_reduce(flat, group=self.group))
        return [total / self.size if count else None for total, count in zip(sums, counts.tolist(), strict=True)]

    @torch.no_grad()
    def share_buffers(self) -> None:
        """What the wrapper does before a forward pass where its reduction is on: rank 0's buffers are everybody's."""
        if self.wrapped is None or self.size == 1 or not self.wrapped.broadcast_buffers:
            return
        buffers = list(self.model.buffers())
        source = dist.get_global_rank(self.group, 0)
        shared = together(buffers, lambda flat: dist.broadcast(flat, source, group=self.group))
        for buffer, value in zip(buffers, shared, strict=True):
            buffer.copy_(value)
