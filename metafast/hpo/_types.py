"""What the predictor is told and what it answers: observations, tasks searched before, beliefs, suggestions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from metafast.hpo._space import Space

Config = dict[str, Any]
DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Observation:
    """One score of one configuration: a row of a learning curve, or its end.

    Args:
        config: the hyperparameters.
        score: the metric as it came; NaN: the training failed or diverged, which is information too.
        fraction: of the whole budget at which it was measured, in (0, 1].
        seconds: what the training had cost until then; None: not known.
    """

    config: Config
    score: float
    fraction: float = 1.0
    seconds: float | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no finite score."""
        return not math.isfinite(self.score)


@dataclass(frozen=True)
class MetaTask:
    """A task whose space was searched: what predictors learn from and are judged on.

    Args:
        name: such as "mnist/cnn"; unique.
        dataset: what is left out as one when a predictor is judged, such as "mnist".
        space: the searched space.
        configs: N configurations.
        curves: float64 `[N, F]`, the metric at each fraction of the budget; NaN where a training had failed.
        fractions: float64 `[F]`, ascending, the last 1.
        seconds: float64 `[N]`, cost of each whole training; NaN: not known.
        metric: its name, such as "accuracy", "mse", "wer", "loss".
        direction: "maximize" or "minimize".
        reference: the score of a predictor that has learned nothing (the share of the largest class; the variance of
            the target); None: not known.
        features: of data set and architecture, by name.
    """

    name: str
    dataset: str
    space: Space
    configs: list[Config]
    curves: np.ndarray
    fractions: np.ndarray
    seconds: np.ndarray
    metric: str = "accuracy"
    direction: str = "maximize"
    reference: float | None = None
    features: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, points = len(self.configs), len(self.fractions)
        if self.curves.shape != (count, points):
            raise ValueError(f"curves must be [{count}, {points}], got {list(self.curves.shape)} in task {self.name!r}")
        if self.seconds.shape != (count,):
            raise ValueError(f"seconds must be [{count}], got {list(self.seconds.shape)} in task {self.name!r}")
        if points == 0 or self.fractions[-1] != 1.0 or (np.diff(self.fractions) <= 0).any() or self.fractions[0] <= 0:
            raise ValueError(f"fractions must ascend within (0, 1] and end at 1, got {self.fractions.tolist()}")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {self.direction!r}")

    @property
    def final(self) -> np.ndarray:
        """`[N]`, the scores at the end; NaN where a training failed."""
        last: np.ndarray = self.curves[:, -1]
        return last


@dataclass(frozen=True)
class Belief:
    """Distributions of the scores of some configurations, and of what they cost.

    Args:
        mean: float64 `[N]`, of the metric itself.
        std: likewise.
        low: lower end of the 90 % interval.
        high: upper end.
        merit: higher is better in either direction: what candidates are ranked by.
        seconds: expected cost of a whole training; NaN: nothing is known about cost.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    merit: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Suggestion:
    """The configuration to try next, and why.

    Args:
        config: the hyperparameters.
        expected: its expected score.
        interval: 90 % interval of the score.
        seconds: expected cost; NaN: not known.
        source: "portfolio", "model", or the fallback's name ("gp", "tpe", "random").
        reason: one sentence.
    """

    config: Config
    expected: float
    interval: tuple[float, float]
    seconds: float
    source: str
    reason: str
