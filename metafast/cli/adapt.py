"""`metafast adapt`: pre-train small backbones; meta-train, test and use networks that fine-tune a frozen model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from metafast.cli._adapt_commands import COMMANDS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Backbone(str, Enum):
    """The names of `metafast.adapt.pretrain`, which would load torch."""

    omniglot = "omniglot"
    cifar = "cifar"
    text = "text"


class Objective(str, Enum):
    """What a backbone learns."""

    classes = "classes"
    episodes = "episodes"


@app.command()
def pretrain(
    name: Annotated[Backbone, typer.Argument(help="What it is trained on.")],
    output: Annotated[Path | None, typer.Option(help="A .safetensors file. Default: the cache folder's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of weights and batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Of AdamW. Default: by name, some minutes.")] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(help="classes: tell all training classes apart; episodes: nearest prototypes. Default: by name."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Pre-train a small backbone on real data, where no pretrained weights are at hand.

    Writes the file and, beside it, a record with checkpoints, from which an interrupted training goes on. A file that
    is there already is read.
    """
    from metafast.cli import _adapt_pretrain

    chosen = None if objective is None else objective.value
    _adapt_pretrain.pretrain(name.value, output, seed, steps, chosen, device)


for command, run in COMMANDS.items():
    app.command(command)(run)
