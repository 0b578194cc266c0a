"""`metafast adapt train`: meta-training, the test, plain fine-tuning beside it, and what is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from metafast.cli._adapt_setup import META, Settings, load_backbone, make_learner, tasks_of
from metafast.cli._maml_setup import check_device
from metafast.cli._run_name import run_name
from metafast.maml import evaluate
from metafast.runs import versions
from metafast.runs._checkpoint import replace_file

if TYPE_CHECKING:
    from metafast.adapt import Backbone, MetaFineTuner
    from metafast.maml import Evaluation
    from metafast.maml.trainer import Training

RATES = (0.001, 0.01, 0.1, 0.5, 2.0)  # of plain fine-tuning; the best on validation tasks is tested


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
    baseline: bool


def train(settings: Settings, plan: Plan) -> None:
    """Train, test, compare, write."""
    console = Console()
    name = name_of(settings, plan)
    try:
        check_device(settings.device)
        base, tokenizer = load_backbone(settings.backbone)
        parts = {split: tasks_of(settings, tokenizer, split) for split in ("train", "val", "test")}
        meta = make_learner(settings, base, settings.net).to(settings.device)
        console.print(f"[bold]metafast adapt[/]: {settings.title}, seed {settings.seed}", highlight=False)
        report = meta.report()
        console.print(
            f"meta-network: {report.network:,} parameters, {100 * report.share:.2f} % of the backbone", highlight=False
        )
        ended = meta.meta_train(
            parts["train"], settings.iterations, val=parts["val"], val_every=plan.val_every,
            val_episodes=plan.val_episodes, patience=plan.patience, max_minutes=plan.max_minutes,
            output=plan.output / "runs", name=name, resume=plan.resume, config={"settings": settings.plain()},
            tags=[settings.dataset],
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"\nInterrupted; go on with the same command and --resume (run {name}).")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(f"{ended.steps} meta-steps in {ended.seconds:.0f} s (ended by {ended.stopped})", highlight=False)
    result = evaluate(meta, parts["test"], plan.test_episodes, per_step=True)
    rows: dict[str, tuple[float | None, Evaluation]] = {"meta-network": (None, result)}
    if plan.baseline:
        with console.status("Testing plain fine-tuning"):
            rows["fine-tuning, the same adapters"] = fine_tuned(settings, base, parts, plan)
    show(console, settings, rows)
    meta.save(ended.path / META)
    files = write(ended, settings, meta, rows)
    console.print("Wrote:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


def fine_tuned(settings: Settings, base: Backbone, parts: dict[str, Any], plan: Plan) -> tuple[float, Evaluation]:
    """Plain gradient descent with as many steps on the same adapters, at the best of `RATES` on validation tasks."""

    def learner(rate: float) -> MetaFineTuner:
        return make_learner(settings, base, None, inner_lr=rate).to(settings.device)

    found = {rate: evaluate(learner(rate), parts["val"], plan.val_episodes).score.mean for rate in RATES}
    best = max(found, key=lambda rate: found[rate])
    return best, evaluate(learner(best), parts["test"], plan.test_episodes, per_step=True)


def name_of(settings: Settings, plan: Plan) -> str:
    """The folder's name."""
    stem = f"{settings.dataset.replace('/', '-')}-{settings.ways}w{settings.shots}s-adapt-seed{settings.seed}"
    return run_name(
        plan.output / "runs", stem, settings.plain(), name=plan.name, resume=plan.resume, tag="adapt",
        done=lambda run: (run.path / META).exists(),
    )  # fmt: skip


def show(console: Console, settings: Settings, rows: dict[str, tuple[float | None, Evaluation]]) -> None:
    """The table: the meta-network beside what it must beat."""
    episodes = next(iter(rows.values()))[1].score.n
    table = Table(title=f"{settings.title}: test accuracy, 95 % interval over {episodes} episodes")
    table.add_column("method")
    for step in range(settings.steps + 1):
        table.add_column("before" if step == 0 else f"step {step}", justify="right")
    table.add_column("rate", justify="right")
    for name, (rate, result) in rows.items():
        cells = [f"{100 * score.mean:.1f}" for score in result.per_step[:-1]] + [str(result)]
        table.add_row(name, *cells, "" if rate is None else f"{rate:g}")
    console.print(table)


def write(
    ended: Training, settings: Settings, meta: MetaFineTuner, rows: dict[str, tuple[float | None, Evaluation]]
) -> list[Path]:
    """results.json and, where matplotlib is there, the plot; the meta-network is there already."""
    folder, report = ended.path, meta.report()
    results = {
        "settings": settings.plain(),
        "training": ended.summary(),
        "parameters": {"backbone": report.base, "network": report.network, "starts": report.starts},
        "test": {name: {"rate": rate, **result.summary()} for name, (rate, result) in rows.items()},
        "versions": versions(),
    }  # fmt: skip
    text = json.dumps(results, indent=2) + "\n"
    replace_file(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8"))
    files = [folder / META, folder / "results.json"]
    try:
        from metafast.plots import adaptation_curves, save

        figure = adaptation_curves(
            {name: result.per_step for name, (_, result) in rows.items()}, title=settings.title,
            ylabel="test accuracy (%)", percent=True, trained=settings.steps,
        )  # fmt: skip
        files += save(figure, folder / "adaptation")
    except ImportError:  # matplotlib is an extra
        pass
    return files
