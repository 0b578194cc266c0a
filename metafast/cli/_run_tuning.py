"""`metafast run online-tuning`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import typer

from metafast.cli._checks import require
from metafast.cli._run_experiment import Experiment, Options, Session


def run(options: Options) -> None:
    """The whole command."""
    require(
        "metafast run online-tuning",
        "hf,plots",
        matplotlib="matplotlib",
        datasets="datasets",
        transformers="transformers",
        PIL="pillow",
    )
    from metafast.experiments import online_tuning as tuning

    session = Session(options)
    chosen = tuning.RECIPES[options.recipe]
    names = tuple(name for name in tuning.TASKS if not options.only or name in options.only)
    plan = tuning.Plan(chosen, names, options.seed, options.seeds or chosen.seeds, options.device)
    session.prepare(functools.partial(tuning.check_folder, plan))
    first = {
        name: {feedback: plan.own(name, feedback)[0] for feedback in (None, "batch", "epoch")} for name in plan.names
    }
    for name in plan.names:
        with session.console.status(f"Reading the data of {tuning.TASKS[name].title}"):
            try:
                first[name][None].load()  # before anything is trained
            except (OSError, ImportError, ValueError) as error:
                raise typer.BadParameter(
                    f"{tuning.TASKS[name].title} cannot be run: {error}\nWithout it: --only with the others",
                    param_hint="--recipe",
                ) from None

    def write(found: dict[str, Any], output: Path, command: str) -> list[Path]:
        return tuning.write(found, first, output, command)

    session.conduct(
        Experiment(
            names=plan.names,
            seeds=plan.seeds,
            about=chosen.about,
            key=lambda training: str(training.experiment),
            title=lambda name: tuning.TASKS[name].title,
            run=functools.partial(tuning.run, plan),
            results=functools.partial(tuning.results, plan),
            table=tuning.table,
            write=write,
        )
    )
