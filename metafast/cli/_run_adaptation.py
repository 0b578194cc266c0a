"""`metafast run rapid-adaptation`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metafast.cli._checks import require
from metafast.cli._run_experiment import Experiment, Options, Session

if TYPE_CHECKING:
    from metafast.experiments.rapid_adaptation import Recipe


@dataclass(frozen=True)
class AdaptationOptions(Options):
    """With backbones of one's own.

    Args:
        backbones: each "data set=name or folder of a model of transformers".
    """

    backbones: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The command that repeats it, or goes on with it."""
        return super().__str__() + "".join(f" --backbone {each}" for each in self.backbones)


def run(options: AdaptationOptions) -> None:
    """The whole command."""
    require(
        "metafast run rapid-adaptation",
        "hf,plots",
        matplotlib="matplotlib",
        datasets="datasets",
        transformers="transformers",
        PIL="pillow",
    )
    from metafast.experiments import rapid_adaptation as adaptation
    from metafast.experiments.rapid_adaptation import _tasks

    session = Session(options)
    chosen = adaptation.RECIPES[options.recipe]
    unknown = [name for name in options.only if name not in chosen.setups]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(chosen.setups)}", param_hint="--only")
    chosen = _with_backbones(chosen, options.backbones)
    names = tuple(name for name in chosen.setups if not options.only or name in options.only)
    plan = adaptation.Plan(chosen, names, options.seed, options.seeds or chosen.seeds, options.device)
    session.prepare(functools.partial(adaptation.check_folder, plan))
    for name in plan.names:
        setup = chosen.setups[name]
        with session.console.status(f"Reading the data of {setup.title}"):
            try:
                _tasks.training_tasks(setup, setup.shots[0], 0)  # before anything is trained
                for target in setup.targets:
                    _tasks.held_out_tasks(setup, setup.target_shots[0], 0, target)
            except (OSError, ImportError, ValueError) as error:
                raise typer.BadParameter(
                    f"{setup.title} cannot be run: {error}\nWithout it: --only with the others", param_hint="--recipe"
                ) from None

    def results(done: dict[str, Any]) -> dict[str, Any]:
        return adaptation.results(plan, options.output, done)

    def title(name: str) -> str:
        return chosen.setups[name].title

    session.conduct(
        Experiment(
            names=plan.names,
            seeds=plan.seeds,
            about=chosen.about,
            key=lambda job: str(job.setting),
            title=title,
            run=functools.partial(adaptation.run, plan),
            results=results,
            table=adaptation.table,
            write=adaptation.write,
        )
    )


def _with_backbones(recipe: Recipe, given: tuple[str, ...]) -> Recipe:
    setups = dict(recipe.setups)
    for each in given:
        name, _, model = each.partition("=")
        if name not in setups or not model:
            raise typer.BadParameter(
                f"must be DATASET=MODEL with one of {', '.join(setups)}, got {each!r}", param_hint="--backbone"
            )
        found = Path(model).expanduser()
        setups[name] = replace(setups[name], backbone=str(found.resolve()) if found.is_dir() else model)
    return replace(recipe, setups=setups)
