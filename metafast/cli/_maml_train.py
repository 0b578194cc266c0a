"""`metafast maml train`: the training, the test, the baselines, and what is written of them."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from metafast.cli._maml_setup import Settings, check_device, make_learner, make_model, tasks_of
from metafast.cli._run_name import run_name
from metafast.maml import evaluate
from metafast.maml._parallel import world
from metafast.maml.baselines import BASELINES, Baseline, run_baselines
from metafast.maml.trainer import Trainer, Training
from metafast.runs import Run, versions
from metafast.runs._checkpoint import replace_file

if TYPE_CHECKING:
    from metafast.maml import Evaluation, MetaLearner


@dataclass(frozen=True)
class Plan:
    """How the training is run; the weights that it reaches do not depend on it, but for its end."""

    output: Path
    name: str | None
    resume: bool
    val_every: int | None
    val_episodes: int
    test_episodes: int
    patience: int | None
    max_minutes: float | None
    baselines: bool
    baseline_steps: int


def train(settings: Settings, plan: Plan) -> None:
    """Train, test, compare, write."""
    console = Console()
    with _processes():
        rank, size = world()
        lead = rank == 0
        names = [name_of(settings, plan)]
        if size > 1:
            torch.distributed.broadcast_object_list(names)  # one process made the folder before another looked
        name = names[0]
        try:
            parts = {
                "train": tasks_of(settings, "train", rank=rank, world_size=size),
                "val": tasks_of(settings, "val"),
                "test": tasks_of(settings, "test"),
            }
            check_device(settings.device)
            model = make_model(settings, parts["train"][0])
            fresh = copy.deepcopy(model)
            maml = make_learner(settings, model)
        except (ValueError, TypeError, OSError) as error:
            raise typer.BadParameter(str(error)) from None
        if lead:
            console.print(f"[bold]metafast maml[/]: {settings.title}, seed {settings.seed}", highlight=False)
        try:
            trainer = Trainer(
                maml,
                parts["train"],
                settings.iterations,
                val=parts["val"],
                optimizer=lambda parameters: torch.optim.Adam(parameters, lr=settings.meta_lr),
                schedule="cosine" if settings.cosine else None,
                clip=settings.clip,
                val_every=plan.val_every,
                val_episodes=plan.val_episodes,
                patience=plan.patience,
                max_minutes=plan.max_minutes,
                output=plan.output / "runs",
                name=name,
                seed=settings.seed,
                config={"settings": settings.plain()},
                tags=[settings.dataset, settings.algorithm],
                resume=plan.resume,
            )
            ended = trainer.fit()
        except KeyboardInterrupt:
            if lead:
                console.print(f"\nInterrupted; go on with the same command and --resume (run {name}).")
            raise typer.Exit(130) from None
        except (ValueError, TypeError, OSError) as error:
            raise typer.BadParameter(str(error)) from None
        if not lead:
            return
    engine = str(maml.explain()).splitlines()[0] if settings.algorithm != "protonet" else ""
    console.print(
        f"{ended.steps} meta-steps in {ended.seconds:.0f} s (ended by {ended.stopped}); {engine}", highlight=False
    )
    result = evaluate(maml, parts["test"], plan.test_episodes, steps=settings.test_steps, per_step=True)
    console.print(f"test, {plan.test_episodes} episodes: [bold]{result}[/]", highlight=False)
    others: dict[str, Baseline] = {}
    if plan.baselines:
        with console.status("Training and testing the baselines"):
            others = _baselines(settings, plan, fresh, parts)
    show(console, settings, result, others)
    files = write(ended, settings, maml, result, others)
    console.print("Wrote:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


def name_of(settings: Settings, plan: Plan) -> str:
    """The folder's name."""
    kind = f"{settings.shots}s" if settings.regression else f"{settings.ways}w{settings.shots}s"
    stem = f"{settings.dataset.replace('/', '-')}-{kind}-{settings.algorithm}-seed{settings.seed}"
    return run_name(
        plan.output / "runs", stem, settings.plain(), name=plan.name, resume=plan.resume, tag="maml",
        done=lambda run: run.status == "finished",
    )  # fmt: skip


