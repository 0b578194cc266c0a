"""`metafast adapt`: meta-train, test and use networks that fine-tune a frozen model."""

from __future__ import annotations

import typer

from metafast.cli._adapt_commands import COMMANDS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for name, command in COMMANDS.items():
    app.command(name)(command)
