"""The commands of `metafast adapt` beside `pretrain`: their options."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

OUTPUT = Path("metafast-adapt")
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of weights and episodes.")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, as `metafast adapt train` names it.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of adaptation. Default: the run's.")]
TaskNumber = Annotated[int, typer.Option(min=0, help="Without --support: number of a test task.")]
TaskSeed = Annotated[int | None, typer.Option(min=0, help="Seed of the test tasks. Default: the run's.")]
Support = Annotated[Path | None, typer.Option(help="A folder with one folder of images per class.")]


class Split(str, Enum):
    """Of the classes."""

    train = "train"
    val = "val"
    test = "test"


def train(
    backbone: Annotated[
        str,
        typer.Option(
            help="The frozen model: a file of `metafast adapt pretrain`, or a folder or name of transformers."
        ),
    ],
    dataset: Annotated[
        str, typer.Option(help="omniglot_alphabets, cifar_fs, few_rel, clinc_oos, or a data set with labels.")
    ] = "omniglot_alphabets",
    ways: Annotated[int, typer.Option(min=2, help="Classes of a task.")] = 5,
    shots: Annotated[int, typer.Option(min=1, help="Support examples of a class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Query examples of a class.")] = 5,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of a meta-batch.")] = 32,
    adapt: Annotated[
        list[str] | None,
        typer.Option(help="lora:r=4, film, bias, norm, head, last, all; or PATTERN=KIND, as often as needed."),
    ] = None,
    net: Annotated[
        str, typer.Option(help="Parts joined by +: alfa, mend, conv, transformer, rnn, init, coordinate.")
    ] = "alfa+mend",
    steps: Annotated[int, typer.Option(min=1, help="Steps of adaptation.")] = 5,
    inner_lr: Annotated[float, typer.Option(help="Rate of adaptation, where it starts.")] = 0.01,
    order: Annotated[int, typer.Option(min=1, max=2, help="2: the exact meta-gradient; 1: first order.")] = 2,
    meta_lr: Annotated[float, typer.Option(help="Rate of Adam on the meta-network.")] = 1e-4,
    dropout: Annotated[float, typer.Option(min=0, help="In the meta-network.")] = 0.5,
    weight_decay: Annotated[float, typer.Option(min=0, help="L2 of the meta-network's matrices.")] = 1e-4,
    iterations: Annotated[int, typer.Option(min=1, help="Meta-steps.")] = 10_000,
    chunk: Annotated[int | None, typer.Option(min=1, help="Tasks at once, where memory is short.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens of a text, of models of transformers.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Side of pictures, of models of transformers.")] = None,
    val_every: Annotated[int | None, typer.Option(min=1, help="Meta-steps between validations.")] = None,
    val_episodes: Annotated[int, typer.Option(min=2, help="Episodes of a validation.")] = 200,
    test_episodes: Annotated[int, typer.Option(min=2, help="Episodes of the test.")] = 600,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many validations without a gain.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop the training after this time.")] = None,
    baseline: Annotated[bool, typer.Option(help="Also test plain fine-tuning, its rate chosen from five.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Folder for records, plots and results.")] = OUTPUT,
    name: Annotated[str | None, typer.Option(help="Folder of the run. Default: made of the options.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished such run.")] = False,
) -> None:
    """Meta-train a network that fine-tunes a frozen backbone, test it, and compare it with plain fine-tuning.

    Writes a record with checkpoints, meta.safetensors, results.json and a plot. An interrupted training goes on bit for
    bit with --resume.
    """
    from metafast.cli import _adapt_setup, _adapt_train

    try:
        chosen = _adapt_setup.parse_adapt(adapt or ["lora:r=4"])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--adapt") from None
    settings = _adapt_setup.Settings(
        backbone=backbone, dataset=dataset, ways=ways, shots=shots, queries=queries, tasks=tasks, adapt=chosen, net=net,
        steps=steps, inner_lr=inner_lr, order=order, meta_lr=meta_lr, dropout=dropout, weight_decay=weight_decay,
        iterations=iterations, seed=seed, device=device, length=length, size=size, chunk=chunk,
    )  # fmt: skip
    plan = _adapt_train.Plan(
        output=output, name=name, resume=resume, val_every=val_every, val_episodes=val_episodes,
        test_episodes=test_episodes, patience=patience, max_minutes=max_minutes, baseline=baseline,
    )  # fmt: skip
    _adapt_train.train(settings, plan)


def evaluate(
    run: RunFolder,
    episodes: Annotated[int, typer.Option(min=2, help="Test episodes.")] = 600,
    steps: Steps = None,
    split: Annotated[Split, typer.Option(help="Of the classes.")] = Split.test,
    dataset: Annotated[str | None, typer.Option(help="Another data set, for transfer. Default: the run's.")] = None,
    ways: Annotated[int | None, typer.Option(min=2, help="Classes of a task. Default: the run's.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Support examples. Default: the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the episodes. Default: the run's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for what it writes. Default: the run's.")] = None,
) -> None:
    """Test a trained meta-network: accuracy with its 95 % interval, before adaptation and after each step."""
    from metafast.cli import _adapt_use

    _adapt_use.evaluate(run, episodes, steps, split.value, dataset, ways, shots, seed, output)


def adapt(
    run: RunFolder,
    support: Support = None,
    query: Annotated[Path | None, typer.Option(help="A folder of images to predict.")] = None,
    task: TaskNumber = 0,
    steps: Steps = None,
    seed: TaskSeed = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the model. Default: the run's.")] = None,
) -> None:
    """Adapt to examples of your own (or to one test task) and save the task's numbers.

    Writes adapted.safetensors, adapters and head, and predictions.json for the query examples.
    """
    from metafast.cli import _adapt_use

    _adapt_use.adapt(run, support, query, task, steps, seed, output)


def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    support: Support = None,
    task: TaskNumber = 0,
    steps: Steps = None,
    seed: TaskSeed = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model with the adapters folded in.")] = False,
) -> None:
    """Adapt to one task and write its LoRA adapters in the format of peft, or the merged model."""
    from metafast.cli import _adapt_use

    _adapt_use.export(run, support, task, steps, seed, merged, output)


def report(run: RunFolder) -> None:
    """Print what adapts, and how large the meta-network is."""
    from metafast.cli import _adapt_use

    _adapt_use.report(run)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "adapt": adapt,
    "export": export,
    "report": report,
}
