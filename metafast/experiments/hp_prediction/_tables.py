"""Tables that searches are replayed on: every configuration of a task with its score, read so that higher is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from metafast.hpo import MetaTask, Space

Array = np.ndarray[Any, Any]
NEAR = 0.05  # of the best score


@dataclass(frozen=True)
class Table:
    """A task, and what each configuration is worth.

    Args:
        task: as it was collected.
        suite: name of the suite that it belongs to.
        test: `[N]`, test scores of the ends; None: the table has none.
        epochs: of a whole training; None: not known.
    """

    task: MetaTask
    suite: str
    test: Array | None = None
    epochs: float | None = None

    @cached_property
    def merit(self) -> Array:
        """`[N]`, higher is better: a failed or diverged training is worth what knowing nothing is worth."""
        return self._merits(self.task.final)

    @cached_property
    def best(self) -> float:
        """The highest merit: what the grid finds."""
        return float(self.merit.max())

    @cached_property
    def regret(self) -> Array:
        """`[N]`, from 0 (the grid's best) to 1 (the worst)."""
        width = self.best - float(self.merit.min())
        found: Array = (self.best - self.merit) / (width if width > 0 else 1.0)
        return found

    @cached_property
    def near(self) -> Array:
        """`[N]`, whether a score is within 5 % of the grid's best."""
        found: Array = self.merit >= self.best - NEAR * abs(self.best)
        return found

    @cached_property
    def seconds(self) -> Array:
        """`[N]`; 1 for every training where nothing is known."""
        known = np.isfinite(self.task.seconds)
        usual = float(np.median(self.task.seconds[known])) if known.any() else 1.0
        return np.where(known, self.task.seconds, usual)

    @property
    def timed(self) -> bool:
        """Whether seconds are known."""
        return bool(np.isfinite(self.task.seconds).any())

    @cached_property
    def place(self) -> dict[Any, int]:
        """Key of a configuration to its row."""
        return {self.task.space.key(config): row for row, config in enumerate(self.task.configs)}

    @cached_property
    def codes(self) -> Array:
        """`[N, H]` in [0, 1]."""
        return encoded(self.task.space, self.task.configs)

    def score(self, merit: float) -> float:
        """The metric itself."""
        return merit if self.task.direction == "maximize" else -merit

    def test_of(self, row: int) -> float:
        """Test score of a configuration; NaN where there is none."""
        return math.nan if self.test is None else float(self.test[row])

    def _merits(self, scores: Array) -> Array:
        up = self.task.direction == "maximize"
        merits = np.where(np.isfinite(scores), scores if up else -scores, np.nan)
        reference = self.task.reference
        if reference is None:
            lowest = float(np.nanmin(merits)) if np.isfinite(merits).any() else 0.0
            return np.nan_to_num(merits, nan=lowest)
        floor = reference if up else -reference
        return np.maximum(np.nan_to_num(merits, nan=floor), floor)


def encoded(space: Space, configs: Sequence[Mapping[str, Any]]) -> Array:
    """`[N, H]`: numbers by their place on their scale, names one column each; what is not there is 0.5, or 0."""
    numeric = {name: space.scales[name].numeric for name in space.dimensions}
    columns: list[Array] = []
    units = [space.units(config) for config in configs]
    for name, dimension in space.dimensions.items():
        if numeric[name]:
            columns.append(np.array([unit.get(name, 0.5) for unit in units]))
        else:
            values = range(dimension.count or 0)
            columns += [np.array([float(unit.get(name, -1.0) == value) for unit in units]) for value in values]
    for name in sorted({child for condition in space.conditions for child in condition.children}):
        if numeric[name]:
            columns.append(np.array([float(name in unit) for unit in units]))
    return np.stack(columns, 1)
