"""`metafast run`: the experiments."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _experiments() -> None:
    """Experiments as one command each, with records that go on where they were interrupted."""


class Recipe(str, Enum):
    """How large."""

    smoke = "smoke"
    reduced = "reduced"
    full = "full"


class Experiment(str, Enum):
    """One of the three."""

    resnet18 = "resnet18"
    bert = "bert"
    lstm = "lstm"


Size = Annotated[
    Recipe,
    typer.Option(help="smoke: 2 minutes on two cores, no result; reduced: 45 minutes; full: days, or a GPU."),
]
Output = Annotated[Path, typer.Option(help="Folder for the report, the plots and the run records.")]
Workers = Annotated[int, typer.Option(min=0, help="Trainings side by side; 0: one per CPU core.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command("online-tuning")
def online_tuning(
    recipe: Size = Recipe.smoke,
    only: Annotated[
        list[Experiment] | None, typer.Option(help="One experiment; may be repeated. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed; also of splits and searches.")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per method. Default: the recipe's.")] = None,
    output: Output = Path("metafast-online-tuning"),
    workers: Workers = 0,
    device: Device = "cpu",
) -> None:
    """Tune hyperparameters while training; compare with static ones, random search and a grid.

    ResNet-18 on CIFAR-10, BERT on IMDB, an LSTM on electricity load. Writes run records, results.json, plots and one
    self-contained HTML report. Called again with the same options it does what is missing: after an interruption, with
    more seeds, or with another experiment.
    """
    from metafast.cli import _run_tuning
    from metafast.cli._run_experiment import Options

    names = tuple(each.value for each in only or ())
    _run_tuning.run(Options("online-tuning", recipe.value, names, seed, seeds, output, workers, device))


@app.command("lr-adaptation")
def lr_adaptation(
    recipe: Size = Recipe.smoke,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PAIR", help="One pair, such as mnist/vit; may be repeated. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed; also of splits and the grid.")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per method. Default: the recipe's.")] = None,
    output: Output = Path("metafast-lr-adaptation"),
    workers: Workers = 0,
    device: Device = "cpu",
) -> None:
    """Set the learning rate by a meta-learner; compare with fixed rates, schedules and adaptive optimizers.

    ResNet-18, ViT, LSTM, GRU, BERT and RoBERTa on pictures, texts, relations and tags that the controller has not
    learned from, and starting rates from 1e-6 to 1. Writes run records, results.json, plots and one self-contained
    HTML report. Called again with the same options it does what is missing: after an interruption, with more seeds, or
    with another pair.
    """
    from metafast.cli import _run_rates
    from metafast.cli._run_experiment import Options

    _run_rates.run(Options("lr-adaptation", recipe.value, tuple(only or ()), seed, seeds, output, workers, device))


@app.command("hp-prediction")
def hp_prediction(
    recipe: Annotated[
        Recipe,
        typer.Option(help="smoke: a minute, no result; reduced: half an hour on one core; full: hours."),
    ] = Recipe.smoke,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE", help="collected, taskset or svm; may be repeated. Default: all."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Folder of the collected tasks, as metafast hpo collect makes it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed of the searches.")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Searches per method. Default: the recipe's.")] = None,
    output: Output = Path("metafast-hp-prediction"),
    workers: Annotated[int, typer.Option(min=0, help="Searches side by side; 0: one per CPU core.")] = 0,
) -> None:
    """Predict hyperparameters from a few runs; compare with grid, random search, Optuna's samplers and transfer.

    Searches are replayed on tables where every configuration was trained: those of metafast hpo collect, TaskSet's
    Adam8p and SVMs on 40 data sets, a data set left out at a time. Writes run records, results.json, plots and one
    self-contained HTML report. Called again with the same options it does what is missing: after an interruption, or
    with more seeds.
    """
    from metafast.cli import _run_prediction

    _run_prediction.run(
        _run_prediction.PredictionOptions(
            "hp-prediction", recipe.value, tuple(only or ()), seed, seeds, output, workers, "cpu", table
        )
    )


@app.command("rapid-adaptation")
def rapid_adaptation(
    recipe: Size = Recipe.smoke,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET", help="omniglot, cifar or fewrel; may be repeated. Default: all."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET=MODEL",
            help="A model of transformers, by name or folder, in place of the small one pre-trained here.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed; also of the backbones.")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Meta-trainings per method. Default: the recipe's.")] = None,
    output: Output = Path("metafast-rapid-adaptation"),
    workers: Annotated[int, typer.Option(min=0, help="Jobs side by side; 0: one per CPU core.")] = 0,
    device: Device = "cpu",
) -> None:
    """Adapt a frozen model by a meta-network; compare with fine-tuning, LoRA, a probe, ProtoNet, MAML and ANIL.

    Omniglot 20-way, CIFAR-FS 5-way, FewRel 5-way, 1 and 5 shot, and transfer to MNIST, Fashion-MNIST, CIFAR-10 and
    CLINC intents. Writes run records, results.json, plots and one self-contained HTML report. Called again with the
    same options it does what is missing: after an interruption, with more seeds, or with another data set.
    """
    from metafast.cli import _run_adaptation

    _run_adaptation.run(
        _run_adaptation.AdaptationOptions(
            "rapid-adaptation",
            recipe.value,
            tuple(only or ()),
            seed,
            seeds,
            output,
            workers,
            device,
            tuple(backbone or ()),
        )
    )
