"""`metafast demo`: how much does a starting learning rate matter, with and without a rate that adapts itself?"""

from __future__ import annotations

import json
import os
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metafast.cli._checks import make_folder, require

if TYPE_CHECKING:
    from metafast.cli._demo_train import Task

TAG = "demo"


class Data(str, Enum):
    """Which data sets to train on."""

    auto = "auto"
    digits = "digits"
    fashion_mnist = "fashion_mnist"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report, the plots and the run records.")] = Path(
        "metafast-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of weights, batches and splits.")] = 0,
    data: Annotated[
        Data, typer.Option(help="auto: the bundled digits, and Fashion-MNIST where METAFAST_DATA has it.")
    ] = Data.auto,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the training: seconds, not a result.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted demo in the same folder.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings side by side; 0: one per CPU core.")] = 0,
) -> None:
    """Train a small CNN from seven starting learning rates and compare what adapts with what does not.

    AdamW with a fixed rate, AdamW with a hypergradient and AdamW with a cosine schedule start from 1e-6 to 1. Prints a
    table, and writes plots (PNG, SVG), run records and one self-contained HTML report. About two minutes on two cores.
    """
    require("metafast demo", "demo", matplotlib="matplotlib", sklearn="scikit-learn")
    from rich.console import Console

    from metafast._trainings import cores
    from metafast.cli import _demo_report, _demo_train

    console = Console()
    began = time.perf_counter()
    make_folder(output)
    names = _choose(data, seed, console)
    settings = {"seed": seed, "quick": quick, "data": names}
    session = _session(output, settings, resume)
    setups = _demo_train.SETUPS
    tasks = [
        _demo_train.Task(name, method, rate, seed, setups[name].quick_epochs if quick else setups[name].epochs)
        for name in names
        for rate in _demo_train.RATES
        for method in _demo_train.METHODS
    ]
    jobs = min(jobs or cores(), 16, len(tasks))
    titles = " and ".join(setups[name].title for name in names)
    console.print(
        f"[bold]metafast demo[/]: {len(tasks)} trainings of a small CNN on {titles}, "
        f"{jobs} side by side, seed {seed}{', quick' if quick else ''}"
    )
    try:
        _train_all(tasks, session, jobs, console)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Nothing is lost; go on with: metafast demo --resume --output {output}")
        raise typer.Exit(130) from None

    from metafast.runs import Run

    runs = {task: Run.open(session / task.name) for task in tasks}
    rows = [_demo_train.result_of(run) for run in runs.values()]
    for name in names:
        console.print(_demo_report.table(name, [row for row in rows if row["data"] == name]))
        console.print(_demo_report.summary(name, rows), "\n", highlight=False)
    with console.status("Drawing the plots"):
        files = _demo_report.write(
            output, session, settings, {t.name: r for t, r in runs.items()}, rows, time.perf_counter() - began
        )
    console.print("Wrote:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    console.print(
        f"Done in {time.perf_counter() - began:.0f} s. Open {files[0]} in a browser.", highlight=False, soft_wrap=True
    )


def _train_all(tasks: list[Task], session: Path, jobs: int, console: Any) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from metafast import _trainings
    from metafast.cli import _demo_train

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[finished]:>2} of {task.fields[trainings]} trainings"),
        TimeRemainingColumn(),
    )
    steps: dict[str, int] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = {}
        for name in dict.fromkeys(task.data for task in tasks):
            members = [task for task in tasks if task.data == name]
            each = _demo_train.steps_of(members[0])
            bar[name] = bars.add_task(
                _demo_train.SETUPS[name].title, total=each * len(members), finished=0, trainings=len(members)
            )

        def progress(task: Task, step: int) -> None:
            steps[task.name] = step
            members = [other for other in tasks if other.data == task.data]
            finished = sum(steps.get(other.name, 0) == _demo_train.steps_of(other) for other in members)
            done = sum(steps.get(other.name, 0) for other in members)
            bars.update(bar[task.data], completed=done, finished=finished)
            if not console.is_terminal and step == _demo_train.steps_of(task):
                title = f"{_demo_train.SETUPS[task.data].title} {finished:>2} of {len(members)}"
                console.print(f"  {title}: {_demo_train.METHODS[task.method]} from {task.rate:g}", highlight=False)

        _trainings.run_all(tasks, _demo_train.train, session, jobs, progress)


def _choose(data: Data, seed: int, console: Any) -> list[str]:
    if data is Data.digits:
        return ["digits"]
    from metafast.cli._demo_train import splits

    if data is Data.auto:
        root = os.environ.get("METAFAST_DATA")
        folder = Path(root or "") / "fashion_mnist"
        if not root or not all((folder / f"{split}.parquet").is_file() for split in ("train", "test")):
            console.print(
                "Fashion-MNIST is left out: METAFAST_DATA has no fashion_mnist/{train,test}.parquet", highlight=False
            )
            return ["digits"]
    try:
        splits("fashion_mnist", seed)
    except (ImportError, OSError, ValueError) as error:
        if data is Data.auto:
            console.print(f"Fashion-MNIST is left out: {error}", highlight=False, markup=False)
            return ["digits"]
        raise typer.BadParameter(str(error), param_hint="--data") from None
    return ["fashion_mnist"] if data is Data.fashion_mnist else ["digits", "fashion_mnist"]


def _session(output: Path, settings: dict[str, Any], resume: bool) -> Path:
    """The folder of this demo's records: a new one, or with --resume the newest of the same settings."""
    root = output / "runs"
    olds = sorted(path for path in root.glob("demo-*") if (path / "demo.json").is_file())
    if resume:
        if not olds:
            raise typer.BadParameter(
                f"nothing to go on with in {output}; run without --resume first", param_hint="--resume"
            )
        before = json.loads((olds[-1] / "demo.json").read_text(encoding="utf-8"))
        if before != settings:
            wrong = ", ".join(
                f"{key} {before.get(key)!r}, not {settings[key]!r}"
                for key in settings
                if before.get(key) != settings[key]
            )
            raise typer.BadParameter(
                f"the demo in {output} was run with {wrong}; give the same options", param_hint="--resume"
            )
        return olds[-1]
    number = int(olds[-1].name.removeprefix("demo-")) + 1 if olds else 1
    session = root / f"demo-{number:03d}"
    session.mkdir(parents=True)
    (session / "demo.json").write_text(json.dumps(settings), encoding="utf-8")
    return session
