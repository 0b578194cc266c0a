"""The meta-data set: the grid trained on every task, one run record for each cell of equal architectures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metafast._page import write_text
from metafast._trainings import StoppedError, run_all
from metafast.experiments._running import is_finished
from metafast.hpo._batched import batched_train
from metafast.hpo._features import task_features
from metafast.hpo._features_model import architecture_features
from metafast.hpo._grid_tasks import GRID, POINTS, GridTask, grid_tasks, hub_tasks
from metafast.hpo._space import Space
from metafast.hpo._types import Config
from metafast.runs import Run

CELL = ("layers", "width", "batch_size")  # what configurations of one program have in common
DONE = "trained"
FEATURES = "features.json"


@dataclass(frozen=True)
class Cell:
    """Configurations of one task that are trained as one program.

    Args:
        task: name of the task.
        config: what they have in common.
        seed: of the trainings.
    """

    task: str
    config: Config
    seed: int

    @property
    def folder(self) -> Path:
        """Where its record is, below the root."""
        name = "-".join(f"{key}{self.config[key]}" for key in CELL)
        return Path(slug(self.task)) / name

    @property
    def configs(self) -> list[Config]:
        """Its configurations, in the order of the grid."""
        return [config for config in grid() if all(config[key] == self.config[key] for key in CELL)]


def grid() -> list[Config]:
    """All 486 configurations."""
    return Space(GRID).grid()


def cells(tasks: Sequence[GridTask], seed: int) -> list[Cell]:
    """What is to be trained: of every task the small architectures first."""
    shared = [dict(zip(CELL, values, strict=True)) for values in itertools.product(*(GRID[key] for key in CELL))]
    return [Cell(task.name, config, seed) for task in tasks for config in shared]


def collect(root: Path, tasks: Sequence[GridTask], seed: int, jobs: int, progress: Callable[[Cell, int], None]) -> None:
    """Trains what the folder lacks; interrupted or killed, the next call trains what is missing then.

    Args:
        root: folder of the records.
        tasks: what to train on.
        seed: of all trainings.
        jobs: processes.
        progress: called with (cell, 1) when one is done.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    missing = [cell for cell in cells(tasks, seed) if not is_finished(root / cell.folder)]
    run_all(missing, train_cell, root, jobs, progress)
    for task in tasks:
        file = root / slug(task.name) / FEATURES
        if not file.exists():
            write_text(file, json.dumps(features_of(task)) + "\n")


def features_of(task: GridTask) -> dict[str, float]:
    """What the predictor is told of a task: features of its data, and of the middle one of its architectures."""
    parts = task.parts()
    model = task.build(parts, {"layers": 3, "width": 128, "dropout": 0.3})
    return task_features(tuple(parts.train), modality=task.modality) | architecture_features(model)


def slug(name: str) -> str:
    """A task's folder name."""
    return name.replace("/", "-")


def train_cell(cell: Cell, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Trains a cell and records it; one that is interrupted begins again.

    Raises:
        StoppedError: `stop()` is true.
    """
    task = next(task for task in grid_tasks() + hub_tasks() if task.name == cell.task)
    folder = root / cell.folder
    parts = task.parts()
    config = {
        "task": task.name, "dataset": task.dataset, "metric": task.metric, "direction": task.direction,
        "reference": parts.reference, "epochs": task.epochs, "points": POINTS, "examples": len(parts.train.inputs),
        **cell.config,
    }  # fmt: skip
    if (folder / "run.jsonl").exists():
        run = Run.resume(folder)
        run.restore(rng=False)
    else:
        run = Run.create(folder.parent, name=folder.name, config=config, seed=cell.seed, tags=["hpo", "grid"], keep=1)

    def stopped(epoch: int, scores: np.ndarray) -> None:
        if stop():
            raise StoppedError

    with run:
        done = batched_train(
            lambda config: task.build(parts, config), cell.configs, parts.train, parts.val, epochs=task.epochs,
            loss=task.loss, metric=task.measure, test=parts.test, seed=cell.seed, on_epoch=stopped,
        )  # fmt: skip
        every = task.epochs // POINTS
        for row, own in enumerate(done.configs):
            run.note(
                DONE, config=own, scores=_plain(done.scores[row, every - 1 :: every]),
                test_score=_plain(done.test_scores[row : row + 1])[0], seconds=float(done.seconds[row]),
                failed=bool(done.failed[row]), engine=done.engines[row],
            )  # fmt: skip
    progress(1)


def _plain(values: np.ndarray) -> list[Any]:
    """Numbers that JSON holds; None: not finite."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]
