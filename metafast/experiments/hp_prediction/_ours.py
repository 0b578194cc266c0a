"""The predictor, as a search over the candidates of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.experiments.hp_prediction._searchers import Beliefs, Searcher
from metafast.experiments.hp_prediction._tables import Table
from metafast.hpo import Observation

if TYPE_CHECKING:
    from metafast.hpo import Belief, Predictor

Array = np.ndarray[Any, Any]
SHORT = 0.25  # of the budget, at most, that a short run gets


class Predicted(Searcher):
    """What `metafast.hpo.Predictor` suggests.

    Args:
        table, sources, seed: as every search.
        predictor: that has not seen the task's data set.
        features: whether it is told the task's features.
        short: whether runs end early; then nothing that was run is known to its end.
        per_cost: whether what a run costs counts.

    A predictor whose portfolio never ends runs what it would begin with, whatever comes of it: what `Predictor.tune`
    does with its initial runs.
    """

    def __init__(
        self,
        table: Table,
        sources: Sequence[Table],
        seed: int,
        *,
        predictor: Predictor,
        features: bool = True,
        short: bool = False,
        per_cost: bool = False,
    ) -> None:
        super().__init__(table, sources, seed)
        task = table.task
        self.predictor, self.per_cost = predictor, per_cost
        early = [float(each) for each in task.fractions if each <= SHORT] or [float(task.fractions[0])]
        self.fraction = early[-1] if short else 1.0
        self.column = int(np.flatnonzero(task.fractions == self.fraction)[0])
        self.observed: list[Observation] = []
        self.about: dict[str, Any] = {
            "features": dict(task.features) if features else None,
            "metric": task.metric,
            "direction": task.direction,
            "reference": task.reference,
        }
        self._belief: Belief | None = None

    def ask(self) -> int:
        """What it suggests."""
        left = [self.table.task.configs[row] for row in self.untried()]
        found = self.predictor.suggest(
            self.table.task.space, self.observed, candidates=left, seed=self.seed, per_cost=self.per_cost, **self.about
        )
        return self.table.place[self.table.task.space.key(found.config)]

    def tell(self, row: int, merit: float) -> None:
        """An observation: the score as it was measured, at the end or before."""
        super().tell(row, merit)
        task, seconds = self.table.task, float(self.table.task.seconds[row])
        self.observed.append(
            Observation(
                task.configs[row],
                float(task.curves[row, self.column]),
                self.fraction,
                seconds * self.fraction if math.isfinite(seconds) else None,
            )
        )
        self._belief = None

    def recommend(self) -> int | None:
        """What it believes is best; before the first run, what it suggests to run first."""
        return int(self._beliefs().merit.argmax()) if self.tried else self.ask()

    def best_run(self) -> int | None:
        """Of runs that were cut short: the one that it believes would end best."""
        if self.fraction == 1.0 or not self.tried:
            return super().best_run()
        return self.tried[int(self._beliefs().merit[self.tried].argmax())]

    def belief(self) -> Beliefs | None:
        """In merits."""
        found = self._beliefs()
        up = self.table.task.direction == "maximize"
        low, high = (found.low, found.high) if up else (-found.high, -found.low)
        return Beliefs(found.merit, found.mean if up else -found.mean, found.std, low, high)

    def _beliefs(self) -> Belief:
        if self._belief is None:
            task = self.table.task
            self._belief = self.predictor.belief(task.space, task.configs, self.observed, **self.about)
        return self._belief
