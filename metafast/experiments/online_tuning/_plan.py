"""Which trainings there are, what the searches choose of them, and the rows that come of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metafast.experiments.online_tuning._recipes import FEEDBACK, Range, Recipe, Setup, Values
from metafast.experiments.online_tuning._tasks import TASKS
from metafast.experiments.online_tuning._train import Training

Row = dict[str, Any]
METHODS = {
    "static": "static",
    "batch": "adaptive, feedback by batches",
    "epoch": "adaptive, feedback by epochs",
    "random_equal": "random search, equal cost",
    "random": "random search, all trials",
    "grid_equal": "grid, equal cost",
    "grid": "grid, all cells",
}


@dataclass(frozen=True)
class Plan:
    """The trainings of one recipe.

    Args:
        recipe: what to train.
        names: the experiments of it.
        seed: of what is held out, of the searches, and the first of the trainings.
        seeds: trainings of the static and adaptive runs, and of what a search has chosen.
        device: "cpu" or "cuda".
    """

    recipe: Recipe
    names: tuple[str, ...]
    seed: int = 0
    seeds: int = 3
    device: str = "cpu"

    def training(self, name: str, values: Values, feedback: str | None = None, seed: int = 0) -> Training:
        """One training; `seed` counts from the plan's."""
        setup = self.recipe.setups[name]
        return Training(name, setup, values, feedback, self.seed + seed, self.seed, self.device)

    def own(self, name: str, feedback: str | None) -> list[Training]:
        """The static or an adaptive method, once per seed."""
        static = self.recipe.setups[name].static
        return [self.training(name, static, feedback, seed) for seed in range(self.seeds)]

    def search(self, name: str, method: str) -> list[Training]:
        """The trials of a search, in order; "random" or "grid"."""
        setup = self.recipe.setups[name]
        trials = draws(setup, self.recipe.trials, self.seed) if method == "random" else cells(setup)
        return [self.training(name, values) for values in trials]

    def first(self) -> list[Training]:
        """All trainings that can be listed before any is done; each once."""
        wanted = []
        for name in self.names:
            for feedback in (None, *FEEDBACK):
                wanted += self.own(name, feedback)
            wanted += self.search(name, "random") + self.search(name, "grid")
        return list({training.name: training for training in wanted}.values())

    def second(self, done: Mapping[str, Row]) -> list[Training]:
        """What the searches have chosen, with the other seeds; not what is in `done` (name to row)."""
        chosen = [t for name in self.names for method in METHODS for t in self.result(name, method, done)]
        return list({t.name: t for t in chosen if t.name not in done}.values())

    def tried(self, name: str, method: str, done: Mapping[str, Row]) -> list[Training]:
        """The trials that a search may choose from; none for what is no search."""
        kind, _, limit = method.partition("_")
        if kind not in ("random", "grid"):
            return []
        trials = self.search(name, kind)
        return trials[: self.affordable(name, done)] if limit else trials

    def affordable(self, name: str, done: Mapping[str, Row]) -> int:
        """Static trainings that one adaptive run pays for, rounded up."""
        costs = [done[self.own(name, feedback)[0].name]["gradients"] for feedback in (None, *FEEDBACK)]
        return math.ceil(max(costs[1:]) / costs[0])

    def result(self, name: str, method: str, done: Mapping[str, Row]) -> list[Training]:
        """The trainings that stand for a method, one per seed: for a search, of what did best on validation data."""
        trials = self.tried(name, method, done)
        if not trials:
            return self.own(name, None if method == "static" else method)
        best = trials[best_of(name, [done[t.name] for t in trials])]
        return [self.training(name, best.values, seed=seed) for seed in range(self.seeds)]

    def rows(self, done: Mapping[str, Row]) -> list[Row]:
        """A row per experiment, method and seed, with the cost of all that led to it."""
        made = []
        for name in self.names:
            for method in METHODS:
                trials = self.tried(name, method, done)
                for training in self.result(name, method, done):
                    row = done[training.name]
                    paid = [done[t.name] for t in trials] or [row]
                    made.append(
                        {
                            **row,
                            "method": method,
                            "training": training.name,
                            "trials": len(trials),
                            "gradients": sum(each["gradients"] for each in paid),
                            "seconds": sum(each["seconds"] for each in paid),
                        }
                    )
        return made

    def courses(self, name: str, method: str, done: Mapping[str, Row]) -> list[tuple[int, Row]]:
        """Gradients spent and the row of the best trial so far (by validation), after each trial of a search."""
        rows = [done[t.name] for t in self.search(name, method)]
        spent = np.cumsum([row["gradients"] for row in rows]).tolist()
        return [(cost, rows[best_of(name, rows[: count + 1])]) for count, cost in enumerate(spent)]


def best_of(name: str, rows: Sequence[Row]) -> int:
    """The position of the row that is best on validation data; the first of equals. NaN is worst."""
    task = TASKS[name]
    sign = 1 if task.better == "higher" else -1
    scores = [sign * row[f"val_{task.metrics[0]}"] for row in rows]
    return max(range(len(rows)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])


def draws(setup: Setup, count: int, seed: int) -> list[Values]:
    """Values of a random search, of four digits."""
    generator = np.random.default_rng(seed)
    return [
        {**setup.static, **{name: _drawn(space, generator.random()) for name, space in setup.space.items()}}
        for _ in range(count)
    ]


def cells(setup: Setup) -> list[Values]:
    """Values of the grid, in the order of the first places of each list."""
    order = sorted(
        itertools.product(*(range(len(values)) for values in setup.grid.values())),
        key=lambda place: (sum(place), place[::-1]),
    )
    return [
        {**setup.static, **{name: values[i] for (name, values), i in zip(setup.grid.items(), place, strict=True)}}
        for place in order
    ]


def _drawn(space: Range, share: float) -> float:
    low, high = space.low, space.high
    if space.scale == "log":
        value = low * (high / low) ** share
    elif space.scale == "log1m":
        value = 1 - (1 - low) * ((1 - high) / (1 - low)) ** share
    else:
        value = low + (high - low) * share
    return float(f"{value:.4g}")
