"""`metafast run hp-prediction`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import typer

from metafast.cli._checks import require
from metafast.cli._run_experiment import Experiment, Options, Session


@dataclass(frozen=True)
class PredictionOptions(Options):
    """With the collected tasks.

    Args:
        table: their folder; None: there are none.
    """

    table: Path | None = None

    def __str__(self) -> str:
        """The command that repeats it, or goes on with it."""
        return super().__str__() + (f" --table {self.table}" if self.table is not None else "")


def run(options: PredictionOptions) -> None:
    """The whole command."""
    require("metafast run hp-prediction", "hpo,plots", optuna="optuna", cmaes="cmaes", matplotlib="matplotlib")
    from metafast.experiments import hp_prediction as prediction

    session = Session(options)
    chosen = prediction.RECIPES[options.recipe]
    unknown = [name for name in options.only if name not in chosen.suites]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not one of {', '.join(chosen.suites)}, the suites of recipe {options.recipe}",
            param_hint="--only",
        )
    left_out: dict[str, str] = {}
    for name in chosen.suites:
        if options.only and name not in options.only:
            continue
        with session.console.status(f"Reading {prediction.TITLES[name]}"):
            try:
                prediction.tables(name, options.table)  # before anything is searched
            except (OSError, ImportError, ValueError) as error:
                left_out[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
                session.say(f"{prediction.TITLES[name]}: left out. {left_out[name]}")
    names = tuple(n for n in chosen.suites if n not in left_out and (not options.only or n in options.only))
    if not names:
        raise typer.BadParameter("there are no tables of any suite", param_hint="--table")
    gone = prediction.missing()
    for name, reason in gone.items():
        session.say(f"{prediction.METHODS[name].title}: left out. {reason}")
    plan = prediction.Plan(chosen, names, options.seed, options.seeds, options.table, left_out, gone)
    session.prepare(functools.partial(prediction.check_folder, plan))
    session.conduct(
        Experiment(
            names=plan.names,
            seeds=plan.seeds or chosen.seeds,
            about=chosen.about,
            key=lambda search: str(search.fold.suite),
            title=lambda name: prediction.TITLES[name],
            run=functools.partial(prediction.run, plan),
            results=functools.partial(prediction.results, plan),
            table=prediction.table,
            write=prediction.write,
        )
    )
