"""`metafast adapt evaluate`, `adapt`, `export` and `report`: what a trained meta-network is good for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from metafast.adapt import MetaFineTuner, TaskModel
from metafast.cli._adapt_setup import Settings, restore, tasks_of
from metafast.cli._maml_setup import TEST_SEED
from metafast.cli._maml_use import _folder, _images, _list, _predictions, _to, _write_predictions
from metafast.maml import evaluate as evaluate_learner
from metafast.runs import versions
from metafast.runs._checkpoint import replace_file


def evaluate(
    run: Path, episodes: int, steps: int | None, split: str, dataset: str | None, ways: int | None, shots: int | None,
    seed: int | None, output: Path | None,
) -> None:  # fmt: skip
    """Test a run's meta-network and write what it reached."""
    console = Console()
    learner, settings, tokenizer = restore(run)
    steps = settings.steps if steps is None else steps
    seed = TEST_SEED if seed is None else seed
    settings = replace(
        settings, dataset=dataset or settings.dataset, ways=ways or settings.ways, shots=shots or settings.shots
    )
    try:
        tasks = tasks_of(settings, tokenizer, split, tasks=min(50, episodes), seed=seed)
        result = evaluate_learner(learner, tasks, episodes, steps=steps, per_step=True)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(f"{settings.title}, {split} classes, {episodes} episodes: [bold]{result}[/]", highlight=False)
    for step, score in enumerate(result.per_step):
        console.print(f"  after {step} steps: {100 * score.mean:.2f} ± {100 * score.half:.2f} %", highlight=False)
    document = {
        "run": run.name, "dataset": settings.dataset, "split": split, "steps": steps, "ways": settings.ways,
        "shots": settings.shots, "seed": seed, **result.summary(), "versions": versions(),
    }  # fmt: skip
    file = _folder(output or run) / f"eval_{settings.dataset.replace('/', '-')}_{split}.json"
    text = json.dumps(document, indent=2) + "\n"
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
    _list(console, [file])


def adapt(
    run: Path, support: Path | None, query: Path | None, task: int, steps: int | None, seed: int | None,
    output: Path | None,
) -> None:  # fmt: skip
    """Adapt to one task, and write its numbers and what the model predicts."""
    console = Console()
    learner, settings, tokenizer = restore(run)
    model, names, asked = _adapted(console, learner, settings, tokenizer, support, query, task, steps, seed)
    folder = _folder(output or run)
    state = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    files = [folder / "adapted.safetensors"]
    about = {"classes": json.dumps(names), "backbone": settings.backbone, "adapt": settings.adapt_text}
    replace_file(files[0], lambda path: save_file(state, path, metadata=about))
    if asked is not None:
        query_x, query_y, query_names = asked
        with torch.no_grad():
            outputs = model(_to(query_x, model)).cpu()
        document = _predictions(outputs, query_y, names, query_names, regression=False)
        files.append(_write_predictions(console, document, folder))
    _list(console, files)


def export(
    run: Path, support: Path | None, task: int, steps: int | None, seed: int | None, merged: bool, output: Path
) -> None:
    """Adapt to one task, and write its adapters for peft, or the whole model with them folded in."""
    console = Console()
    learner, settings, tokenizer = restore(run)
    model, names, _ = _adapted(console, learner, settings, tokenizer, support, None, task, steps, seed)
    folder = _folder(output)
    if not merged:
        try:
            files = model.export(folder)
        except ValueError as error:
            raise typer.BadParameter(f"{error}; or give --merged", param_hint="RUN") from None
    else:
        whole = model.merge()
        state = {name: value.detach().cpu().contiguous().clone() for name, value in whole.state_dict().items()}
        files = [folder / "merged.safetensors"]
        replace_file(files[0], lambda path: save_file(state, path, metadata={"classes": json.dumps(names)}))
        inner: Any = whole.base.model
        if hasattr(inner, "save_pretrained"):
            inner.save_pretrained(folder)
            files += sorted(path for path in folder.iterdir() if path not in files)
    _list(console, files)


def report(run: Path) -> None:
    """Print what adapts, and how large the meta-network is."""
    learner, settings, _ = restore(run)
    console = Console()
    console.print(f"[bold]{run.name}[/]: {settings.title}", highlight=False)
    console.print(str(learner.report()), highlight=False, markup=False)


def _adapted(
    console: Console, learner: MetaFineTuner, settings: Settings, tokenizer: Any, support: Path | None,
    query: Path | None, task: int, steps: int | None, seed: int | None,
) -> tuple[TaskModel, list[str], tuple[Tensor, Tensor | None, list[str] | None] | None]:  # fmt: skip
    """The model adapted to a folder or a test task, the classes' names, and the examples to predict."""
    names: list[str] = []
    asked: tuple[Tensor, Tensor | None, list[str] | None] | None = None
    try:
        if support is None:
            if query is not None:
                raise ValueError("--query needs --support: without it, the query examples are those of the test task")
            seed = TEST_SEED if seed is None else seed
            found = tasks_of(settings, tokenizer, "test", tasks=1, seed=seed)[task].task(0)
            x, y, asked = found.support_x, found.support_y, (found.query_x, found.query_y, None)
            console.print(f"test task {task}: {len(x)} support and {len(asked[0])} query examples", highlight=False)
        else:
            sample = tasks_of(settings, tokenizer, "test", tasks=1)
            if sample[0].support_x.dtype is torch.int64:
                raise ValueError("--support takes images; adapt to texts in Python: meta.adapt(x, y)")
            shape = tuple(sample[0].support_x.shape[2:])
            x, y, names, _ = _images(support, sample.source, shape)
            if query is not None:
                query_x, known, folders, files = _images(query, sample.source, shape, labelled=False)
                labels = [names.index(folders[int(n)]) for n in known] if set(folders) <= set(names) else None
                asked = (query_x, torch.tensor(labels) if labels and folders else None, files)
        model = learner.adapt(_to(x, learner), y.to(next(learner.parameters()).device), steps=steps)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    return model.eval(), names, asked
