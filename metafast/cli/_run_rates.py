"""`metafast run lr-adaptation`."""

from __future__ import annotations

import functools

import typer

from metafast.cli._checks import require
from metafast.cli._run_experiment import Experiment, Options, Session


def run(options: Options) -> None:
    """The whole command."""
    require(
        "metafast run lr-adaptation",
        "hf,plots",
        matplotlib="matplotlib",
        datasets="datasets",
        transformers="transformers",
        PIL="pillow",
    )
    from metafast.experiments import lr_adaptation as rates

    session = Session(options)
    chosen = rates.RECIPES[options.recipe]
    unknown = [name for name in options.only if name not in chosen.setups]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not one of {', '.join(chosen.setups)}, the pairs of recipe {options.recipe}",
            param_hint="--only",
        )
    seeds = options.seeds or chosen.seeds
    wanted = [name for name in chosen.setups if not options.only or name in options.only]
    make = functools.partial(rates.Plan, chosen, seed=options.seed, seeds=seeds, device=options.device)
    try:
        session.prepare(functools.partial(rates.check_folder, make(names=tuple(wanted))))
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"The shipped controller cannot be loaded: {error}", err=True)
        raise typer.Exit(1) from None
    left_out: dict[str, str] = {}
    for name in wanted:
        with session.console.status(f"Reading the data of {name}"):
            try:
                make(names=(name,)).training(name, "fixed").load()  # before anything is trained
            except (OSError, ImportError, ValueError) as error:
                left_out[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
                session.say(f"{name} is left out: {error}")
    names = tuple(name for name in wanted if name not in left_out)
    if not names:
        raise typer.BadParameter("there is no data for any of the pairs", param_hint="--recipe")
    plan = make(names=names, missing=rates.missing(), left_out=left_out)
    for reason in plan.missing.values():
        session.say(reason)
    session.conduct(
        Experiment(
            names=plan.names,
            seeds=plan.seeds,
            about=chosen.about,
            key=lambda training: str(training.pair),
            title=lambda name: rates.title(chosen.setups[name]),
            run=functools.partial(rates.run, plan),
            results=functools.partial(rates.results, plan),
            table=rates.table,
            write=rates.write,
        )
    )
