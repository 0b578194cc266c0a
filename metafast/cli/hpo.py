"""`metafast hpo`: predict hyperparameters from a few runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _predictors() -> None:
    """Hyperparameters predicted from a few short runs."""


@app.command("collect")
def collect(
    output: Annotated[Path, typer.Option(help="Folder for the run records and tasks.safetensors.")] = Path(
        "metafast-tasks"
    ),
    task: Annotated[list[str] | None, typer.Option(help="Such as mnist/cnn; may be repeated. Default: all.")] = None,
    hub: Annotated[bool, typer.Option(help="Train on electricity and LibriSpeech too, from the hub.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of all trainings.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Programs side by side; 0: one per CPU core.")] = 0,
) -> None:
    """Train the grid of 486 configurations on every task: hours on two cores.

    Each program of 18 configurations leaves one run record; called again with the same options it trains what is
    missing. `metafast hpo fit --table OUTPUT` learns from the folder.
    """
    from metafast.cli import _hpo_collect

    _hpo_collect.run(output, task or [], hub, seed, workers)


@app.command("fit")
def fit(
    table: Annotated[
        list[Path] | None, typer.Option(help="A folder that `metafast hpo collect` has made; may be given again.")
    ] = None,
    external: Annotated[bool, typer.Option(help="Learn TaskSet's Adam8p and the SVM set too.")] = True,
    start: Annotated[
        str | None, typer.Option(help='What to begin with: a file, or "default". Default: nothing.')
    ] = None,
    tune: Annotated[bool, typer.Option(help="Find the settings anew by leaving data sets out: some minutes.")] = False,
    output: Annotated[Path, typer.Option(help="The file that is written.")] = Path("predictor.safetensors"),
) -> None:
    """Make a predictor from tables of finished searches."""
    from metafast.cli._checks import require
    from metafast.hpo import MetaTask, Predictor, svm_tasks, taskset_tasks

    tasks: list[MetaTask] = []
    try:
        for folder in table or []:
            from metafast.hpo import load_tasks

            tasks += load_tasks(folder)
        if external:
            require("metafast hpo fit --external", "hf", datasets="datasets")
            tasks += taskset_tasks() + svm_tasks()
        predictor = Predictor() if start is None else Predictor.load(start)
        predictor.fit(tasks, tune=tune, progress=typer.echo)
        output.parent.mkdir(parents=True, exist_ok=True)
        predictor.save(output)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    size = output.stat().st_size / 1e6
    typer.echo(f"{output}: {len(predictor.tasks)} tasks, {size:.2f} MB. Use it: Predictor.load({str(output)!r})")


@app.command("suggest")
def suggest(
    space: Annotated[
        Path,
        typer.Option(
            help='JSON: {"lr": {"low": 1e-4, "high": 0.1, "log": true}, "layers": [2, 3, 4]}, or Space.describe().'
        ),
    ],
    observed: Annotated[
        Path | None, typer.Option(help='JSON: [{"config": {...}, "score": 0.9, "fraction": 1.0, "seconds": 12}, ...].')
    ] = None,
    predictor: Annotated[str, typer.Option(help='A file, or "default".')] = "default",
    metric: Annotated[str, typer.Option(help="What the scores are.")] = "accuracy",
    direction: Annotated[str, typer.Option(help="maximize or minimize.")] = "maximize",
    reference: Annotated[float | None, typer.Option(help="Score of a predictor that has learned nothing.")] = None,
    features: Annotated[Path | None, typer.Option(help="JSON: features of data set and architecture.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the candidates.")] = 0,
) -> None:
    """Print the configuration to try next, what is expected of it, and why, as JSON."""
    from metafast.hpo import Predictor

    try:
        known = Predictor.load(predictor)
        runs = [] if observed is None else [_observation(row) for row in _read(observed)]
        about = None if features is None else {name: float(value) for name, value in _read(features).items()}
        found = known.suggest(
            _space(_read(space)),
            runs,
            features=about,
            metric=metric,
            direction=direction,
            reference=reference,
            seed=seed,
        )
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(
        json.dumps(
            {
                "config": found.config,
                "expected": found.expected,
                "interval": found.interval,
                "seconds": found.seconds if found.seconds == found.seconds else None,
                "source": found.source,
                "reason": found.reason,
            },
            indent=1,
        )
    )


@app.command("compare")
def compare(
    table: Annotated[
        list[Path] | None, typer.Option(help="A folder that `metafast hpo collect` has made; may be repeated.")
    ] = None,
    csv: Annotated[
        list[Path] | None, typer.Option(help="A .csv or .parquet file with one run a row; may be repeated.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="The column of --csv that has the scores.")] = None,
    direction: Annotated[str | None, typer.Option(help="maximize or minimize. Default: known for the metric.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="Name of an Optuna study; may be repeated.")] = None,
    storage: Annotated[str | None, typer.Option(help="Where the studies are, such as sqlite:///studies.db.")] = None,
    predictor: Annotated[str, typer.Option(help='A file, or "default".')] = "default",
    method: Annotated[
        list[str] | None, typer.Option(help="ours, random, tpe, gp, cma_es, rgpe, zero_shot, …; may be repeated.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of each search.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each method that draws at random.")] = 3,
    output: Annotated[Path | None, typer.Option(help="A JSON file with all that was found.")] = None,
) -> None:
    """Replay searches on your own finished ones: predictor, Optuna's samplers, transfer and random search side by side.

    Each method chooses among the configurations that were run. What the predictor knows of a task's own data set is
    left out; from the other tables it learns.
    """
    from metafast.cli import _hpo_compare

    _hpo_compare.run(
        table or [], csv or [], score, direction, study or [], storage, predictor, method or [], runs, seeds, output
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _space(described: Any) -> Any:
    from metafast.hpo import FloatRange, IntRange, Space

    if not isinstance(described, dict):
        raise TypeError(f"the space must be a JSON object of names, got {type(described).__name__}")
    if "dimensions" in described:
        return Space.of(described)
    spec: dict[str, Any] = {}
    for name, value in described.items():
        if isinstance(value, dict):
            if not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
                raise ValueError(f'{name} must be a list, or {{"low": …, "high": …, "log": …}}, got {value}')
            whole = isinstance(value["low"], int) and isinstance(value["high"], int)
            spec[name] = IntRange(**value) if whole else FloatRange(**value)
        else:
            spec[name] = value
    return Space(spec)


def _observation(row: Any) -> Any:
    from metafast.hpo import Observation

    if not isinstance(row, dict) or not isinstance(row.get("config"), dict) or "score" not in row:
        raise ValueError(f'an observation must be {{"config": {{…}}, "score": …}}, got {row!r}')
    score = float("nan") if row["score"] is None else float(row["score"])
    return Observation(row["config"], score, float(row.get("fraction", 1.0)), row.get("seconds"))
