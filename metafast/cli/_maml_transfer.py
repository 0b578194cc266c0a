"""`metafast maml transfer`: the transfer experiment, its table and its plots."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metafast.cli._maml_setup import check_device
from metafast.data import DatasetNotFoundError
from metafast.maml.transfer import RECIPES, STARTS, Options, Report, at_hand, run


def transfer(recipe: str, backbone: str, *, output: Path, resume: bool, **settings: Any) -> None:
    """Run the experiment and show what it found."""
    console = Console()
    say = functools.partial(console.print, highlight=False, markup=False)
    if recipe == "auto":
        recipe = "hub" if at_hand(RECIPES["hub"]) else "local"
        if recipe == "local":
            say("The photo sets of the hub recipe are not at hand and the hub does not answer; the local recipe runs.")
    options = Options(recipe=recipe, backbone=backbone, **settings)
    console.print(f"[bold]metafast maml transfer[/]: {recipe} recipe, seed {options.seed}", highlight=False)
    try:
        check_device(options.device)
        report = run(options, output, resume=resume, tell=lambda text: say(f"  {text}"))
    except DatasetNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="--recipe") from None
    except KeyboardInterrupt:
        console.print(f"\nInterrupted; go on with the same command and --resume (in {output}).")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    show(console, report)
    files = [output / "results.json", *draw(report, output)]
    console.print("Wrote:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


def show(console: Console, report: Report) -> None:
    """A table for each test set, and what was used."""
    steps, episodes = report.options["steps"], report.options["episodes"]
    for data in dict.fromkeys(row["data"] for row in report.rows):
        members = [row for row in report.rows if row["data"] == data]
        table = Table(
            title=f"{data}: after {steps} steps, 95 % interval over {episodes} episodes; "
            f"threshold {100 * members[0]['threshold']:.1f} %"
        )
        for column in ("start", "rate", "accuracy", "macro F1", "steps to it", "ms to it"):
            table.add_column(column, justify="left" if column == "start" else "right")
        for row in members:
            reached = row["steps_to_threshold"]
            table.add_row(
                STARTS[row["start"]], f"{row['inner_lr']:g}", _percent(row["accuracy"]), _percent(row["f1"]),
                f"> {len(row['course']) - 1}" if reached is None else str(reached),
                "" if reached is None else f"{1e3 * row['seconds_to_threshold']:.1f}",
            )  # fmt: skip
        console.print(table)
    console.print(f"Recipe: {report.options['recipe']}.", highlight=False)
    for part, lines in report.data.items():
        console.print(f"  {part}: {', '.join(lines)}", highlight=False)
    console.print(f"Backbone: {report.backbone}.", highlight=False)
    parts = ", ".join(f"{phase.name} {phase.seconds:.0f} s" for phase in report.phases)
    console.print(
        f"{report.device_hours:.3f} device-hours on {report.devices} x {report.device}: {parts}.", highlight=False
    )


def draw(report: Report, output: Path) -> list[Path]:
    """The course of fine-tuning on each test set, where matplotlib is there."""
    try:
        from metafast.plots import adaptation_curves, save

        panels: dict[str, dict[str, Any]] = {}
        for row in report.rows:
            if row["inner_lr"] == report.options["inner_lr"]:
                panels.setdefault(row["data"], {})[STARTS[row["start"]]] = row["course"]
        figure = adaptation_curves(
            panels, title="Transfer to unseen data sets", ylabel="accuracy (%)", trained=report.options["steps"]
        )
        return save(figure, output / "transfer")
    except ImportError:  # matplotlib is an extra
        return []


def _percent(pair: list[float]) -> str:
    return f"{100 * pair[0]:.1f} ± {100 * pair[1]:.1f} %"
