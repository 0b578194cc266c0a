"""The three experiments: their data, model, optimizer, what can be tuned, and what is measured."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.data import forecast_splits, load_series, seasonal_naive
from metafast.experiments._data import Sizes, picture_splits, text_rows
from metafast.experiments.online_tuning._recipes import Setup, Values
from metafast.metrics import accuracy, macro_f1
from metafast.models import BertClassifier, LSTMForecaster, ResNet18

SEASON = 24  # hours of a day


class Part(NamedTuple):
    """Examples."""

    inputs: Tensor
    targets: Tensor


class Parts(NamedTuple):
    """Learn on `train`, tune and choose on `val`, report on `test`, once."""

    train: Part
    val: Part
    test: Part


@dataclass
class Built:
    """What a training needs, and what of it can be tuned."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tune: Sequence[str]
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None


class Task(ABC):
    """One experiment.

    Attributes:
        title: for people.
        metrics: names of what is measured, the one that decides first.
        better: "higher" or "lower", of all of them.
    """

    title: str
    metrics: tuple[str, ...]
    better: str

    @abstractmethod
    def load(self, setup: Setup, seed: int) -> Parts:
        """The data; `seed` decides what is held out."""

    @abstractmethod
    def build(self, setup: Setup, values: Values, seed: int) -> Built:
        """Model and optimizer with these hyperparameters."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is trained on."""

    def look(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the tuner lowers on validation data; the model is in evaluation mode."""
        return self.loss(model(inputs), targets)

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Values:
        """Each of `metrics`."""

    def reference(self, part: Part) -> Values | None:
        """What needs no training reaches, where there is such a thing."""
        return None


class Classification(Task):
    """Cross-entropy, accuracy and F1, in percent."""

    metrics = ("accuracy", "f1")
    better = "higher"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Values:
        """Accuracy and macro F1 in percent."""
        return {"accuracy": 100 * accuracy(outputs, targets), "f1": 100 * macro_f1(outputs, targets)}


class Pictures(Classification):
    """ResNet-18 on CIFAR-10, with SGD."""

    title = "ResNet-18 on CIFAR-10"

    def load(self, setup: Setup, seed: int) -> Parts:
        """Pictures, each channel scaled to mean 0 and variance 1 over the training part."""
        return Parts(*(Part(*part) for part in picture_splits(setup.data, _sizes(setup), seed)))

    def build(self, setup: Setup, values: Values, seed: int) -> Built:
        """Rate, momentum and weight decay of SGD are tuned."""
        model = ResNet18(3, 10, **setup.model, seed=seed)
        opt = torch.optim.SGD(
            model.parameters(), lr=values["lr"], momentum=values["momentum"], weight_decay=values["weight_decay"]
        )
        return Built(model, opt, ["lr", "momentum", "weight_decay"])

    def look(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """With statistics of the batch: running ones lag behind weights that move."""
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return self.loss(model(inputs), targets)


class Texts(Classification):
    """BERT on IMDB, with AdamW and warm-up."""

    title = "BERT on IMDB"

    def load(self, setup: Setup, seed: int) -> Parts:
        """Texts as token numbers of the model's own tokenizer."""
        encoder = _bert(setup, 0)
        return Parts(*(Part(encoder.encode(x), y) for x, y in text_rows(setup.data, _sizes(setup), seed)))

    def build(self, setup: Setup, values: Values, seed: int) -> Built:
        """Rate (below the warm-up's multiplier) and weight decay of AdamW are tuned."""
        model = _bert(setup, seed)
        opt = torch.optim.AdamW(model.parameters(), lr=values["lr"], weight_decay=values["weight_decay"])
        warmup = max(1, setup.warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, functools.partial(_warm, warmup))
        return Built(model, opt, ["lr", "weight_decay"], scheduler)


class Loads(Task):
    """LSTM on hourly electricity loads, with Adam; in standard deviations of each series."""

    title = "LSTM on electricity load"
    metrics = ("mae", "rmse")
    better = "lower"

    def load(self, setup: Setup, seed: int) -> Parts:
        """Windows of each series, split by time."""
        sizes = {key: setup.model[key] for key in ("length", "horizon", "stride")}
        splits = ["ETTh1"] if setup.data == "ett" else None
        parts = forecast_splits(load_series(setup.data, splits), **sizes)
        limits = (setup.train, setup.val, setup.test)
        return Parts(*(_thinned(Part(*part), most) for part, most in zip(parts, limits, strict=True)))

    def build(self, setup: Setup, values: Values, seed: int) -> Built:
        """The rate of Adam is tuned; the effect of dropout shows too late for a short window (see `metafast.tune`)."""
        model = LSTMForecaster(
            setup.model["horizon"], hidden=setup.model["hidden"], dropout=values["dropout"], seed=seed
        )
        return Built(model, torch.optim.Adam(model.parameters(), lr=values["lr"]), ["lr"])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Values:
        """MAE and RMSE."""
        error = (outputs - targets).double()
        return {"mae": float(error.abs().mean()), "rmse": math.sqrt(float(error.square().mean()))}

    def reference(self, part: Part) -> Values:
        """The forecast that repeats the last day."""
        return self.score(seasonal_naive(part.inputs, part.targets.shape[1], SEASON), part.targets)


TASKS: dict[str, Task] = {"resnet18": Pictures(), "bert": Texts(), "lstm": Loads()}


def _sizes(setup: Setup) -> Sizes:
    return Sizes(setup.train, setup.val, setup.test)


def _thinned(part: Part, most: int | None) -> Part:
    """At most so many windows, evenly spread."""
    if most is None or most >= len(part.inputs):
        return part
    at = torch.linspace(0, len(part.inputs) - 1, most).long()
    return Part(part.inputs[at], part.targets[at])


def _bert(setup: Setup, seed: int) -> BertClassifier:
    return BertClassifier(2, **setup.model, seed=seed)


def _warm(warmup: int, step: int) -> float:
    return min(1.0, (step + 1) / warmup)
