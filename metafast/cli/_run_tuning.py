"""`metafast run online-tuning`: checks, progress and tables around the experiment."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from metafast._trainings import cores
from metafast.cli._checks import make_folder, require
from metafast.cli._maml_setup import check_device

if TYPE_CHECKING:
    from metafast.experiments.online_tuning import Training


def run(recipe: str, names: list[str], seed: int, seeds: int | None, output: Path, workers: int, device: str) -> None:
    """The whole command."""
    require(
        "metafast run online-tuning",
        "hf,plots",
        matplotlib="matplotlib",
        datasets="datasets",
        transformers="transformers",
        PIL="pillow",
    )
    from metafast.experiments import online_tuning as tuning

    console = Console()
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    began = time.perf_counter()
    try:
        check_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    chosen = tuning.RECIPES[recipe]
    plan = tuning.Plan(
        chosen, tuple(name for name in tuning.TASKS if not names or name in names), seed, seeds or chosen.seeds, device
    )
    make_folder(output)
    try:
        tuning.check_folder(plan, output)
    except tuning.OtherSettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None
    first = {
        name: {feedback: plan.own(name, feedback)[0] for feedback in (None, "batch", "epoch")} for name in plan.names
    }
    for name in plan.names:
        with console.status(f"Reading the data of {tuning.TASKS[name].title}"):
            try:
                first[name][None].load()  # before anything is trained
            except (OSError, ImportError, ValueError) as error:
                raise typer.BadParameter(
                    f"{tuning.TASKS[name].title} cannot be run: {error}\nWithout it: --only with the others",
                    param_hint="--recipe",
                ) from None
    jobs = min(workers or cores(), 16)
    say(f"metafast run online-tuning: {recipe}, {', '.join(plan.names)}, {plan.seeds} seeds, {jobs} side by side")
    say(chosen.about)
    command = " ".join(
        ["metafast run online-tuning", f"--recipe {recipe}", *(f"--only {name}" for name in names)]
        + [f"--seed {seed}"] * (seed != 0) + [f"--seeds {seeds}"] * (seeds is not None)
        + [f"--device {device}"] * (device != "cpu") + [f"--output {output}"]
    )  # fmt: skip
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[finished]:>3} of {task.fields[trainings]} trainings"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            done = tuning.run(plan, output, jobs, functools.partial(_begin, bars, say))
    except KeyboardInterrupt:
        say(f"\nInterrupted. Nothing is lost; go on with: {command}")
        raise typer.Exit(130) from None
    found = tuning.results(plan, done)
    for name in plan.names:
        console.print(tuning.table(found, name), "\n")
    for verdict in found["verdicts"]:
        say(verdict["line"])
    with console.status("Drawing the plots"):
        files = tuning.write(found, first, output, command)
    say("\nWrote:")
    for file in files:
        say(f"  {file}")
    say(f"Done in {time.perf_counter() - began:.0f} s. Open {files[0]} in a browser.")


def _begin(bars: Progress, say: Callable[[str], None], trainings: list[Training]) -> Callable[[Training, int], None]:
    """Bars for the trainings of a stage, one per experiment; returns what moves them."""
    from metafast.experiments.online_tuning import TASKS

    steps: dict[str, int] = {}
    groups = {
        name: [t for t in trainings if t.experiment == name] for name in dict.fromkeys(t.experiment for t in trainings)
    }
    rows = {
        name: bars.add_task(TASKS[name].title, total=sum(t.steps for t in mine), finished=0, trainings=len(mine))
        for name, mine in groups.items()
    }

    def advance(training: Training, step: int) -> None:
        steps[training.name] = step
        mine = groups[training.experiment]
        finished = sum(steps.get(t.name, 0) == t.steps for t in mine)
        bars.update(rows[training.experiment], completed=sum(steps.get(t.name, 0) for t in mine), finished=finished)
        if bars.disable and step == training.steps:
            say(f"  {TASKS[training.experiment].title} {finished} of {len(mine)}: {training.name}")

    return advance
