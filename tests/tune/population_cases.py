"""Training functions that worker processes can import."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn import functional as F

from metafast.tune import Forward, OnlineTuner
from metafast.tune.population import Member

STEPS, INTERVAL = 24, 6


def line(member: Member) -> None:
    """A weight that grows by the configured speed at every step; the value is the weight."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    member.restore(weight)
    with torch.no_grad():
        for _ in member.steps:
            weight.weight += member.config["speed"]
    member.report(member.stop, weight.weight)
    member.save(weight)


def curve(member: Member) -> None:
    """The value depends on the configuration and the step alone."""
    model = nn.Linear(1, 1)
    member.restore(model)
    member.report(member.stop, member.config["loss"] + 1 / member.stop)
    member.save(model)


def fragile(member: Member) -> None:
    """Fails in one of several ways."""
    how = member.config["speed"]
    if how == 2:
        raise ValueError("no good")
    if how == 3:
        member.restore()
        member.report(member.stop, torch.nan)
    if how == 4:
        os._exit(3)  # as a process that the kernel kills
    line(member)


def digits(member: Member) -> None:
    """A network of searched depth on batches of searched size; its learning rate is tuned by hypergradients."""
    torch.manual_seed(member.id)
    layers = [nn.Linear(8, 8), nn.Tanh()] * member.config["layers"]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 8, generator=generator)
    y = (x[:, :3].sum(1) > 0).long()
    tuner = OnlineTuner(model, opt, "lr", [(x[64:], y[64:])], Forward(hvp=False, decay=0.9), 3)
    member.restore(model, opt, tuner=tuner)
    assert tuner.calls == member.start
    for _ in member.steps:
        rows = torch.randint(64, (member.config["batch_size"],))
        tuner.step(lambda x, y: F.cross_entropy(model(x), y), x[rows], y[rows])
    with torch.no_grad():
        member.report(member.stop, F.cross_entropy(model(x[64:]), y[64:]))
    member.save(model, opt, tuner=tuner, extras={"rate": opt.param_groups[0]["lr"]})
