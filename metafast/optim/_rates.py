"""Learned rates: where they live, how a step's statistics move them, and what the user sees of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.hyper_adam import RULES
from ._base import FusedBase, on, reduced
from ._buckets import Bucket, Call, local
from ._history import flat_rates
from ._safe_start import Start, limit_rates


class LearnedRates(FusedBase):
    """The hypergradient side of an optimizer."""

    def _default_hyper_lr(self, group: dict[str, Any]) -> float:
        """Measured in benchmarks/convergence; for "additive" the papers' own."""
        if group["hyper_rule"] == "additive":
            return self._additive_hyper_lr
        if group["hypergrad"] == "element":
            return 0.02
        if group["hyper_rule"] == "sign" or group["hypergrad"] == "tensor":
            return 0.05
        return self._hyper_lr

    def _make_rates(self, group: dict[str, Any], bucket: Bucket) -> None:
        adapted = bucket.hypergrad = group["hypergrad"]
        if adapted is None:
            return
        start = float(group["_base_lr"])

        def rates(count: int) -> Tensor:
            return torch.full((count,), start, dtype=torch.float64, device=bucket.device)

        if adapted == "element":
            bucket.arena("rate", group["rate_dtype"], start)
            bucket.starting = True
            return
        if adapted == "tensor":
            bucket.rate = rates(len(bucket))
            bucket.segments = torch.arange(len(bucket), device=bucket.device)
            bucket.starting = True
            return
        bucket.segments = torch.zeros(len(bucket), dtype=torch.int64, device=bucket.device)
        if adapted == "group":
            position = next(i for i, g in enumerate(self.param_groups) if g is group)
            siblings = self._buckets.get(position, [])
            bucket.rate = siblings[0].rate if siblings else rates(1)
            bucket.starting = siblings[0].starting if siblings else True
            return
        others = [b for buckets in self._buckets.values() for b in buckets if b.rate is self._global_rate]
        if self._global_rate is None:
            self._global_rate = rates(1).fill_(self._global_base())
        bucket.rate = self._global_rate
        bucket.starting = all(other.starting for other in others)

    def _start_safely(
        self, starting: list[tuple[dict[str, Any], Call]], grad_scale: Tensor | None, clip: Tensor | None
    ) -> None:
        starts = []
        for group, call in starting:
            ratio = group["_base_lr"] / self._global_base() if group["hypergrad"] == "global" else 1.0
            sizes = self._squares(group, call, "params")
            updates = self._first_updates(group, call, grad_scale, clip)
            starts.append(Start(group, call.bucket, sizes, updates, ratio))
            call.bucket.starting = False
        limit_rates(starts)

    def _learn(self, calls: list[tuple[dict[str, Any], Call]], found_inf: Tensor | None) -> None:
        """Moves the learned rates by the statistics of this step's pass."""
        shared: dict[int, list[tuple[dict[str, Any], Call]]] = {}
        for group, call in calls:
            adapted = group["hypergrad"]
            if adapted == "tensor":
                self._update_rate(call.bucket.rate, [(group, call)], found_inf)
            elif adapted in ("group", "global"):
                shared.setdefault(id(call.bucket.rate), []).append((group, call))
        for members in shared.values():
            self._update_rate(members[0][1].bucket.rate, members, found_inf)

    def _update_rate(
        self, rate: Tensor | None, members: list[tuple[dict[str, Any], Call]], found_inf: Tensor | None
    ) -> None:
        assert rate is not None
        group, first = members[0]
        stats = [reduced(call.bucket.stats, call.bucket) for _, call in members]
        segments = [_segments(group, call) for group, call in members]
        if group["hypergrad"] == "global" and len({g["_base_lr"] for g, _ in members}) > 1:
            # The step of a group is the shared rate times its ratio: so is its part of the hypergradient.
            for position, (member, _) in enumerate(members):
                ratio = member["_base_lr"] / self._global_base()
                stats[position] = stats[position] * stats[position].new_tensor([1.0, ratio, ratio * ratio, 1.0])
        if len(members) > 1:
            stats = [torch.cat([s.to(rate.device) for s in stats])]
            segments = [torch.cat([s.to(rate.device) for s in segments])]
        kernel = self._kernel("hyper_rate", first.bucket, None)
        kernel(
            rate,
            stats[0],
            segments[0],
            on(found_inf, rate.device),
            RULES.index(group["hyper_rule"]),
            float(group["hyper_lr"]),
            *map(float, group["lr_bounds"]),
        )

    def _effective_rate(self, group: dict[str, Any], bucket: Bucket) -> tuple[Tensor, float]:
        """(rates, factor): learned rates times what a scheduler made of the starting rate, or just the group's lr."""
        lr = group["lr"]
        learned = None if group["hypergrad"] in (None, "element") else bucket.rate
        base = 1.0 if group["hypergrad"] is None else group["_base_lr"]
        if group["hypergrad"] == "global":
            base = self._global_base()
        rates = bucket.ones if learned is None else learned
        if self._factors is not None:
            rates = rates * self._factors.to(bucket.device)[self._places(bucket)]
        if not isinstance(lr, Tensor):
            return rates, float(lr) / base
        return rates * lr.to(bucket.device, torch.float64).reshape(1), 1.0 / base

    def scale_rates(self, factors: Tensor | None) -> None:
        """Multiplies the rate of every parameter by a factor of its own, from the next step on.

        This is what `metafast.schedule` steers by: the factors may lie on the device, nothing waits for them, and the
        groups' `lr`, schedulers and checkpoints do not see them.

        Args:
            factors: float64 `[parameters]` in the order of the parameter groups, or None: no factors.

        Raises:
            TypeError: no tensor.
            ValueError: another number of factors.

        Example:
            >>> from metafast.optim import SGD
            >>> opt = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
            >>> opt.scale_rates(torch.tensor([0.5], dtype=torch.float64))
        """
        if factors is not None:
            if not isinstance(factors, Tensor):
                raise TypeError(f"factors must be a tensor or None, got {type(factors).__name__}")
            count = sum(len(group["params"]) for group in self.param_groups)
            if factors.shape != (count,):
                raise ValueError(f"factors must have one element per parameter, [{count}], got {list(factors.shape)}")
            factors = factors.detach().double()
        self._factors = factors

    def _places(self, bucket: Bucket) -> Tensor:
        if bucket.places is None:
            order = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            bucket.places = torch.tensor([order[id(p)] for p in bucket.params], device=bucket.device)
        return bucket.places

    def _rates(self) -> list[float | Tensor]:
        rates: list[float | Tensor] = []
        seen_global = False
        for index, group in enumerate(self.param_groups):
            buckets = self._buckets.get(index, [])
            adapted = group["hypergrad"]
            if adapted == "global":
                if not seen_global:
                    rates.append(self._global_base() if self._global_rate is None else self._global_rate)
                seen_global = True
            elif adapted is None or not buckets:
                rates.append(group["lr"] if adapted is None else group["_base_lr"])
            elif adapted == "group":
                assert buckets[0].rate is not None
                rates.append(buckets[0].rate)
            else:
                for bucket in buckets:
                    rates += [bucket.rate] if adapted == "tensor" and bucket.rate is not None else _means(group, bucket)
        return rates

    def _global_base(self) -> float:
        """The starting rate of the first group that shares the global rate."""
        return float(next(g["_base_lr"] for g in self.param_groups if g["hypergrad"] == "global"))

    def learned_lr(self) -> list[float]:
        """The learned rates now, before a scheduler's factor.

        Returns:
            One number for `hypergrad="global"`, one per group for `"group"` (and for None: the group's lr), one per
            parameter for `"tensor"`, and each parameter's mean for `"element"`; in the order of first gradients.
            With "element" and sharded parameters every rank has to call it, as for `tensor_stats`.
        """
        return flat_rates(self._rates())

    @property
    def lr_history(self) -> list[tuple[int, list[float]]]:
        """Learned rates over time, `[(step, rates), ...]`: at most 2,048 entries, evenly thinned."""
        return self._history.read()

    def tensor_stats(self) -> Tensor:
        """The sums that the last step computed in its own pass, without a synchronization.

        Returns:
            float64 `[parameters, 4]` on the first parameter's device: columns g·g, g·u, u·u, p·p with the gradient g
            that entered the update, the previous direction u, and the parameter p before the update. Rows are in the
            order of the parameter groups; NaN where a parameter had no step yet, where `metafast.tune` made the step,
            or where u is not known (SGD without momentum or with Nesterov momentum, unless a hypergradient keeps u).
        """
        rows = []
        for index, group in enumerate(self.param_groups):
            where = {id(p): (b, slot) for b in self._buckets.get(index, []) for slot, p in enumerate(b.params)}
            sums = {id(b): reduced(b.stats, b) for b in self._buckets.get(index, [])}
            for param in group["params"]:
                if id(param) not in where:
                    rows.append(torch.full((4,), float("nan"), dtype=torch.float64, device=local(param).device))
                    continue
                bucket, slot = where[id(param)]
                row = sums[id(bucket)][slot].clone()
                if not self._previous_known(group):
                    row[1:3] = float("nan")
                rows.append(row)
        device = rows[0].device
        return torch.stack([row.to(device) for row in rows])


def _segments(group: dict[str, Any], call: Call) -> Tensor:
    """The rate of each slot, -1 for one without a gradient in this step."""
    segments = call.bucket.segments
    assert segments is not None
    if call.inactive is None:
        return segments
    return torch.where(call.inactive < 0, call.inactive, segments)


def _means(group: dict[str, Any], bucket: Bucket) -> list[float | Tensor]:
    """The mean rate of each parameter, over all shards; an empty one has the starting rate."""
    rows = bucket.layout.items.tolist()
    sums = [bucket.states["rate"][at : at + numel].sum(dtype=torch.float64) for _, at, numel in rows]
    numels = torch.tensor([p.numel() for p in bucket.params], dtype=torch.float64, device=bucket.device)
    means = reduced(torch.stack(sums), bucket) / numels
    return [torch.where(numels > 0, means, float(group["_base_lr"]))]
