"""The controller that is judged: where it comes from, what it has seen in meta-training, and how it adapts."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metafast.data import Splits
from metafast.experiments.lr_adaptation._pairs import MODELS, build_model
from metafast.experiments.lr_adaptation._recipes import RUNS, Setup

SHIPPED = "default"
INTERVAL = 10
FILE = "controller.safetensors"
NEVER = "never seen"


@dataclass(frozen=True)
class Seen:
    """What meta-training has seen of a pair.

    Args:
        data: whether its data set was learned from.
        model: whether models of its kind were.
        validation: whether its data set decided when to stop.
    """

    data: bool
    model: bool
    validation: bool

    @property
    def held_out(self) -> bool:
        """Neither data nor model."""
        return not (self.data or self.model)

    def __str__(self) -> str:
        told = [
            text
            for flag, text in (
                (self.data, "data seen in meta-training"),
                (self.model, "kind of model seen in meta-training"),
                (self.validation, "data seen in meta-validation"),
            )
            if flag
        ]
        return ", ".join(told) or NEVER


def load(file: str | Path = SHIPPED) -> Any:
    """A controller that is attached to nothing: the shipped one, or that of a file."""
    from metafast.schedule import LRController

    return LRController.load(file)


def adapt(setup: Setup, parts: Splits, seed: int) -> Any:
    """The shipped controller after a few runs on training and validation data."""
    from metafast.schedule import Task

    task = Task(
        setup.pair,
        model=functools.partial(build_model, setup),
        train=parts.train,
        val=parts.val,
        batch_size=setup.batch_size,
        steps=setup.steps,
        data=setup.data,
    )
    return load().adapt(task, steps=RUNS, seed=seed)


def seen(record: Mapping[str, Any], setup: Setup) -> Seen:
    """What the record of a controller says about a pair.

    Args:
        record: `LRController.record`.
        setup: the pair.
    """
    training, validation = record["meta_training"], record["meta_validation"]
    return Seen(
        _plain(setup.data) in map(_plain, training["data"]),
        _plain(MODELS[setup.model].kind.__name__) in map(_plain, training["models"]),
        _plain(setup.data) in map(_plain, validation["data"]),
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
