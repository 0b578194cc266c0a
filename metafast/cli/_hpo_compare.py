"""`metafast hpo compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import Progress

from metafast.cli._checks import require

if TYPE_CHECKING:
    from metafast.hpo import MetaTask


def run(
    tables: Sequence[Path],
    csv: Sequence[Path],
    score: str | None,
    direction: str | None,
    studies: Sequence[str],
    storage: str | None,
    predictor: str,
    methods: Sequence[str],
    runs: int,
    seeds: int,
    output: Path | None,
) -> None:
    """The whole command."""
    require("metafast hpo compare", "hpo", optuna="optuna", cmaes="cmaes")
    from metafast.experiments import hp_prediction as prediction
    from metafast.hpo import Predictor

    console = Console()
    try:
        tasks = [*_collected(tables), *_sheets(csv, score, direction), *_studies(studies, storage)]
        if not tasks:
            raise ValueError("there is nothing to compare on; give --table, --csv with --score, or --study")
        known = Predictor.load(predictor)
        with Progress(console=console, disable=not console.is_terminal) as bars:
            bar = bars.add_task("Searching", total=1)

            def progress(method: str, done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total, description=prediction.METHODS[method].title)

            found = prediction.compare(
                tasks, known, methods or prediction.USUAL, runs=runs, seeds=seeds, progress=progress
            )
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(prediction.table(found, "yours"))
    for name, reason in found["missing"].items():
        typer.echo(f"{prediction.METHODS[name].title} is left out: {reason}")
    if output is not None:
        from metafast._page import write_text
        from metafast.experiments._report import plain

        write_text(output, json.dumps(plain(found), indent=1, allow_nan=False) + "\n")
        typer.echo(f"Wrote {output}")


def _collected(tables: Sequence[Path]) -> list[MetaTask]:
    from metafast.hpo import load_tasks

    return [task for folder in tables for task in load_tasks(folder)]


def _sheets(files: Sequence[Path], score: str | None, direction: str | None) -> list[MetaTask]:
    from metafast.hpo import task_of_table

    if files and score is None:
        raise ValueError("--csv needs --score, the name of the column with the scores")
    return [task_of_table(file, score=str(score), direction=direction) for file in files]


def _studies(names: Sequence[str], storage: str | None) -> list[MetaTask]:
    if not names:
        return []
    import optuna

    from metafast.hpo import task_of_study

    if storage is None:
        raise ValueError("--study needs --storage, such as sqlite:///studies.db")
    made: list[Any] = []
    for name in names:
        try:
            made.append(task_of_study(optuna.load_study(study_name=name, storage=storage)))
        except KeyError:
            raise ValueError(f"{storage} has no study {name!r}") from None
    return made
