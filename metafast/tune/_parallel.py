"""Data parallelism: every process sees its own batches, and all see the means of what these say."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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
        found: list[Tensor | None] = [None] * len(like)
        for members in by_storage(like):
            parts = [like[i].new_zeros(like[i].shape) if tensors[i] is None else tensors[i] for i in members]
            there = torch.tensor([float(tensors[i] is not None) for i in members])
            flat = torch.cat([there.to(parts[0]), *(part.reshape(-1) for part in parts if part is not None)])
            dist.all_reduce(flat, group=self.group)
            counts, values = flat[: len(members)].tolist(), flat[len(members) :] / self.size
            pieces = values.split([like[i].numel() for i in members])
            for i, count, piece in zip(members, counts, pieces, strict=True):
                found[i] = piece.view(like[i].shape) if count else None
        return found

    def mean_of(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor that every process has."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
            tensor /= self.size
        return tensor

    @torch.no_grad()
    def share_buffers(self) -> None:
        """What the wrapper does before a forward pass where its reduction is on: rank 0's buffers are everybody's."""
        if self.wrapped is None or self.size == 1 or not self.wrapped.broadcast_buffers:
            return
        buffers = list(self.model.buffers())
        source = dist.get_global_rank(self.group, 0)
        for members in by_storage(buffers):
            flat = torch.cat([buffers[i].reshape(-1) for i in members])
            dist.broadcast(flat, source, group=self.group)
            for i, piece in zip(members, flat.split([buffers[i].numel() for i in members]), strict=True):
                buffers[i].copy_(piece.view(buffers[i].shape))


def by_storage(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the tensors that share a dtype and a device."""
    found: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((tensor.dtype, tensor.device), []).append(i)
    return list(found.values())
