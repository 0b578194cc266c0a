"""`metafast adapt pretrain`: a small backbone of one's own, and how good it is."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from metafast.cli._checks import make_folder, require


def pretrain(name: str, output: Path | None, seed: int, steps: int | None, objective: str | None, device: str) -> None:
    """Train, or read what is there, and show the accuracy on validation classes."""
    require("metafast adapt pretrain", "hf", datasets="datasets", transformers="transformers", PIL="pillow")
    from metafast.adapt import _pretrain as made
    from metafast.cli._maml_setup import check_device
    from metafast.data import DatasetNotFoundError
    from metafast.maml._progress import Progress

    console = Console()
    file = made.default_file(name) if output is None else output
    if file.suffix != ".safetensors":
        raise typer.BadParameter(f"must be a .safetensors file, got {file}", param_hint="--output")
    make_folder(file.parent)
    total = made.RECIPES[name].steps if steps is None else steps
    there = file.is_file()
    console.print(f"[bold]metafast adapt pretrain[/] {name}: {made.RECIPES[name].title}", highlight=False)
    try:
        check_device(device)
        with Progress(total, title="pre-training") as bar:
            base = made.pretrain(
                name, file, seed=seed, steps=total, objective=objective, device=device,
                progress=lambda step: bar.update(step, {}),
            )  # fmt: skip
    except DatasetNotFoundError as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        console.print("\nInterrupted; the same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    table = Table(title="Validation classes, features as they are; 95 % intervals")
    for column in ("episodes", "nearest prototypes", "linear probe"):
        table.add_column(column, justify="left" if column == "episodes" else "right")
    for episodes, found in base.about["validation"].items():
        table.add_row(episodes, *(f"{100 * a:.1f} ± {100 * b:.1f} %" for a, b in found.values()))
    console.print(table)
    size = sum(parameter.numel() for parameter in base.parameters())
    console.print(f"{'Found' if there else 'Wrote'} {file}: {size:,} parameters, features of {base.width} numbers.")
