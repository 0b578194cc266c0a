"""`metafast hpo collect`: options, progress, and how to go on."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from metafast._trainings import cores
from metafast.cli._checks import make_folder, require
from metafast.experiments._running import OtherSettingsError, check_settings, is_finished
from metafast.hpo._collect import Cell, cells, collect
from metafast.hpo._grid_table import pack_tasks
from metafast.hpo._grid_tasks import GRID, grid_tasks, hub_tasks

FILE = "tasks.safetensors"


def run(output: Path, names: list[str], hub: bool, seed: int, workers: int) -> None:
    """Trains what is missing and packs what is whole."""
    require("metafast hpo collect", "hf", datasets="datasets", PIL="pillow")
    tasks = grid_tasks() + (hub_tasks() if hub else [])
    known = [task.name for task in tasks]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise typer.BadParameter(f"there is no task {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [task for task in tasks if not names or task.name in names]
    make_folder(output)
    try:
        check_settings({"command": "hpo collect", "grid": GRID, "seed": seed}, output)
    except OtherSettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None
    console = Console()
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    jobs, began = workers or cores(), time.perf_counter()
    planned = cells(chosen, seed)
    done = {task.name: sum(is_finished(output / c.folder) for c in planned if c.task == task.name) for task in chosen}
    each = len(planned) // len(chosen)
    say(f"metafast hpo collect: {len(chosen)} tasks, {sum(done.values())} of {len(planned)} programs done before")
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.completed:>3.0f} of {task.total}"))
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
            rows = {name: bars.add_task(name, total=each, completed=count) for name, count in done.items()}

            def progress(cell: Cell, _: int) -> None:
                done[cell.task] += 1
                bars.update(rows[cell.task], completed=done[cell.task])
                if bars.disable and done[cell.task] == each:
                    say(f"  {cell.task}: done after {time.perf_counter() - began:.0f} s")

            collect(output, chosen, seed, jobs, progress)
    except KeyboardInterrupt:
        say(f"\nInterrupted. Nothing is lost; the same command goes on: --output {output}")
        raise typer.Exit(130) from None
    except RuntimeError as error:  # another process writes one of the records
        raise typer.BadParameter(str(error), param_hint="--output") from None
    count = pack_tasks(output, output / FILE)
    say(f"Wrote {output / FILE}: {count} tasks of 486 configurations. Learn from it: metafast hpo fit --table {output}")
