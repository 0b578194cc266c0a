"""The meta-data set as tasks: read from its run records, or from the one file that they are packed into."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from metafast._files import Kind
from metafast.hpo._collect import DONE, FEATURES, grid
from metafast.hpo._grid_tasks import GRID, POINTS
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask
from metafast.runs import Run

KIND = Kind(
    "metafast.hpo.tasks",
    1,
    "collected tasks",
    where="`metafast hpo collect` makes them",
    maker="metafast hpo collect",
    anew="collect them anew with `metafast hpo collect`",
)
KINDS = ("val", "test")
ABOUT = ("dataset", "metric", "direction", "reference", "epochs", "examples")


def load_tasks(path: str | os.PathLike[str], scores: str = "val") -> list[MetaTask]:
    """The tasks of a collected meta-data set, in order of their names.

    Args:
        path: folder that `metafast hpo collect` made (tasks whose grid is not whole are left out), or the file
            tasks.safetensors in it.
        scores: "val": learning curves on validation data; "test": scores on test data at the end, curves of one point.

    Returns:
        One `MetaTask` for each, 486 configurations in the order of the grid.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an unknown kind of scores, or a file of something else.

    Example:
        >>> load_tasks("no such folder")
        Traceback (most recent call last):
        ...
        FileNotFoundError: path 'no such folder' does not exist; `metafast hpo collect` makes one
    """
    if scores not in KINDS:
        raise ValueError(f"scores must be one of {KINDS}, got {scores!r}")
    where = Path(path)
    if not where.exists():
        raise FileNotFoundError(f"path {str(path)!r} does not exist; `metafast hpo collect` makes one")
    found = _from_file(where) if where.is_file() else _from_records(where)
    return [_task(name, *found[name], scores) for name in sorted(found)]


def pack_tasks(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> int:
    """Packs the whole tasks of a collected folder into one file; returns how many there are.

    Args:
        folder: that `metafast hpo collect` made.
        file: where to write, such as tasks.safetensors.

    Raises:
        ValueError: no task is whole.
    """
    found = _from_records(Path(folder))
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no task whose grid is whole")
    arrays = {f"{name}.{key}": value for name, (_, values) in found.items() for key, value in values.items()}
    about = {"grid": GRID, "tasks": {name: meta for name, (meta, _) in found.items()}}
    KIND.write(save_file, arrays, about, file)
    return len(found)


Found = tuple[dict[str, Any], dict[str, np.ndarray]]


def _from_file(file: Path) -> dict[str, Found]:
    about, arrays = KIND.read(file, "np")
    if about["grid"] != GRID:
        raise ValueError(f"{file} is of another grid, {about['grid']}; {KIND.anew}")
    found: dict[str, Found] = {}
    for name, meta in about["tasks"].items():
        found[name] = meta, {key: arrays[f"{name}.{key}"] for key in ("curves", "test", "seconds")}
    return found


def _from_records(root: Path) -> dict[str, Found]:
    order = {_key(config): row for row, config in enumerate(grid())}
    found: dict[str, Found] = {}
    by_task: defaultdict[str, list[Run]] = defaultdict(list)
    for folder in sorted(root.glob("*/*/run.jsonl")):
        run = Run.open(folder.parent)
        if run.status == "finished" and "task" in run.config:
            by_task[run.config["task"]].append(run)
    for name, runs in by_task.items():
        curves = np.full((len(order), POINTS), np.nan, np.float32)
        test, seconds = np.full(len(order), np.nan, np.float32), np.full(len(order), np.nan, np.float32)
        seen = set()
        for row in (row for run in runs for row in run.rows()):
            if row["kind"] != "note" or row["text"] != DONE:
                continue
            data = row["data"]
            place = order[_key(data["config"])]
            seen.add(place)
            curves[place] = [math.nan if value is None else value for value in data["scores"]]
            test[place] = math.nan if data["test_score"] is None else data["test_score"]
            seconds[place] = data["seconds"]
        if len(seen) < len(order):
            continue
        meta = {key: runs[0].config[key] for key in ABOUT}
        features = runs[0].path.parent / FEATURES
        meta["features"] = json.loads(features.read_text(encoding="utf-8")) if features.exists() else {}
        found[name] = meta, {"curves": curves, "test": test, "seconds": seconds}
    return found


def _task(name: str, meta: dict[str, Any], arrays: dict[str, np.ndarray], scores: str) -> MetaTask:
    curves = arrays["curves"] if scores == "val" else arrays["test"][:, None]
    points = curves.shape[1]
    return MetaTask(
        name=name,
        dataset=meta["dataset"],
        space=Space(GRID),
        configs=grid(),
        curves=curves.astype(np.float64),
        fractions=np.arange(1, points + 1) / points,
        seconds=arrays["seconds"].astype(np.float64),
        metric=meta["metric"],
        direction=meta["direction"],
        reference=meta["reference"],
        features=meta["features"],
    )


def _key(config: Config) -> tuple[Any, ...]:
    return tuple(config[name] for name in GRID)
