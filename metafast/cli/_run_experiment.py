"""What the experiments of `metafast run` share: options, progress, tables, and how to go on."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from metafast._trainings import cores
from metafast.cli._checks import make_folder
from metafast.cli._maml_setup import check_device
from metafast.experiments._running import Begin, OtherSettingsError, Row

MOST_JOBS = 16


@dataclass(frozen=True)
class Options:
    """What every experiment is told.

    Args:
        command: its name.
        recipe, only, seed, seeds, output, workers, device: as given.
    """

    command: str
    recipe: str
    only: tuple[str, ...]
    seed: int
    seeds: int | None
    output: Path
    workers: int
    device: str

    def __str__(self) -> str:
        """The command that repeats it, or goes on with it."""
        return " ".join(
            [f"metafast run {self.command}", f"--recipe {self.recipe}", *(f"--only {name}" for name in self.only)]
            + [f"--seed {self.seed}"] * (self.seed != 0) + [f"--seeds {self.seeds}"] * (self.seeds is not None)
            + [f"--device {self.device}"] * (self.device != "cpu") + [f"--output {self.output}"]
        )  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """How one is run.

    Args:
        names: of its parts.
        seeds: trainings of each method.
        about: what a reader should know about its size.
        key: the part that a training belongs to.
        title: of a part.
        run: does what is missing, with so many trainings at a time.
        results: what came of it, with "verdicts".
        table: of a part.
        write: all files, the report first; the text is the command.
    """

    names: Sequence[str]
    seeds: int
    about: str
    key: Callable[[Any], str]
    title: Callable[[str], str]
    run: Callable[[Path, int, Begin[Any]], dict[str, Row]]
    results: Callable[[dict[str, Row]], dict[str, Any]]
    table: Callable[[dict[str, Any], str], Table]
    write: Callable[[dict[str, Any], Path, str], list[Path]]


class Session:
    """One call of a command.

    Args:
        options: what it was told.

    Raises:
        typer.BadParameter: no such device.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.console, self.began = options, Console(), time.perf_counter()
        self.say = functools.partial(self.console.print, highlight=False, markup=False, soft_wrap=True)
        try:
            check_device(options.device)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--device") from None

    def prepare(self, check: Callable[[Path], None]) -> None:
        """The folder, which must not be of another experiment."""
        make_folder(self.options.output)
        try:
            check(self.options.output)
        except OtherSettingsError as error:
            raise typer.BadParameter(str(error), param_hint="--output") from None

    def conduct(self, experiment: Experiment) -> None:
        """From the first training to the report."""
        options, console, say = self.options, self.console, self.say
        jobs = min(options.workers or cores(), MOST_JOBS)
        say(
            f"metafast run {options.command}: {options.recipe}, {', '.join(experiment.names)}, "
            f"{experiment.seeds} seeds, {jobs} side by side"
        )
        say(experiment.about)
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[finished]:>3} of {task.fields[trainings]} trainings"),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
                done = experiment.run(options.output, jobs, functools.partial(_begin, bars, say, experiment))
        except KeyboardInterrupt:
            say(f"\nInterrupted. Nothing is lost; go on with: {options}")
            raise typer.Exit(130) from None
        found = experiment.results(done)
        for name in experiment.names:
            console.print(experiment.table(found, name), "\n")
        for verdict in found["verdicts"]:
            say(verdict["line"])
        with console.status("Drawing the plots"):
            files = experiment.write(found, options.output, str(options))
        say("\nWrote:")
        for file in files:
            say(f"  {file}")
        say(f"Done in {time.perf_counter() - self.began:.0f} s. Open {files[0]} in a browser.")


def _begin(
    bars: Progress, say: Callable[[str], None], experiment: Experiment, trainings: list[Any]
) -> Callable[[Any, int], None]:
    """Bars for the trainings of a stage, one per part; returns what moves them."""
    steps: dict[str, int] = {}
    groups: dict[str, list[Any]] = {}
    for training in trainings:
        groups.setdefault(experiment.key(training), []).append(training)
    rows = {
        name: bars.add_task(experiment.title(name), total=sum(t.steps for t in mine), finished=0, trainings=len(mine))
        for name, mine in groups.items()
    }

    def advance(training: Any, step: int) -> None:
        steps[training.name] = step
        name = experiment.key(training)
        mine = groups[name]
        finished = sum(steps.get(t.name, 0) == t.steps for t in mine)
        bars.update(rows[name], completed=sum(steps.get(t.name, 0) for t in mine), finished=finished)
        if bars.disable and step == training.steps:
            say(f"  {experiment.title(name)} {finished} of {len(mine)}: {training.name}")

    return advance
