"""What the studies share: one training run, a results file that resumes, and progress."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn import functional as F

from metafast import data, runs

from .pairs import Pair

RESULTS = Path(__file__).resolve().parents[1] / "results"
RATES = tuple(10.0**k for k in range(-6, 1))
Row = dict[str, Any]


def rounded(value: float, digits: int = 6) -> float | None:
    """A number for JSON: None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


@torch.no_grad()
def evaluate(model: nn.Module, samples: data.Samples, batch: int = 1024) -> tuple[float, float]:
    """(accuracy in percent, mean cross-entropy)."""
    model.eval()
    right, loss = 0, 0.0
    for start in range(0, len(samples.labels), batch):
        logits = model(samples.inputs[start : start + batch])
        labels = samples.labels[start : start + batch]
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    model.train()
    return 100.0 * right / len(samples.labels), loss / len(samples.labels)


def train(
    pair: Pair,
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    seed: int,
    *,
    cosine: bool = False,
    max_steps: int | None = None,
) -> Row:
    """Trains once and returns accuracies, losses, the learned rates over time and the cost."""
    parts = pair.parts()
    model = pair.model(seed)
    optimizer = make(model.parameters())
    batches = data.Batches(*parts.train, batch_size=pair.batch_size, seed=seed, drop_last=True)
    steps = pair.epochs * len(batches)
    steps = steps if max_steps is None else min(steps, max_steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    curve: list[list[float | None]] = []
    running, weight = 0.0, 0.0
    begin = time.perf_counter()
    for step, (inputs, labels) in zip(range(1, steps + 1), batches.forever(), strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        running, weight = 0.98 * running + 0.02 * float(loss.detach()), 0.98 * weight + 0.02
        if step % max(1, steps // 25) == 0:
            curve.append([step, rounded(running / weight)])
    seconds = time.perf_counter() - begin
    val, test = evaluate(model, parts.val), evaluate(model, parts.test)
    row: Row = {
        "steps": steps,
        "val_accuracy": rounded(val[0]),
        "val_loss": rounded(val[1]),
        "test_accuracy": rounded(test[0]),
        "test_loss": rounded(test[1]),
        "seconds": round(seconds, 2),
        "train_loss_curve": curve,
    }
    history = getattr(optimizer, "lr_history", None)
    if history and optimizer.param_groups[0].get("hypergrad"):
        every = max(1, len(history) // 40)
        row["lr_curve"] = [[step, *map(rounded, rates[:1])] for step, rates in history[::every]]
        row["final_lr"] = [rounded(rate) for rate in history[-1][1]]
    return row


class Results:
    """A JSON file of rows by key, rewritten atomically after each; a second start goes on where the first stopped."""

    def __init__(self, path: Path, config: Row) -> None:
        self.path = path
        self.content: Row = {"config": config, "rows": {}}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["config"] != config:
                raise SystemExit(
                    f"{path} holds results of another configuration: move it away, or give another --output"
                )
            self.content = old

    @property
    def rows(self) -> dict[str, Row]:
        """Rows by key."""
        rows: dict[str, Row] = self.content["rows"]
        return rows

    def add(self, key: str, row: Row) -> None:
        """Adds a row with what it depends on."""
        facts = runs.versions()
        self.rows[key] = {**row, "commit": facts.pop("commit")}
        self.content["machine"] = {**facts, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(_one_row_per_line(self.content), encoding="utf-8")
        os.replace(part, self.path)


def _one_row_per_line(content: Row) -> str:
    def dump(value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    rows = ",\n".join(f"  {dump(key)}: {dump(row)}" for key, row in content["rows"].items())
    parts = [f" {dump(key)}: {dump(value)}" for key, value in content.items() if key != "rows"]
    return "{\n" + ",\n".join([*parts, f' "rows": {{\n{rows}\n }}']) + "\n}\n"


def work_off(results: Results, jobs: Sequence[tuple[str, Callable[[], Row]]], title: str) -> None:
    """Runs the jobs whose key has no row yet."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=len(jobs))
        for key, job in jobs:
            progress.update(task, description=f"{title} {key}")
            if key not in results.rows:
                results.add(key, job())
            progress.advance(task)


def parser(description: str | None, output: str, seeds: int = 3) -> argparse.ArgumentParser:
    """The options that every study has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0 on")
    arguments.add_argument("--output", type=Path, default=RESULTS / output, help="results file; plots go beside it")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--max-steps", type=int, default=None, help="cut every run short, for a trial of the script")
    return arguments


def mean(values: Iterable[float | None]) -> float:
    """The mean; a missing value (a diverged run) makes it NaN."""
    listed = [math.nan if value is None else value for value in values]
    return sum(listed) / len(listed)


def spread(values: Iterable[float | None]) -> float:
    """Sample standard deviation, 0 for one value."""
    listed = [math.nan if value is None else value for value in values]
    centre = sum(listed) / len(listed)
    return math.sqrt(sum((value - centre) ** 2 for value in listed) / max(1, len(listed) - 1))
