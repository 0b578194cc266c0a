"""The folder of a meta-training's record: given, the one to go on with, or the next free number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from metafast.runs import Run, list_runs


def run_name(
    root: Path, stem: str, settings: dict[str, Any], *, name: str | None, resume: bool, tag: str,
    done: Callable[[Run], bool],
) -> str:  # fmt: skip
    """The folder's name: the one given; the newest unfinished one to resume; or the next free number.

    Args:
        root: folder of the records.
        stem: what new names begin with.
        settings: what an unfinished run must have been begun with.
        name: given.
        resume: whether to go on with an unfinished run.
        tag: of the records.
        done: whether a run has nothing left to do.

    Raises:
        typer.BadParameter: nothing to go on with.
    """
    if name is not None:
        return name
    if resume:
        plain = json.loads(json.dumps(settings))
        olds = [run for run in list_runs(root, tags=[tag]) if run.config.get("settings") == plain]
        unfinished = [run for run in olds if not done(run)]
        if not unfinished:
            raise typer.BadParameter(
                f"nothing to go on with in {root}: no unfinished run of these options", param_hint="--resume"
            )
        return unfinished[-1].name
    number = 1
    while (root / f"{stem}-{number:03d}").exists():
        number += 1
    return f"{stem}-{number:03d}"
