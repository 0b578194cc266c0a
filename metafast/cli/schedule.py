"""`metafast schedule`: make a learning-rate controller, look at one."""

from __future__ import annotations

import functools
import json
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _controllers() -> None:
    """Controllers that set the learning rate while a network trains."""


class Preset(str, Enum):
    """Settings."""

    default = "default"
    paper = "paper"


class Method(str, Enum):
    """Of the meta-gradient."""

    pes = "pes"
    truncated = "truncated"


@app.command("meta-train")
def meta_train(
    budget: Annotated[
        str | None, typer.Option(help='CPU time, such as "90s", "20min", "2h". Default: 400 updates, about 9 minutes.')
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="default: what the shipped controller was made with; paper: the plan's settings.")
    ] = Preset.default,
    method: Annotated[Method | None, typer.Option(help="pes or truncated. Default: the preset's.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="At most so many updates.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of everything.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the run record, the controller and its curve.")] = Path(
        "metafast-controller"
    ),
) -> None:
    """Train a controller on the shipped suite of small real trainings.

    Writes controller.safetensors and, where matplotlib is there, its curve. Called again with the same options it goes
    on where it was interrupted; with a larger budget it goes on from the end.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from metafast.cli._checks import make_folder, require
    from metafast.schedule import LRController
    from metafast.schedule._meta_train import UPDATES, parse_budget

    require("metafast schedule meta-train", "hf", datasets="datasets", PIL="pillow")
    console = Console()
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    try:
        seconds = None if budget is None else parse_budget(budget)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from None
    make_folder(output)
    settings: dict[str, Any] = {} if method is None else {"method": method.value}
    began = time.perf_counter()
    columns = (TextColumn("{task.description:<44}"), BarColumn(), TimeRemainingColumn())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches of small trainings gain little from more
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            row = bars.add_task("reading the data", total=seconds or updates or UPDATES)

            def progress(found: dict[str, float]) -> None:
                told = f"{found['update']:.0f} updates, training {found['train_score']:.3f}"
                bars.update(row, completed=found["seconds" if seconds else "update"], description=told)
                if "val_score" in found:
                    say(f"  {told}, validation {found['val_score']:.4f}, {found['seconds']:.0f} s")

            controller = LRController.meta_train(
                budget=seconds, preset=preset.value, updates=updates, seed=seed, output=output, progress=progress,
                **settings,
            )  # fmt: skip
    except KeyboardInterrupt:
        say(f"\nInterrupted. Nothing is lost; the same command goes on from the last minute in {output}.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    finally:
        torch.set_num_threads(threads)
    files = [output / "controller.safetensors"]
    controller.save(files[0])
    try:
        from metafast import plots

        files += plots.save(plots.meta_training_curve(controller.record), output / "curve")
    except ImportError:
        pass
    record = controller.record
    say(f"Kept update {record['kept_update']} of {record['updates']}, validation {record['validation_score']:.4f}.")
    say("\nWrote:")
    for file in files:
        say(f"  {file}")
    say(f"Done in {time.perf_counter() - began:.0f} s. Use it: LRController.load({str(files[0])!r})")


@app.command("show")
def show(
    source: Annotated[str, typer.Argument(help='A file, or the name of a shipped one: "default".')] = "default",
) -> None:
    """Print how a controller was made."""
    from metafast.schedule import LRController

    try:
        controller = LRController.load(source)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    learned = controller.learned
    typer.echo(
        json.dumps(
            {
                "hidden": learned.shape.hidden,
                "weights": learned.shape.numel,
                "max_change": learned.max_change,
                "interval": learned.interval,
                "shift": learned.shift,
                **controller.record,
            },
            indent=1,
        )
    )
