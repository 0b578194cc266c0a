"""`metafast maml eval` and `metafast maml adapt`: what a trained learner is good for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from metafast import maml as learners
from metafast.cli._maml_setup import TEST_SEED, Settings, make_learner, make_model, tasks_of
from metafast.maml import MetaLearner
from metafast.maml.trainer import BEST, load_weights
from metafast.runs import Run, versions
from metafast.runs._checkpoint import replace_file

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def restore(run: Path) -> tuple[MetaLearner, Settings]:
    """The learner of a run, with its best weights."""
    try:
        settings = Settings.stored(Run.open(run).config)
        if not (run / BEST).is_file():
            raise ValueError(f"{run} has no {BEST}: its training did not reach a validation; go on with it by --resume")
        if settings.device != "cpu" and not torch.cuda.is_available():
            settings = replace(settings, device="cpu")  # a run of a GPU is of use without one
        sample = tasks_of(settings, "test", tasks=1)[0]
        learner = make_learner(settings, make_model(settings, sample))
        load_weights(learner, run / BEST)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="RUN") from None
    return learner, settings


def evaluate(
    run: Path,
    episodes: int,
    steps: int | None,
    split: str,
    ways: int | None,
    shots: int | None,
    seed: int | None,
    output: Path | None,
) -> None:
    """Test a run's learner and write what it reached."""
    console = Console()
    learner, settings = restore(run)
    steps = settings.test_steps if steps is None else steps
    if ways is not None and ways > settings.ways:
        raise typer.BadParameter(f"must be at most {settings.ways}, the run's, got {ways}", param_hint="--ways")
    settings = replace(settings, ways=ways or settings.ways, shots=shots or settings.shots)
    try:
        tasks = tasks_of(settings, split, tasks=min(50, episodes), seed=TEST_SEED if seed is None else seed)
        result = learners.evaluate(learner, tasks, episodes, steps=steps, per_step=True)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    console.print(f"{settings.title}, {split} classes, {episodes} episodes: [bold]{result}[/]", highlight=False)
    for step, score in enumerate(result.per_step):
        text = f"{score.mean:.4f} ± {score.half:.4f}" if settings.regression else _percent(score)
        console.print(f"  after {step} steps: {text}", highlight=False)
    folder = _folder(output or run)
    document = {
        "run": run.name, "split": split, "steps": steps, "ways": settings.ways, "shots": settings.shots,
        "seed": TEST_SEED if seed is None else seed, **result.summary(), "versions": versions(),
    }  # fmt: skip
    files = [folder / f"eval_{split}.json"]
    text = json.dumps(document, indent=2) + "\n"
    replace_file(files[0], lambda path: path.write_text(text, encoding="utf-8"))
    try:
        from metafast.plots import adaptation_curves, save

        words = "mean squared error" if settings.regression else "accuracy (%)"
        figure = adaptation_curves(
            {settings.algorithm: result.per_step},
            title=settings.title, ylabel=f"{split} {words}", percent=not settings.regression, log=settings.regression,
            trained=settings.inner_steps,
        )  # fmt: skip
        files += save(figure, folder / f"eval_{split}")
    except ImportError:  # matplotlib is an extra
        pass
    _list(console, files)


def adapt(
    run: Path,
    support: Path | None,
    query: Path | None,
    task: int,
    steps: int | None,
    seed: int | None,
    output: Path | None,
) -> None:
    """Adapt a run's learner to one task and write the model and its predictions."""
    console = Console()
    learner, settings = restore(run)
    steps = settings.test_steps if steps is None else steps
    like = next(iter(learner.parameters()))
    names: list[str] = []
    query_y: Tensor | None = None
    query_names: list[str] | None = None
    try:
        if support is None:
            if query is not None:
                raise ValueError("--query needs --support: without it, the query examples are those of the test task")
            tasks = tasks_of(settings, "test", tasks=1, seed=TEST_SEED if seed is None else seed)
            x, y, query_x, query_y = tasks[task].task(0)
            console.print(f"test task {task}: {len(x)} support and {len(query_x)} query examples", highlight=False)
        elif settings.regression:
            x, y = _numbers(support)
            query_x, query_y = (None, None) if query is None else _numbers(query)
        else:
            sample = tasks_of(settings, "test", tasks=1)
            if sample[0].support_x.dtype is torch.int64:
                raise ValueError("--support takes images or numbers; adapt to texts in Python: maml.adapt(x, y)")
            x, y, names, _ = _images(support, sample.source, tuple(sample[0].support_x.shape[2:]))
            if len(names) > settings.ways:
                raise ValueError(f"--support has {len(names)} classes, the run's model has {settings.ways}")
            query_x = None
            if query is not None:
                query_x, known, found, query_names = _images(
                    query, sample.source, tuple(sample[0].support_x.shape[2:]), labelled=False
                )
                if found and set(found) <= set(names):
                    query_y = torch.tensor([names.index(found[int(label)]) for label in known])
        model = learner.adapt(_to(x, learner), y.to(like.device), steps=steps)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    folder = _folder(output or run)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    files = [folder / "adapted.safetensors"]
    replace_file(files[0], lambda path: save_file(state, path, metadata={"classes": json.dumps(names)}))
    if query_x is not None:
        with torch.no_grad():
            outputs = model(_to(query_x, model)).cpu()
        document = _predictions(outputs, query_y, names, query_names, settings.regression)
        files.append(_write_predictions(console, document, folder))
    _list(console, files)


