"""What a predictor knows: the tasks that were searched, each brought to one scale, in families that share a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metafast.hpo._encode import Axis, axes_of, distances, encode, matern
from metafast.hpo._scores import Scores, tame
from metafast.hpo._types import MetaTask

POINTS = 8  # of a learning curve that are kept
_LEAST = 1e-9


@dataclass(frozen=True)
class Known:
    """A task, as it is remembered.

    Args:
        name: of the task.
        dataset: of the data set.
        scores: how its metric is read.
        centre: mean of its final values, as the model sees scores.
        spread: their standard deviation.
        curves: float32 `[N, F]`, (value - centre) / spread.
        fractions: `[F]`.
        costs: float32 `[N]`, log seconds without their mean; NaN: not known.
        reference: like `curves`, of a predictor that has learned nothing; NaN: not known.
        cost: mean of the log seconds; NaN: not known.
        features: of data set and architecture.
    """

    name: str
    dataset: str
    scores: Scores
    centre: float
    spread: float
    curves: np.ndarray
    fractions: np.ndarray
    costs: np.ndarray
    reference: float
    cost: float
    features: Mapping[str, float]


@dataclass
class Family:
    """Tasks whose configurations are the same.

    Args:
        axes: of the hyperparameters, by canonical name.
        codes: `[N, H]`, the configurations.
        tasks: what was measured.
    """

    axes: dict[str, Axis]
    codes: np.ndarray
    tasks: list[Known] = field(default_factory=list)
    _solved: dict[tuple[tuple[str, ...], float, float], np.ndarray] = field(default_factory=dict, repr=False)
    _recent: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def same(self, other: Family) -> bool:
        """Whether another has the same configurations."""
        axes = list(self.axes.items()) == list(other.axes.items())
        return axes and np.array_equal(self.codes, other.codes, equal_nan=True)

    def shared(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that have an axis here."""
        asked = set(names)
        return tuple(name for name in self.axes if name in asked)

    def weights(
        self, names: tuple[str, ...], points: np.ndarray, length: float, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """How the table's values make up those at other points, by a Gaussian process on the shared hyperparameters.

        Args:
            names: the shared ones.
            points: `[M, len(names)]`, codes of these.
            length: of the kernel.
            noise: variance.

        Returns:
            (weights `[M, N]`, the variance `[M]` that remains).
        """
        columns = [list(self.axes).index(name) for name in names]
        axes = [self.axes[name] for name in names]
        key = (names, length, noise)
        if key not in self._solved:
            table = self.codes[:, columns]
            kernel = matern(distances(axes, table, table), length)
            self._solved[key] = np.linalg.inv(kernel + noise * np.eye(len(table)))
        asked = (*key, points.tobytes())
        if asked not in self._recent:  # one suggestion asks several times for the same points
            across = matern(distances(axes, points, self.codes[:, columns]), length)
            weights = across @ self._solved[key]
            self._recent.clear()
            self._recent[asked] = weights, np.maximum(1 - (weights * across).sum(1), 0.0)
        return self._recent[asked]


def remember(task: MetaTask) -> Known:
    """A task as it is remembered."""
    scores = Scores.of(task.metric, task.direction, task.curves.ravel())
    values = scores.inward(task.curves)
    nothing = math.nan if task.reference is None else float(scores.inward(np.array(task.reference)))
    values = tame(values, None if math.isnan(nothing) else nothing)
    final = values[:, -1]
    centre, spread = float(final.mean()), max(float(final.std()), _LEAST)
    keep = _kept(len(task.fractions))
    seconds = np.where(task.seconds > 0, task.seconds, math.nan)
    known = np.isfinite(seconds)
    logs = np.log(np.where(known, seconds, 1.0))
    cost = float(logs[known].mean()) if known.any() else math.nan
    return Known(
        task.name,
        task.dataset,
        scores,
        centre,
        spread,
        ((values[:, keep] - centre) / spread).astype(np.float32),
        task.fractions[keep],
        np.where(known, logs - cost, math.nan).astype(np.float32),
        (nothing - centre) / spread,
        cost,
        dict(task.features),
    )


def families_of(tasks: Sequence[MetaTask]) -> list[Family]:
    """Tasks in families, in order."""
    found: list[Family] = []
    for task in tasks:
        axes = axes_of(task.space)
        made = Family(axes, encode(axes, task.configs))
        family = next((other for other in found if other.same(made)), made)
        if family is made:
            found.append(made)
        family.tasks.append(remember(task))
    return found


def at(known: Known, weights: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """`[M]`, a task's value at M points: configurations by their weights `[M, N]` on the table, each at a fraction."""
    columns = weights @ known.curves.astype(np.float64)
    logs, wanted = np.log(known.fractions), np.log(fractions)
    if len(logs) == 1:
        return columns[:, 0]
    right = np.clip(np.searchsorted(logs, wanted), 1, len(logs) - 1)
    share = np.clip((wanted - logs[right - 1]) / (logs[right] - logs[right - 1]), 0.0, 1.0)
    rows = np.arange(len(weights))
    mixed: np.ndarray = (1 - share) * columns[rows, right - 1] + share * columns[rows, right]
    return mixed


def _kept(points: int) -> np.ndarray:
    return np.unique(np.linspace(0, points - 1, min(points, POINTS)).round().astype(int))
