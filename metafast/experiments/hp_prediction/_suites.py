"""Suites of searched tasks: what `metafast hpo collect` made, TaskSet, the SVM set, and a made-up one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metafast.experiments.hp_prediction._tables import Table
from metafast.hpo import MetaTask, Space

TITLES = {
    "collected": "collected tasks",
    "taskset": "TaskSet Adam8p",
    "svm": "SVMs on 40 data sets",
    "made": "made-up tasks",
}
_read: dict[tuple[str, Path | None], list[Table]] = {}  # the searches of a process share their tables


@dataclass(frozen=True)
class Fold:
    """What is left out together.

    Args:
        suite: name.
        name: of the fold.
        datasets: that are left out.
        targets: names of the tasks that are searched: of those data sets.
    """

    suite: str
    name: str
    datasets: tuple[str, ...]
    targets: tuple[str, ...]


def tables(suite: str, path: Path | None) -> list[Table]:
    """The tables of a suite, read once in a process.

    Args:
        suite: one of `TITLES`.
        path: folder of the collected tasks.

    Raises:
        FileNotFoundError: it is not there.
        ImportError: a package that reads it is missing.
    """
    key = (suite, path if suite == "collected" else None)
    if key not in _read:
        _read[key] = READERS[suite](path)
    return _read[key]


def folds(suite: str, path: Path | None, count: int | None, most: int | None) -> list[Fold]:
    """Each data set on its own, or in so many groups.

    Args:
        suite: one of `TITLES`.
        path: folder of the collected tasks.
        count: groups; None: one per data set.
        most: tasks that are searched, evenly from all data sets; None: all.
    """
    known = tables(suite, path)
    datasets = list(dict.fromkeys(table.task.dataset for table in known))
    groups = [[name] for name in datasets] if count is None else [datasets[i::count] for i in range(count)]
    names = [table.task.name for table in known]
    chosen = set(names if most is None or most >= len(names) else names[:: -(-len(names) // most)])
    made = []
    for number, group in enumerate(group for group in groups if group):
        targets = tuple(t.task.name for t in known if t.task.dataset in group and t.task.name in chosen)
        if targets:
            made.append(Fold(suite, group[0] if count is None else f"group{number}", tuple(group), targets))
    return made


def split(fold: Fold, path: Path | None) -> tuple[list[Table], list[Table]]:
    """Tables of the targets of a fold, and of all tasks of other data sets."""
    known = tables(fold.suite, path)
    targets = [table for table in known if table.task.name in fold.targets]
    return targets, [table for table in known if table.task.dataset not in fold.datasets]


def digest(known: Sequence[Table]) -> str:
    """Of all that is in them."""
    made = hashlib.sha256()
    for table in known:
        made.update(f"{table.task.name} {table.task.dataset} {len(table.merit)}".encode())
        made.update(np.ascontiguousarray(table.task.curves).tobytes())
    return made.hexdigest()[:16]


def _collected(path: Path | None) -> list[Table]:
    from metafast.hpo import load_tasks
    from metafast.hpo._grid_tasks import grid_tasks

    if path is None or not path.exists():
        raise FileNotFoundError(
            f"there are no collected tasks in {path}: metafast hpo collect makes them; name their folder with --table"
        )
    tests = {task.name: task.final for task in load_tasks(path, scores="test")}
    epochs = {task.name: float(task.epochs) for task in grid_tasks()}
    return [Table(task, "collected", tests.get(task.name), epochs.get(task.name)) for task in load_tasks(path)]


def _taskset(path: Path | None) -> list[Table]:
    from metafast.hpo import taskset_tasks

    tests = {task.name: task.final for task in taskset_tasks(scores="test")}
    return [Table(task, "taskset", tests[task.name]) for task in taskset_tasks()]


def _svm(path: Path | None) -> list[Table]:
    from metafast.hpo import svm_tasks

    return [Table(task, "svm") for task in svm_tasks()]


def made(datasets: int = 4, each: int = 2) -> list[Table]:
    """A few tasks whose best rates lie near each other: quick to search, for a look at the command."""
    space = Space(lr=[1e-4, 1e-3, 1e-2, 1e-1], width=[16, 64, 256], optimizer=["sgd", "adam"])
    configs = space.grid()
    found = []
    for number in range(datasets * each):
        rng = np.random.default_rng(number)
        center, width = rng.normal(0.6, 0.1), rng.uniform(0.2, 0.5)
        units = [space.units(config) for config in configs]
        shift = np.array([0.25 * (config["optimizer"] == "adam") for config in configs])
        rate = np.array([unit["lr"] for unit in units]) + shift - center
        size = np.array([unit["width"] for unit in units])
        end = (
            0.2 + 0.7 * np.exp(-((rate / 0.35) ** 2)) * (1 - width * (1 - size) ** 2) + rng.normal(0, 0.01, len(units))
        )
        fractions = np.array([0.25, 0.5, 1.0])
        curves = 0.1 + (end[:, None] - 0.1) * (1 - 0.6 * np.exp(-4 * fractions)[None])
        curves[rate > 0.5] = math.nan
        seconds = np.array([2.0 + 4.0 * unit["width"] for unit in units])
        name, about = f"made{number // each}", {"difficulty": float(center)}
        task = MetaTask(
            f"{name}/{number % each}", name, space, configs, curves, fractions, seconds, reference=0.1, features=about
        )
        found.append(Table(task, "made", curves[:, -1] - 0.01, epochs=4.0))
    return found


READERS: dict[str, Callable[[Path | None], list[Any]]] = {
    "collected": _collected,
    "taskset": _taskset,
    "svm": _svm,
    "made": lambda path: made(),
}
