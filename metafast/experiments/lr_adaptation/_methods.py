"""What decides on the learning rate: an optimizer and what moves its rate, one class for each way."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast.experiments.lr_adaptation import _controller
from metafast.experiments.lr_adaptation._recipes import RATE
from metafast.optim import Adam

WARMUP = 0.05  # share of the steps
METHODS = {
    "fixed": "Adam at 0.001",
    "grid": "best of 7 fixed rates",
    "cosine": "warm-up and cosine from 0.001",
    "cosine_tuned": "warm-up and cosine from the best rate",
    "hypergradient": "hypergradient",
    "schedule_free": "schedule-free AdamW",
    "prodigy": "Prodigy",
    "controller": "controller",
    "layers": "controller, a rate for each tensor",
    "adapted": "adapted controller",
}
_PACKAGES = {"schedule_free": "schedulefree", "prodigy": "prodigyopt"}


@dataclass(frozen=True)
class Start:
    """What a driver begins with.

    Args:
        model: its parameters are trained.
        rate: where the rate starts.
        steps: of the training.
        inputs: training examples that statistics of batch norm may be measured on.
        controller: file of an adapted controller.
        per: what has a rate of its own, where a controller decides: "global" or "tensor".
    """

    model: nn.Module
    rate: float
    steps: int
    inputs: Tensor
    controller: Path | None = None
    per: str = "global"


class Driver:
    """Adam with a rate that stays.

    Args:
        start: what it begins with.

    Attributes:
        optimizer: makes the steps.
        stateful: what else a checkpoint has.
    """

    def __init__(self, start: Start) -> None:
        self.model, self.stateful = start.model, {}  # type: nn.Module, dict[str, Any]
        self.optimizer = self.make(start)

    def make(self, start: Start) -> torch.optim.Optimizer:
        """The optimizer."""
        return Adam(start.model.parameters(), lr=start.rate)

    def after_step(self, loss: Tensor) -> None:
        """Moves the rate."""

    def rates(self) -> list[float]:
        """Effective rates now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def labels(self) -> list[str]:
        """What each rate is of."""
        return [f"group {number}" for number in range(len(self.rates()))]

    def events(self) -> list[dict[str, Any]]:
        """What is to be told of its course."""
        return []

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """The model as it is to be evaluated."""
        self.model.eval()
        yield
        self.model.train()


class Cosine(Driver):
    """Up to the rate in a twentieth of the steps, then down to 0 by half a cosine."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, functools.partial(_warm_cosine, start.steps))
        self.stateful["schedule"] = self.schedule

    def after_step(self, loss: Tensor) -> None:
        """The rate of the next step."""
        self.schedule.step()


class Hypergradient(Driver):
    """Adam that moves one rate by its hypergradient."""

    optimizer: Adam

    def make(self, start: Start) -> torch.optim.Optimizer:
        """The optimizer."""
        return Adam(start.model.parameters(), lr=start.rate, hypergrad="global")

    def rates(self) -> list[float]:
        """Effective rates now."""
        return list(self.optimizer.learned_lr())


class ScheduleFree(Driver):
    """Schedule-free AdamW at its own rate, with a warm-up as its authors advise."""

    optimizer: Any

    def make(self, start: Start) -> torch.optim.Optimizer:
        """The optimizer."""
        from schedulefree import AdamWScheduleFree

        self.inputs = start.inputs
        opt = AdamWScheduleFree(start.model.parameters(), warmup_steps=_warmup(start.steps))
        opt.train()
        made: torch.optim.Optimizer = opt
        return made

    def rates(self) -> list[float]:
        """The rate after warm-up; the averaging that stands for a schedule is not in it."""
        return [float(group.get("scheduled_lr") or group["lr"]) for group in self.optimizer.param_groups]

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """With averaged weights, whose batch statistics are measured anew."""
        self.optimizer.eval()
        _measure_batch_norm(self.model, self.inputs)
        self.model.eval()
        yield
        self.model.train()
        self.optimizer.train()


class Prodigy(Driver):
    """Prodigy at its own rate of 1."""

    def make(self, start: Start) -> torch.optim.Optimizer:
        """The optimizer."""
        import prodigyopt

        made: torch.optim.Optimizer = prodigyopt.Prodigy(start.model.parameters())
        return made

    def rates(self) -> list[float]:
        """Effective rates now."""
        return [float(group["d"] * group["lr"]) for group in self.optimizer.param_groups]


class Controlled(Driver):
    """Adam under a controller."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.controller = _controller.load(start.controller or _controller.SHIPPED)
        self.controller.attach(
            self.optimizer, interval=_controller.INTERVAL, per=start.per, total_steps=start.steps, model=start.model
        )
        self.names = [name for name, _ in start.model.named_parameters()] if start.per == "tensor" else None
        self.stateful["controller"] = self.controller

    def after_step(self, loss: Tensor) -> None:
        """The controller's turn."""
        self.controller.step(loss)

    def rates(self) -> list[float]:
        """Effective rates now."""
        return [float(rate) for rate in self.controller.lr().values()]

    def labels(self) -> list[str]:
        """Names of parameters where each has a rate, else the controller's."""
        return self.names or [str(label) for label in self.controller.lr()]

    def events(self) -> list[dict[str, Any]]:
        """What its watchdog did."""
        return [{"step": int(event["step"]), "what": str(event["what"])} for event in self.controller.events]


DRIVERS: dict[str, Callable[[Start], Driver]] = {
    "fixed": Driver,
    "cosine": Cosine,
    "hypergradient": Hypergradient,
    "schedule_free": ScheduleFree,
    "prodigy": Prodigy,
    "controller": Controlled,
    "layers": Controlled,
    "adapted": Controlled,
}


def missing() -> dict[str, str]:
    """Methods that cannot be run here, and why."""
    return {
        method: f"{METHODS[method]} is left out: the package {package} is not installed (pip install 'metafast[bench]')"
        for method, package in _PACKAGES.items()
        if importlib.util.find_spec(package) is None
    }


def own_rate(method: str) -> float:
    """The rate that a method is told; those of other packages have their own."""
    return {"schedule_free": 0.0025, "prodigy": 1.0}.get(method, RATE)


def _warmup(steps: int) -> int:
    return max(1, round(WARMUP * steps))


def _warm_cosine(steps: int, step: int) -> float:
    up = _warmup(steps)
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - up) / max(1, steps - up))))


@torch.no_grad()
def _measure_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    """Running statistics of these weights: of other ones they are of no use."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for batch in inputs.split(256):
        model(batch)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
