"""Which trainings there are, what the grid chooses of them, and the rows that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from metafast.experiments._running import Row
from metafast.experiments.lr_adaptation._methods import METHODS, own_rate
from metafast.experiments.lr_adaptation._recipes import RATES, SWEEP, Recipe, Setup
from metafast.experiments.lr_adaptation._train import Training

SWEPT = ("fixed", "controller")
_CHOSEN = {"grid": "fixed", "cosine_tuned": "cosine"}  # what is trained with the rate that the grid chooses


@dataclass(frozen=True)
class Plan:
    """The trainings of one recipe.

    Args:
        recipe: what to train.
        names: the pairs of it.
        seed: of what is held out, of the grid, and the first of the trainings.
        seeds: trainings of each method.
        device: "cpu" or "cuda".
        missing: methods that cannot be run here, and why.
        left_out: pairs of the recipe that cannot be, and why.
    """

    recipe: Recipe
    names: tuple[str, ...]
    seed: int = 0
    seeds: int = 3
    device: str = "cpu"
    missing: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> list[str]:
        """Pairs on which methods are compared."""
        return [name for name in self.names if name not in SWEEP]

    @property
    def swept(self) -> list[str]:
        """Pairs on which starting rates are."""
        return [name for name in self.names if name in SWEEP]

    @property
    def methods(self) -> list[str]:
        """Those that can be run."""
        return [method for method in METHODS if method not in self.missing]

    def setup(self, name: str) -> Setup:
        """Settings of a pair."""
        return self.recipe.setups[name]

    def training(self, name: str, method: str, rate: float | None = None, seed: int = 0) -> Training:
        """One training; `seed` counts from the plan's."""
        rate = own_rate(method) if rate is None else rate
        return Training(self.setup(name), method, rate, self.seed + seed, self.seed, self.device)

    def grid(self, name: str) -> list[Training]:
        """The trials of the grid."""
        return [self.training(name, "fixed", rate) for rate in RATES]

    def adaptation(self, name: str) -> Training:
        """What makes the adapted controller."""
        return self.training(name, "adaptation")

    def layers(self, name: str) -> Training:
        """The first seed of the controller with a rate for each tensor, for the heat map."""
        return self.training(name, "layers")

    def sweep(self, name: str, method: str) -> dict[float, list[Training]]:
        """Starting rate to trainings, one per seed."""
        return {rate: [self.training(name, method, rate, seed) for seed in range(self.seeds)] for rate in RATES}

    def first(self, done: Mapping[str, Row]) -> list[Training]:
        """All trainings that can be listed before any is done; each once."""
        wanted = []
        for name in self.compared:
            wanted += self.grid(name)
            own = [method for method in self.methods if method not in (*_CHOSEN, "adapted")]
            # seed by seed, so that what else the machine does falls on all methods
            wanted += [self.training(name, method, seed=seed) for seed in range(self.seeds) for method in own]
            wanted.append(self.adaptation(name))
        for name in self.swept:
            wanted += [each for method in SWEPT for row in self.sweep(name, method).values() for each in row]
        return _once(wanted)

    def second(self, done: Mapping[str, Row]) -> list[Training]:
        """What the grid has chosen, and what the adapted controllers train; not what is in `done` (name to row)."""
        wanted = [each for name in self.compared for method in self.methods for each in self.result(name, method, done)]
        return [each for each in _once(wanted) if each.name not in done]

    def best_rate(self, name: str, done: Mapping[str, Row]) -> float:
        """The grid's choice, on validation data."""
        return max(self.grid(name), key=lambda trial: _number(done[trial.name]["val_accuracy"])).rate

    def result(self, name: str, method: str, done: Mapping[str, Row]) -> list[Training]:
        """The trainings that stand for a method, one per seed."""
        if method in _CHOSEN:
            return self._seeded(name, _CHOSEN[method], self.best_rate(name, done))
        return self._seeded(name, method)

    def rows(self, done: Mapping[str, Row]) -> list[Row]:
        """A row per pair, method and seed, with the CPU seconds of all that led to it."""
        made = []
        for name in self.compared:
            for method in self.methods:
                search = 0.0
                if method in _CHOSEN:
                    search = sum(done[trial.name]["seconds"] for trial in self.grid(name))
                elif method == "adapted":
                    search = done[self.adaptation(name).name]["seconds"]
                for training in self.result(name, method, done):
                    row = done[training.name]
                    made.append({**row, "method": method, "training": training.name, "search_seconds": search})
        return made

    def sweep_rows(self, done: Mapping[str, Row]) -> list[Row]:
        """A row per pair, method, starting rate and seed."""
        return [
            {**done[training.name], "training": training.name}
            for name in self.swept
            for method in SWEPT
            for row in self.sweep(name, method).values()
            for training in row
        ]

    def _seeded(self, name: str, method: str, rate: float | None = None) -> list[Training]:
        return [self.training(name, method, rate, seed) for seed in range(self.seeds)]


def _once(trainings: list[Training]) -> list[Training]:
    return list({training.name: training for training in trainings}.values())


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
