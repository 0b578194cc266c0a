"""`metafast maml`: meta-train, test and use few-shot learners."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Algorithm(str, Enum):
    """The names of `metafast.maml.ALGORITHMS`, which would load torch, and ProtoNet."""

    maml = "maml"
    fomaml = "fomaml"
    anil = "anil"
    boil = "boil"
    reptile = "reptile"
    metasgd = "metasgd"
    mamlpp = "mamlpp"
    imaml = "imaml"
    alfa = "alfa"
    protomaml = "protomaml"
    protonet = "protonet"


class Model(str, Enum):
    """What is meta-learned."""

    auto = "auto"
    conv4 = "conv4"
    fc = "fc"
    resnet12 = "resnet12"
    mlp = "mlp"
    text = "text"


class Engine(str, Enum):
    """What runs the inner loop."""

    auto = "auto"
    compiled = "compiled"
    loop = "loop"
    vmap = "vmap"


OUTPUT = Path("metafast-maml")
Output = Annotated[Path, typer.Option(help="Folder for records, plots and results.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of weights and episodes.")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, as `metafast maml train` names it.")]


@app.command()
def train(
    dataset: Annotated[
        str, typer.Option(help="omniglot, cifar_fs, few_rel, clinc_oos, sinusoid, or a data set with labels.")
    ] = "omniglot",
    ways: Annotated[int, typer.Option(min=2, help="Classes of a task.")] = 5,
    shots: Annotated[int, typer.Option(min=1, help="Support examples of a class (of a task, for regression).")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Query examples of a class.")] = 15,
    tasks: Annotated[int | None, typer.Option(min=1, help="Tasks of a meta-batch. Default: by data set.")] = None,
    algorithm: Annotated[Algorithm, typer.Option(help="See the documentation for what each does.")] = Algorithm.maml,
    model: Annotated[Model, typer.Option(help="auto: the usual one for the data set.")] = Model.auto,
    inner_lr: Annotated[float | None, typer.Option(help="Rate of adaptation. Default: by data set.")] = None,
    inner_steps: Annotated[int | None, typer.Option(min=1, help="Steps of adaptation while training.")] = None,
    test_steps: Annotated[int | None, typer.Option(min=1, help="Steps of adaptation in tests.")] = None,
    order: Annotated[int, typer.Option(min=1, max=2, help="2: the exact meta-gradient; 1: first order.")] = 2,
    meta_lr: Annotated[float | None, typer.Option(help="Rate of Adam on the meta-parameters.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Meta-steps.")] = 10_000,
    cosine: Annotated[bool, typer.Option(help="Lower the meta rate along a half cosine.")] = True,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the meta-gradient.")] = 10.0,
    val_every: Annotated[int | None, typer.Option(min=1, help="Meta-steps between validations.")] = None,
    val_episodes: Annotated[int, typer.Option(min=2, help="Episodes of a validation.")] = 200,
    test_episodes: Annotated[int, typer.Option(min=2, help="Episodes of the test, and of each baseline's.")] = 600,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many validations without a gain.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop the training after this time.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train and test fine-tuning, linear probe and ProtoNet.")] = True,
    baseline_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps of each baseline. Default: --iterations, at most 2000."),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="auto: compiled where the model allows.")] = Engine.auto,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    output: Output = OUTPUT,
    name: Annotated[str | None, typer.Option(help="Folder of the run. Default: made of the options.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished such run.")] = False,
) -> None:
    """Meta-train a few-shot learner, test it with 95 % intervals, and compare it with what it must beat.

    Writes a record with checkpoints, the best weights, results.json and plots. An interrupted training goes on bit for
    bit with --resume. Under torchrun each process takes a share of the tasks.
    """
    from metafast.cli import _maml_setup, _maml_train

    settings = _maml_setup.Settings.of(
        dataset=dataset, ways=ways, shots=shots, queries=queries, tasks=tasks, algorithm=algorithm.value,
        model=model.value, inner_lr=inner_lr, inner_steps=inner_steps, test_steps=test_steps, order=order,
        meta_lr=meta_lr, iterations=iterations, cosine=cosine, clip=clip, seed=seed, engine=engine.value, device=device,
    )  # fmt: skip
    plan = _maml_train.Plan(
        output=output, name=name, resume=resume, val_every=val_every, val_episodes=val_episodes,
        test_episodes=test_episodes, patience=patience, max_minutes=max_minutes, baselines=baselines,
        baseline_steps=min(iterations, 2000) if baseline_steps is None else baseline_steps,
    )  # fmt: skip
    _maml_train.train(settings, plan)


@app.command(name="eval")
def evaluate(
    run: RunFolder,
    episodes: Annotated[int, typer.Option(min=2, help="Test episodes.")] = 600,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of adaptation. Default: the run's.")] = None,
    split: Annotated[str, typer.Option(help="test, val or train classes.")] = "test",
    ways: Annotated[int | None, typer.Option(min=2, help="Classes of a task, at most the run's.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Support examples. Default: the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the episodes. Default: the run's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for what it writes. Default: the run's.")] = None,
) -> None:
    """Test a trained learner: the metric with its 95 % interval, before adaptation and after each step."""
    from metafast.cli import _maml_use

    _maml_use.evaluate(run, episodes, steps, split, ways, shots, seed, output)


@app.command()
def adapt(
    run: RunFolder,
    support: Annotated[
        Path | None,
        typer.Option(help="A folder with one folder of images per class, or a .csv of x,y (or text,label) rows."),
    ] = None,
    query: Annotated[Path | None, typer.Option(help="Images (a folder), or a .csv, to predict.")] = None,
    task: Annotated[int, typer.Option(min=0, help="Without --support: number of a test task.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of adaptation. Default: the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the test tasks. Default: the run's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the model. Default: the run's.")] = None,
) -> None:
    """Adapt a trained learner to examples of your own (or to one test task) and save the adapted model.

    Writes adapted.safetensors, an ordinary state dict, and predictions.json for the query examples.
    """
    from metafast.cli import _maml_use

    _maml_use.adapt(run, support, query, task, steps, seed, output)


class Recipe(str, Enum):
    """Which data sets the transfer experiment uses."""

    auto = "auto"
    hub = "hub"
    local = "local"


@app.command()
def transfer(
    recipe: Annotated[
        Recipe,
        typer.Option(help="hub: the named photo sets; local: small ones; auto: hub where it is there."),
    ] = Recipe.auto,
    backbone: Annotated[
        str, typer.Option(help="A model of transformers, such as microsoft/resnet-50, or `own`: pre-trained here.")
    ] = "auto",
    iterations: Annotated[int, typer.Option(min=1, help="Meta-steps.")] = 1000,
    ways: Annotated[int, typer.Option(min=2, help="Classes of a task.")] = 5,
    shots: Annotated[int, typer.Option(min=1, help="Support examples of a class.")] = 5,
    queries: Annotated[int, typer.Option(min=1, help="Query examples of a class.")] = 15,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of a meta-batch.")] = 4,
    meta_lr: Annotated[float, typer.Option(help="Rate of Adam on the meta-parameters.")] = 0.001,
    inner_lr: Annotated[float, typer.Option(help="Rate of fine-tuning.")] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Steps of fine-tuning.")] = 10,
    pretrain_steps: Annotated[int, typer.Option(min=1, help="Supervised steps, also of the baseline.")] = 2000,
    episodes: Annotated[int, typer.Option(min=2, help="Test episodes of each data set.")] = 600,
    threshold: Annotated[float | None, typer.Option(help="Accuracy to reach. Default: 90 % of the best.")] = None,
    limit: Annotated[int, typer.Option(min=20, help="Most images of a class that are used.")] = 200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    output: Output = Path("metafast-transfer"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the one in the same folder.")] = False,
) -> None:
    """Meta-train on some data sets, choose on others, test on unseen ones, against random and supervised starts.

    Reports accuracy, F1, steps and time to a threshold, and device-hours, and says which data and backbone were used.
    """
    from metafast.cli import _maml_transfer

    _maml_transfer.transfer(
        recipe.value, backbone, iterations=iterations, ways=ways, shots=shots, queries=queries, tasks=tasks,
        meta_lr=meta_lr, inner_lr=inner_lr, steps=steps, pretrain_steps=pretrain_steps, episodes=episodes,
        threshold=threshold, limit=limit, device=device, seed=seed, output=output, resume=resume,
    )  # fmt: skip