def show(console: Console, settings: Settings, result: Evaluation, others: dict[str, Baseline]) -> None:
    """The table: the learner beside what it must beat."""
    unit = "mean squared error" if settings.regression else "test accuracy"
    table = Table(title=f"{settings.title}: {unit}, 95 % interval over {result.score.n} episodes")
    table.add_column("learner")
    table.add_column(unit, justify="right")
    table.add_column("steps", justify="right")
    table.add_column("rate", justify="right")
    adapts = (str(settings.test_steps), f"{settings.inner_lr:g}") if settings.algorithm != "protonet" else ("", "")
    table.add_row(settings.algorithm, str(result), *adapts, style="bold")
    for other in others.values():
        steps, rate = other.settings.get("steps"), other.settings.get("inner_lr")
        table.add_row(
            other.title, str(other.result), "" if steps is None else str(steps), "" if rate is None else f"{rate:g}"
        )
    console.print(table)


def write(
    ended: Training, settings: Settings, maml: MetaLearner, result: Evaluation, others: dict[str, Baseline]
) -> list[Path]:
    """results.json and, where matplotlib is there, the plots; the best weights are there already."""
    folder = ended.path
    results: dict[str, Any] = {
        "settings": settings.plain(),
        "training": ended.summary(),
        "test": result.summary(),
        "baselines": {name: {**other.result.summary(), **other.settings} for name, other in others.items()},
        "engine": str(maml.explain()).splitlines()[0],
        "versions": versions(),
    }  # fmt: skip
    text = json.dumps(results, indent=2) + "\n"
    replace_file(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8"))
    files = [folder / "results.json", folder / "best.safetensors"]
    try:
        from metafast.plots import adaptation_curves, meta_learning_curves, save
    except ImportError:
        return files
    run = Run.open(folder)
    percent = not settings.regression
    metric = "accuracy" if percent else "mse"
    val, half = run.curve(f"val_{metric}"), run.curve("val_half_width")
    words = "accuracy (%)" if percent else "mean squared error"
    try:
        figure = meta_learning_curves(
            {settings.algorithm: (val.steps, val.values, half.values)},
            title=settings.title, ylabel=f"validation {words}", percent=percent, log=not percent,
        )  # fmt: skip
        files += save(figure, folder / "learning_curve")
        curves = {settings.algorithm: result.per_step}
        curves |= {other.title: other.result.per_step for other in others.values() if other.result.per_step}
        figure = adaptation_curves(
            curves, title=settings.title, ylabel=f"test {words}", percent=percent, log=not percent,
            trained=settings.inner_steps,
        )  # fmt: skip
        files += save(figure, folder / "adaptation")
    except ImportError:  # matplotlib is an extra
        pass
    return files


def _baselines(settings: Settings, plan: Plan, model: torch.nn.Module, parts: dict[str, Any]) -> dict[str, Baseline]:
    return run_baselines(
        model.to(settings.device),
        tasks_of(settings, "train"),
        parts["val"],
        parts["test"],
        steps=10,
        training_steps=plan.baseline_steps,
        episodes=plan.test_episodes,
        val_episodes=min(100, plan.val_episodes),
        which=[name for name in BASELINES if not (settings.regression and name == "protonet")],
        seed=settings.seed,
        per_step=True,
        loss="mse" if settings.regression else "cross_entropy",
        engine=settings.engine,
    )


class _processes:
    """Joins the processes of torchrun or `accelerate launch` for a while."""

    def __enter__(self) -> None:
        self._joined = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized()
        if self._joined:
            torch.distributed.init_process_group("gloo")

    def __exit__(self, *error: object) -> None:
        if self._joined:
            torch.distributed.destroy_process_group()
