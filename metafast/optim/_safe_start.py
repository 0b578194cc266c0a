"""A safe start: before its first step, a learned rate is kept below a fraction of the size of the weights it moves.

A rate that starts far too large wrecks the weights in its first steps, before any rule can act. The first update of a
tensor has the size rate * |u|, with |u| known before the step: sqrt(numel) for Adam, |g| / (1 - momentum) at most for
SGD. So with r = |p| / |u| of every weight matrix,

    rate <= safe_start * min r

Vectors (biases, norms' scales) and tensors of zeros say nothing about a good rate and have no part in the minimum,
unless there is nothing else. The minimum over tensors, not the norm of all: an embedding's rows of N(0, 1) would lift
the bound of a small layer behind it (benchmarks/convergence).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._buckets import Bucket


@dataclass
class Start:
    """A bucket before the first step of its rate.

    Attributes:
        group: the parameter group.
        bucket: its parameters.
        sizes: float64 `[slots]`, squared norms of the parameters; 0 for one without a gradient.
        updates: float64 `[slots]`, squared norms of the first directions.
        ratio: the group's rate divided by the learned rate.
    """

    group: dict[str, Any]
    bucket: Bucket
    sizes: Tensor
    updates: Tensor
    ratio: float = 1.0

    def ratios(self, *, matrices: bool) -> Tensor:
        """|p| / |u| of the matrices or of the other tensors, infinite where it says nothing."""
        ratio = (self.sizes / self.updates).sqrt() / self.ratio
        wanted = torch.tensor([(p.dim() >= 2) == matrices for p in self.bucket.params], device=ratio.device)
        return torch.where(wanted & ratio.isfinite() & (ratio > 0), ratio, torch.inf)


def _least(starts: list[Start], device: torch.device) -> Tensor:
    """The smallest ratio of matrices, or of vectors where there is no matrix."""
    matrices, vectors = (
        torch.stack([s.ratios(matrices=which).min().to(device) for s in starts]).min() for which in (True, False)
    )
    return torch.where(matrices.isfinite(), matrices, vectors)


def limit_rates(starts: list[Start]) -> None:
    """Lowers the starting rates that are not safe, without waiting for the device."""
    by_rate: dict[int, list[Start]] = {}
    for start in starts:
        shared = start.bucket.rate if start.group["hypergrad"] in ("group", "global") else None
        by_rate.setdefault(id(start.group) if shared is None else id(shared), []).append(start)
    for members in by_rate.values():
        safe = members[0].group["safe_start"]
        if safe is None:
            continue
        device = members[0].bucket.device
        least = _least(members, device)
        least = torch.where(least.isfinite(), least, _least(starts, device))
        for start in members:
            lowest = float(start.group["lr_bounds"][0])
            own = start.ratios(matrices=True)
            caps = torch.where(own.isfinite(), own, least.to(own.device)) if _own_rates(start) else least.reshape(1)
            _apply(start.bucket, (safe * caps).clamp(min=lowest))


def _own_rates(start: Start) -> bool:
    return start.group["hypergrad"] in ("tensor", "element")


def _apply(bucket: Bucket, caps: Tensor) -> None:
    if bucket.rate is not None:
        bucket.rate.copy_(torch.minimum(bucket.rate, caps.to(bucket.rate)))
        return
    for slot in range(len(bucket)):
        rates = bucket.view(bucket.states["rate"], slot)
        rates.copy_(torch.minimum(rates, caps[slot].to(rates)))