def _predictions(
    outputs: Tensor, truth: Tensor | None, names: list[str], query_names: list[str] | None, regression: bool
) -> dict[str, Any]:
    if regression:
        found: dict[str, Any] = {"predictions": outputs.flatten().tolist()}
        if truth is not None:
            found |= {"score_name": "mean squared error", "score": float((outputs - truth).square().mean())}
        return found
    chosen = outputs[:, : len(names)].argmax(1) if names else outputs.argmax(1)
    shares = outputs.softmax(1)
    found = {
        "predictions": [
            {
                **({"file": query_names[row]} if query_names else {}),
                "class": names[label] if names else label,
                "probability": round(float(shares[row, label]), 6),
            }
            for row, label in enumerate(chosen.tolist())
        ]
    }
    if truth is not None:
        found |= {"score_name": "accuracy", "score": float((chosen == truth).double().mean())}
    return found


def _write_predictions(console: Console, document: dict[str, Any], folder: Path) -> Path:
    """predictions.json; says the score where there is one."""
    if "score" in document:
        console.print(f"on the query examples: {document['score_name']} {document['score']:.4f}", highlight=False)
    text = json.dumps(document, indent=2) + "\n"
    replace_file(folder / "predictions.json", lambda path: path.write_text(text, encoding="utf-8"))
    return folder / "predictions.json"


def _to(x: Tensor, model: torch.nn.Module) -> Tensor:
    place = next(model.parameters())
    return x.to(place) if x.is_floating_point() else x.to(place.device)


def _images(
    folder: Path, source: Any, shape: tuple[int, ...], *, labelled: bool = True
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Images of a folder as the model was trained on them: `(x, y, class names, file names)`."""
    from PIL import Image

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with a folder of images per class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if labelled and not classes:
        raise ValueError(f"{folder} must have a folder of images per class, it has none")
    groups = classes or [folder]
    arrays, labels, files = [], [], []
    for number, group in enumerate(groups):
        found = sorted(path for path in group.iterdir() if path.suffix.lower() in IMAGES)
        if not found:
            raise ValueError(f"{group} has no images ({', '.join(IMAGES)})")
        for path in found:
            with Image.open(path) as image:
                picture = image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]))
            pixels = np.asarray(picture, dtype=np.uint8)
            arrays.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
            labels.append(number)
            files.append(str(path.relative_to(folder)))
    scale, shift = (torch.from_numpy(values)[:, None, None] for values in source.affine())
    x = torch.from_numpy(np.stack(arrays)).float() * scale + shift
    return x, torch.tensor(labels), [path.name for path in classes], files


def _numbers(path: Path) -> tuple[Tensor, Tensor]:
    """`(x, y)` of a CSV file with two numbers a row."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    try:
        float(rows[0][0])
    except (ValueError, IndexError):
        rows = rows[1:]  # a header
    try:
        values = torch.tensor([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path} must have two numbers a row: {error}") from None
    if values.dim() != 2 or values.shape[1] != 2:
        raise ValueError(f"{path} must have two numbers a row, got {len(rows)} rows such as {rows[:1]}")
    return values[:, :1], values[:, 1:]


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written to ({error.strerror})", param_hint="--output") from None
    return path


def _percent(score: Any) -> str:
    return f"{100 * score.mean:.2f} ± {100 * score.half:.2f} %"


def _list(console: Console, files: list[Path]) -> None:
    console.print("Wrote:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
