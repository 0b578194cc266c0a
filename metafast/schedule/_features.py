"""What a controller sees: numbers that mean the same for every size of model, loss and batch.

A unit is whatever has a rate of its own: everything, a group or a tensor. Its statistics are the sums that a fused step
returns, of one step at the end of an interval: with the gradient g, the direction u of the step before, and the
parameters p. All functions take leading dimensions, for many trainings at once; loss features have no unit dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = (
    "update",  # log(lr |u| / |p|) of the unit: how far a step moves it, against its size
    "update of all",
    "reach",  # log(lr |g| |u| / loss): the most that a step can change the loss, against the loss
    "alignment",  # cos(g, u) of the unit: whether the step before went far enough
    "alignment of all",
    "gradient",  # log |g| against its own average
    "trend",  # of the loss, against the interval before
    "slow trend",  # fast against slow average
    "level",  # how much of the first loss is gone
    "noise",  # spread of the losses inside the interval
    "progress",  # share of the training that is done, 0 where its length is not known
    "left",  # log of the share that is left, 0 where the length is not known
    "open end",  # 1 where the length is not known
    "age",  # log of the number of intervals
    "last change",
)
_TYPICAL_UPDATE = 1e-3  # where "update" is 0
UPDATE_UNIT = 3.0  # of the natural logarithm, in one unit of "update"
LEFT_UNIT = 1.5
_TYPICAL_REACH = 2e-2
_RMS_FLOOR = 1e-2  # a tensor of zeros (a bias, a norm's shift) counts as if its elements had this size
_LIMIT = 3.0

State = dict[str, Tensor]


def first_state(units: int, lead: tuple[int, ...] = (), device: torch.device | str = "cpu") -> State:
    """What `observe` remembers, before the first interval. Losses and counts float32 `[*lead]`, others `[*lead, U]`."""

    def filled(value: float, *shape: int) -> Tensor:
        return torch.full((*lead, *shape), value, device=device)

    nan = math.nan
    return {
        "intervals": filled(0.0),
        "first": filled(nan),
        "last": filled(nan),
        "fast": filled(nan),
        "slow": filled(nan),
        "gradient": filled(nan, units),
        "change": filled(0.0, units),
    }


@dataclass(frozen=True)
class Units:
    """What has a rate of its own.

    Args:
        segments: int64 `[parameters]`, the unit of each parameter.
        numels: float64 `[parameters]`, their elements.
        count: U.
    """

    segments: Tensor
    numels: Tensor
    count: int

    def pool(self, table: Tensor) -> Tensor:
        """Sums `[..., U, K]` of the rows `[..., parameters, K]` of each unit."""
        sums = table.new_zeros(*table.shape[:-2], self.count, table.shape[-1])
        return sums.index_add_(-2, self.segments, table)


def observe(
    state: State,
    units: Units,
    table: Tensor,
    rates: Tensor,
    mean: Tensor,
    spread: Tensor,
    progress: Tensor,
) -> tuple[Tensor, State]:
    """Features of every unit at the end of an interval.

    Args:
        state: from `first_state` or the last call.
        units: which parameters belong to which unit.
        table: `[..., parameters, 4]`, g·g, g·u, u·u, p·p of each; NaN where not known.
        rates: `[..., parameters]`, the rate of the last step of each.
        mean: `[...]`, mean loss of the interval.
        spread: `[...]`, standard deviation of its losses.
        progress: `[...]`, share of the training that is done; NaN where its length is not known.

    Returns:
        (features float32 `[..., U, F]`, the new state). Nothing in them is NaN or beyond 3, whatever came in.
    """
    gg, gu, uu, pp = (table[..., k].double() for k in range(4))
    uu = torch.where(uu.isfinite(), uu, gg)  # plain SGD keeps no direction: it is the gradient
    size = torch.maximum(pp, units.numels * _RMS_FLOOR**2)
    sums = units.pool(torch.stack([gg, gu, uu, uu * rates.double().square(), size], -1))
    gg, gu, uu, moved, size = sums.unbind(-1)
    every = [x.sum(-1, keepdim=True).expand_as(x) for x in sums.unbind(-1)]
    norm = 0.5 * gg.clamp(min=1e-60).log().float()
    norm = torch.where(norm.isfinite(), norm, state["gradient"])

    finite = mean.isfinite()
    new: State = {"intervals": state["intervals"] + 1}
    new["first"] = _kept(state["first"], mean, 0.0, finite)
    new["last"] = _kept(state["last"], mean, 1.0, finite)
    new["fast"] = _kept(state["fast"], mean, 0.5, finite)
    new["slow"] = _kept(state["slow"], mean, 0.1, finite)
    new["gradient"] = _kept(state["gradient"], norm, 0.3, norm.isfinite())
    new["change"] = state["change"]

    open_end = progress.isnan()
    loss = {
        "trend": 4.0 * _relative(new["last"], state["last"]),
        "slow trend": 4.0 * _relative(new["fast"], new["slow"]),
        "level": -_relative(new["slow"], new["first"]),
        "noise": 2.0 * spread / (mean.abs() + spread + 1e-12),
        "progress": torch.where(open_end, 0.0, 2.0 * progress - 1.0),
        "left": torch.where(open_end, 0.0, (1.0 - progress).clamp(min=0.02).log() / LEFT_UNIT),
        "open end": open_end.to(mean.dtype),
        "age": new["intervals"].add(1).log() / 2.0 - 1.0,
    }
    columns = {
        "update": _update(moved, size),
        "update of all": _update(every[3], every[4]),
        "reach": _reach(every[0], every[3], new["slow"]),
        "alignment": 2.0 * cosine(gg, gu, uu),
        "alignment of all": 2.0 * cosine(*every[:3]),
        "gradient": norm - state["gradient"],
        "last change": state["change"],
        **{name: value.unsqueeze(-1).expand_as(norm) for name, value in loss.items()},
    }
    features = torch.stack([columns[name].float() for name in NAMES], -1)
    return features.nan_to_num(0.0, _LIMIT, -_LIMIT).clamp(-_LIMIT, _LIMIT), new


def _update(moved: Tensor, size: Tensor) -> Tensor:
    ratio = (moved / size).sqrt()
    return (ratio.clamp(min=1e-12) / _TYPICAL_UPDATE).log().float() / UPDATE_UNIT


def _reach(gg: Tensor, moved: Tensor, loss: Tensor) -> Tensor:
    """As in Polyak's rule, where a step is as long as the loss is high: it tells flat places, where large updates of
    the weights change nothing, from others."""
    reach = (gg * moved).sqrt() / loss.double().abs().unsqueeze(-1).clamp(min=1e-30)
    return (reach.clamp(min=1e-12) / _TYPICAL_REACH).log().float() / UPDATE_UNIT


def cosine(gg: Tensor, gu: Tensor, uu: Tensor) -> Tensor:
    """cos(g, u) from the sums; 0 where either is zero."""
    return gu / (gg * uu).sqrt().clamp(min=1e-60)


def _kept(old: Tensor, value: Tensor, share: float, finite: Tensor) -> Tensor:
    """An average that begins with its first value and leaves out what is not finite."""
    moved = torch.where(old.isnan(), value, old + share * (value - old))
    return torch.where(finite, moved, old)


def _relative(value: Tensor, other: Tensor) -> Tensor:
    return (value - other) / (other.abs() + 1e-12)
