"""Which searches there are, and the rows that come of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from metafast._trainings import StoppedError
from metafast.experiments._running import Row, is_finished, open_record
from metafast.experiments.hp_prediction import _predictors
from metafast.experiments.hp_prediction._methods import METHODS
from metafast.experiments.hp_prediction._recipes import Recipe
from metafast.experiments.hp_prediction._replay import replay
from metafast.experiments.hp_prediction._suites import Fold, folds, split
from metafast.experiments.hp_prediction._tables import Table
from metafast.runs import Run

NOTE = "replayed"


@dataclass(frozen=True)
class Search:
    """The searches of one method on the tasks of a fold, with one seed; a record.

    Args:
        fold: what is left out, and searched.
        method: name in `METHODS`.
        seed: of the search.
        runs: of each search.
        table: folder of the collected tasks.
        tune: whether the predictor's settings are found for each fold.
    """

    fold: Fold
    method: str
    seed: int
    runs: int
    table: str | None = None
    tune: bool = False

    @property
    def name(self) -> str:
        """Folder name of its record."""
        fold = self.fold.name.removeprefix(f"{self.fold.suite}/").replace("/", "-")
        return f"{self.fold.suite}-{fold}-{self.method}-s{self.seed}"

    @property
    def steps(self) -> int:
        """Tasks."""
        return len(self.fold.targets)

    @property
    def path(self) -> Path | None:
        """Of the collected tasks."""
        return None if self.table is None else Path(self.table)


@dataclass(frozen=True)
class Plan:
    """The searches of one recipe.

    Args:
        recipe: what to search.
        names: its suites.
        seed: the first.
        seeds: of each method that draws; None: the recipe's.
        table: folder of the collected tasks.
        left_out: suites that cannot be read, and why.
        missing: methods that cannot be run, and why.
    """

    recipe: Recipe
    names: tuple[str, ...]
    seed: int = 0
    seeds: int | None = None
    table: Path | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def searches(self) -> list[Search]:
        """All of them, suite after suite."""
        made = []
        for suite in self.names:
            setup = self.recipe.suites[suite]
            for fold in folds(suite, self.table, setup.folds, setup.tasks):
                for method in self.methods(suite):
                    for number in range(self.recipe.seeds_of(method, self.seeds)):
                        table = None if suite != "collected" or self.table is None else str(self.table)
                        made.append(Search(fold, method, self.seed + number, self.recipe.runs, table, self.recipe.tune))
        return made

    def methods(self, suite: str) -> list[str]:
        """Of a suite, those that can be run."""
        without = {*self.recipe.suites[suite].without, *self.missing}
        return [method for method in METHODS if method not in without]

    def first(self, done: Mapping[str, Row]) -> list[Search]:
        """The one stage there is."""
        return self.searches

    def rows(self, done: Mapping[str, Row]) -> list[Row]:
        """A row per suite, method, task and seed."""
        return [row for search in self.searches for row in done[search.name]["rows"]]


def search(wanted: Search, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Do one to its end, from its record where there is one.

    Raises:
        StoppedError: `stop()` was true; what was done is kept.
    """
    folder = root / wanted.name
    if is_finished(folder):
        progress(wanted.steps)
        return
    targets, sources = split(wanted.fold, wanted.path)
    run, _ = open_record(folder, asdict(wanted), wanted.seed, "hp-prediction")
    with run:
        method = METHODS[wanted.method]
        predictor = (
            _predictors.without(wanted.fold, wanted.path, wanted.tune, **method.settings) if method.predicts else None
        )
        done = {row["task"] for row in _rows(run)}
        for number, table in enumerate(targets):
            if table.task.name not in done:
                row = replay(method.bound(predictor), table, sources, wanted.seed, wanted.runs)
                run.note(NOTE, row=json.dumps({**row, "method": wanted.method}))
                run.save(number + 1)
            progress(number + 1)
            if stop() and number + 1 < len(targets):
                run.close()
                raise StoppedError


def row_of(run: Run) -> Row:
    """What a finished record says."""
    return {"rows": _rows(run)}


def _rows(run: Run) -> list[Row]:
    return [json.loads(row["data"]["row"]) for row in run.rows() if row.get("text") == NOTE]


def facts(known: Sequence[Table]) -> Row:
    """What the report says about a suite."""
    sizes = sorted({len(table.merit) for table in known})
    epochs = [table.epochs for table in known if table.epochs is not None]
    return {
        "tasks": len(known),
        "datasets": len({table.task.dataset for table in known}),
        "configurations": sizes if len(sizes) > 1 else sizes[0],
        "metrics": sorted({table.task.metric for table in known}),
        "trainings": sum(len(table.merit) for table in known) / len(known),
        "epochs": sum(epochs) / len(epochs) if epochs else None,
        "grid_seconds": sum(float(table.seconds.sum()) for table in known) / len(known),
        "timed": all(table.timed for table in known),
        "tested": all(table.test is not None for table in known),
        "near": sum(float(table.near.mean()) for table in known) / len(known),
    }
