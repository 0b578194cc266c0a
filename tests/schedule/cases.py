"""A small problem that the tests of schedule share."""

from __future__ import annotations

import torch
from torch import nn

import metafast
from metafast.data import Samples
from metafast.schedule import LRController, Task


def problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.randn(64, 6), torch.randint(3, (64,))


def train(make, steps, controller=None, start=0, model=None, opt=None, scheduler=None, **attach):
    """Trains the problem's model for some steps, or goes on with a model and optimizer."""
    fresh, x, y = problem()
    model = fresh if model is None else model
    if opt is None:
        opt = make(model.parameters())
        if controller is not None:
            controller.attach(opt, **attach)
    schedule = None if scheduler is None else scheduler(opt)
    for step in range(start, start + steps):
        rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()
        if controller is not None:
            controller.step(loss)
        if schedule is not None:
            schedule.step()
    return model, opt


def task(name: str = "toy", optimizer: str = "adam", steps: int = 40, seed: int = 0) -> Task:
    """Three classes that a linear rule tells apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(160, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)

    def model(number: int) -> nn.Module:
        return metafast.models.MLP(6, (8,), 3, seed=number)

    return Task(name, model, Samples(x[:128], y[:128]), Samples(x[128:], y[128:]), 16, steps, optimizer)


def controller(**changes) -> LRController:
    """The shipped one, or one that wants updates of another size."""
    made = LRController.load()
    for name, value in changes.items():
        setattr(made.learned, name, value)
    return made
