"""What experiments share: a folder for one setting, stages of trainings side by side, and records that go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from metafast._page import write_text
from metafast._trainings import Train, run_all
from metafast.runs import Restored, Run

SETTINGS = "settings.json"
Row = dict[str, Any]


class OtherSettingsError(ValueError):
    """The folder holds an experiment with other settings."""


class Named(Protocol):
    """A training."""

    @property
    def name(self) -> str:
        """Folder name of its record."""

    @property
    def steps(self) -> int:
        """What its progress ends at."""


T = TypeVar("T", bound=Named)
Begin = Callable[[list[T]], Callable[[T, int], None]]


def check_settings(settings: Mapping[str, Any], output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Args:
        settings: what must stay the same; a mapping inside is named by its "name".
        output: the folder.

    Raises:
        OtherSettingsError: it was written by other settings.
    """
    mine = json.loads(json.dumps(settings))
    file = output / SETTINGS
    if not file.exists():
        write_text(file, json.dumps(mine, indent=1) + "\n")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    wrong = [key for key in mine if before.get(key) != mine[key]]
    if wrong:
        told = [f"{key} {_short(before.get(key))}, not {_short(mine[key])}" for key in wrong]
        raise OtherSettingsError(
            f"{output} holds an experiment with {', '.join(told)}; give the same options or another folder"
        )


def run_stages(
    stages: Sequence[Callable[[dict[str, Row]], list[T]]],
    train: Train[T],
    row_of: Callable[[Run], Row],
    output: Path,
    jobs: int,
    begin: Begin[T],
) -> dict[str, Row]:
    """Does what is missing, stage after stage, and returns the row of every training by its name.

    Args:
        stages: each gives its trainings when it is reached, from the rows of those before.
        train: as `run_all` takes it.
        row_of: what a finished record says.
        output: the folder; records are in its `runs`.
        jobs: trainings at the same time.
        begin: called with the trainings of each stage, before it; returns what to call as they advance.

    Raises:
        KeyboardInterrupt: it was interrupted; the next call goes on.
    """
    root = output / "runs"
    root.mkdir(parents=True, exist_ok=True)
    done: dict[str, Row] = {}
    for stage in stages:
        trainings = stage(done)
        run_all(trainings, train, root, jobs, begin(trainings))
        done |= {training.name: row_of(Run.open(root / training.name)) for training in trainings}
    return done


def is_finished(folder: Path) -> bool:
    """Whether a training has been done to its end."""
    return (folder / "run.jsonl").exists() and Run.open(folder).status == "finished"


def open_record(
    folder: Path,
    config: Mapping[str, Any],
    seed: int,
    tag: str,
    model: nn.Module | None = None,
    optimizer: Any = None,
    **stateful: Any,
) -> tuple[Run, Restored | None]:
    """The record of a training, begun or gone on with; the objects then are as they were at its last checkpoint.

    Args:
        folder: of the record.
        config: of a new one.
        seed: likewise.
        tag: likewise.
        model: as `Run.restore` takes it.
        optimizer: likewise.
        stateful: likewise.
    """
    if (folder / "run.jsonl").exists():  # a kill may have left the folder alone
        run = Run.resume(folder)
        return run, run.restore(model, optimizer, **stateful)
    return Run.create(folder.parent, name=folder.name, config=config, seed=seed, tags=[tag], keep=1), None


def _short(value: Any) -> str:
    return repr(value["name"]) + " (as it was then)" if isinstance(value, dict) else repr(value)
