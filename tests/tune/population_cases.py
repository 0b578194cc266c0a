"""Trainings that worker processes can import, and a search played through without training anything."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from metafast.tune.population import Leg, Member
from metafast.tune.population._search import Search

LINE = torch.linspace(-1, 1, 16)[:, None]


def train(member: Member) -> None:
    """A line is fitted; the rate is searched, and noise depends on the leg's seed."""
    model = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=member.config["rate"], momentum=0.5)
    member.restore(model, opt)
    begins = model.weight.item()
    for _ in member.steps:
        x = LINE[torch.randperm(16)[: member.config.get("batch_size", 4)]]
        opt.zero_grad()
        (model(x) - 3 * x).square().mean().backward()
        opt.step()
    with torch.no_grad():
        member.report(member.stop, (model(LINE) - 3 * LINE).square().mean(), begins=begins)
    member.save(model, opt)


def train_with_accidents(member: Member) -> None:
    """Member 2 says NaN in its second leg; member 1 dies in its last one if it is a process, and raises elsewhere."""
    if member.id == 1 and member.start == 8:
        if multiprocessing.parent_process() is not None:
            os._exit(7)
        raise RuntimeError("an accident")
    if member.id == 2 and member.start == 4:
        member.restore(*objects())
        member.report(member.stop, math.nan)
    train(member)


def objects() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """What `train` saves."""
    model = torch.nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)


def play(search: Search, value: Callable[[Leg, float], float], steps: int, seed: int = 0, free: int = 1) -> list[Leg]:
    """The legs of a search whose values are `value(leg, value before)`, `free` at a time; NaN is a failure."""
    done: list[Leg] = []
    ends: dict[tuple[int, int], float] = {}
    while legs := search.todo(done, [], free, steps, seed):
        for leg in legs:
            own = leg.member if leg.source is None else leg.source
            end = value(leg, ends.get((own, leg.start), 0.0))
            ends[leg.member, leg.stop] = end
            failed = math.isnan(end)
            done.append(replace(leg, value=None if failed else end, error="ValueError: no" if failed else None))
    return done
