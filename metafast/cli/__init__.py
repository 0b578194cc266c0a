"""The `metafast` command. A sub-command is one row here and the function `<name>` of `metafast/cli/<name>.py`.

A sub-command that has sub-commands of its own has a typer application `app` in that place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

COMMANDS = {
    "adapt": "Fine-tune frozen models by a meta-network: pretrain, train, evaluate, adapt, export, report.",
    "demo": "Train a small CNN from seven starting learning rates and compare what adapts with what does not.",
    "env": "Print versions, CPU level, devices, and which backend serves which op and why.",
    "hpo": "Predict hyperparameters from a few runs: collect, fit, suggest, compare.",
    "maml": "Meta-train, test and use few-shot learners: train, eval, adapt, transfer.",
    "run": "Run an experiment: online-tuning, lr-adaptation, hp-prediction.",
    "schedule": "Train and show controllers of the learning rate: meta-train, show.",
}


def build_app(wanted: str | None = None) -> typer.Typer:
    """The command line with the module of `wanted` loaded: the others need only their line of help."""
    app = typer.Typer(
        name="metafast",
        help="Meta-learning at hardware speed for PyTorch.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option)
    for name, line in COMMANDS.items():
        run: Callable[..., Any] = _unloaded
        if name == wanted:
            module = import_module(f"metafast.cli.{name}")
            if hasattr(module, "app"):
                app.add_typer(module.app, name=name, help=line)
                continue
            run = getattr(module, name)
        app.command(name, help=None if name == wanted else line)(run)
    return app


def main(argv: list[str] | None = None) -> None:
    """Run the command line: `sys.argv` or `argv`."""
    arguments = sys.argv[1:] if argv is None else argv
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    build_app(wanted)(args=arguments, prog_name="metafast")


def _unloaded() -> None:
    raise AssertionError("only a command that was asked for runs")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("metafast"))
        raise typer.Exit


def _version_option(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None: ...
