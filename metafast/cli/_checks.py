"""What commands look at before they begin."""

from __future__ import annotations

import os
from pathlib import Path

import typer


def require(command: str, extra: str, **modules: str) -> None:
    """Ends the command where a module is missing; `modules` maps each to the package that has it."""
    missing = []
    for module, package in modules.items():
        try:
            __import__(module)
        except ImportError:
            missing.append(package)
    if missing:
        typer.echo(f"{command} needs {' and '.join(missing)}: pip install 'metafast[{extra}]'", err=True)
        raise typer.Exit(1)


def make_folder(output: Path) -> None:
    """The folder of `--output`, made if missing; says so where it cannot be written to."""
    probe = output / f".write-test-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise typer.BadParameter(
            f"{output} cannot be written to ({error.strerror}); choose another folder", param_hint="--output"
        ) from None
