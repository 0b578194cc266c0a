"""The initial runs of `Predictor.tune`: one batched program, or a function on a pool of processes."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from metafast._trainings import run_all
from metafast.hpo._batched import Metric, batched_train
from metafast.hpo._engines import Loss
from metafast.hpo._features import task_features
from metafast.hpo._features_model import architecture_features
from metafast.hpo._judge import Judge
from metafast.hpo._records import INNER, STOPPED
from metafast.hpo._types import Config, Observation
from metafast.runs import Run

FRACTION, SECONDS = "fraction", "seconds"


@dataclass(frozen=True)
class BatchedTask:
    """What `Predictor.tune` trains as one program: `batched_train` with everything but the configurations.

    Args:
        build: makes the model of a configuration.
        train: inputs and targets.
        val: likewise; scores are measured on it.
        epochs: of a whole training.
        loss: as in `batched_train`.
        metric: likewise.
        engine: likewise.

    Example:
        >>> import torch
        >>> x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
        >>> task = BatchedTask(lambda config: nn.Linear(8, 3), (x, y), (x, y), epochs=2)
        >>> sorted(task.features())[:2]
        ['channel_likeness', 'channel_spread']
    """

    build: Callable[[Config], nn.Module]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    epochs: int = 10
    loss: str | Loss = "cross_entropy"
    metric: str | Metric | None = None
    engine: str = "auto"

    def features(self, config: Config | None = None) -> dict[str, float]:
        """Features of the data, and of the architecture of one configuration where it is given."""
        found = task_features(self.train)
        return found if config is None else found | architecture_features(self.build(dict(config)))


class Plan(NamedTuple):
    """What is trained, and how.

    Args:
        configs: the configurations.
        fraction: of the whole budget that is trained for.
        metric: name of the scores.
        seed: of the trainings.
        root: folder of the records.
    """

    configs: list[Config]
    fraction: float
    metric: str
    seed: int
    root: Path


def name_of(config: Config) -> str:
    """Folder name of a configuration's record."""
    text = json.dumps(config, sort_keys=True, default=str)
    return "run-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def read(root: Path, metric: str) -> list[Observation]:
    """What the records in a folder say: the curves of the runs that ended, one after the other."""
    found = []
    for log in sorted(root.glob("run-*/run.jsonl")):
        found += observations(Run.open(log.parent), metric)
    return found


def observations(run: Run, metric: str) -> list[Observation]:
    """The curve of a run that has finished or failed; of another, nothing."""
    if run.status not in ("finished", "failed"):
        return []
    config = run.config[INNER]
    points = [
        Observation(config, row[metric], row[FRACTION], row[SECONDS])
        for row in run.rows() if row["kind"] == "metrics" and metric in row
    ]  # fmt: skip
    if run.status == "failed" or not points:
        points.append(Observation(config, math.nan, 1.0, run.cost["seconds"]))
    return points


def train_batched(task: BatchedTask, plan: Plan, judge: Judge) -> None:
    """Trains the configurations as one program, and records each."""
    epochs = max(1, round(task.epochs * plan.fraction))

    def hopeless(epoch: int, scores: np.ndarray) -> list[int]:
        parts = [
            Observation(config, float(score), (at + 1) / task.epochs)
            for config, row in zip(plan.configs, scores, strict=True) for at, score in enumerate(row)
            if math.isfinite(score)
        ]  # fmt: skip
        return judge.hopeless(plan.configs, parts)

    done = batched_train(
        task.build, plan.configs, task.train, task.val, epochs=epochs, loss=task.loss, metric=task.metric,
        seed=plan.seed, engine=task.engine, on_epoch=hopeless if judge.stops else None,
    )  # fmt: skip
    for row, config in enumerate(plan.configs):
        points = [(at, s) for at, s in enumerate(done.scores[row]) if math.isfinite(s)]
        each = done.seconds[row] / max(1, len(points))
        curve = [(float(s), (at + 1) / task.epochs, (at + 1) * each) for at, s in points]
        _record(plan, config, curve, bool(done.failed[row]), bool(done.stopped[row]), engine=done.engines[row])


@dataclass(frozen=True)
class _One:
    """A run of a user's function; pickled."""

    train: Callable[..., Any]
    config: Config
    plan: Plan
    judge: Judge


def train_pool(
    train: Callable[..., Any], plan: Plan, judge: Judge, workers: int, progress: Callable[[Config], None]
) -> None:
    """Calls a function for every configuration, in this process or on a pool, and records what came."""
    jobs = [_One(train, config, plan, judge) for config in plan.configs]
    run_all(jobs, _train_one, plan.root, max(1, workers), lambda job, _: progress(job.config))


def takes_report(train: Callable[..., Any]) -> bool:
    """Whether a function takes `report` besides the configuration."""
    try:
        parameters = inspect.signature(train).parameters.values()
    except (TypeError, ValueError):
        return False
    return len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) >= 2


def _train_one(job: _One, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    plan, began, stopped = job.plan, time.perf_counter(), False
    curve: list[tuple[float, float, float]] = []

    def report(fraction: float, score: float) -> bool:
        """Tells a score at a part of the whole budget; returns whether to go on."""
        nonlocal stopped
        if not 0 < fraction <= 1 or (curve and fraction <= curve[-1][1]):
            raise ValueError(f"fraction must rise within (0, 1], got {fraction!r} after {[c[1] for c in curve]}")
        curve.append((float(score), float(fraction), time.perf_counter() - began))
        parts = [Observation(job.config, *point) for point in curve]
        stopped = job.judge.stops and bool(job.judge.hopeless([job.config], read(root, plan.metric) + parts))
        return not stopped

    error = ""
    try:
        given = job.train(dict(job.config), report) if takes_report(job.train) else job.train(dict(job.config))
        if given is not None and not stopped:
            end = plan.fraction
            curve = [c for c in curve if c[1] < end] + [(_number(given), end, time.perf_counter() - began)]
    except Exception as raised:  # whatever a training raises is information about its configuration
        error = f"{type(raised).__name__}: {raised}"
    failed = bool(error) or not curve or not math.isfinite(curve[-1][0])
    curve = [c for c in curve if math.isfinite(c[0])]
    _record(plan, job.config, curve, failed, stopped, error=error)
    progress(1)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"train must return the score as a number, got {type(value).__name__}") from None


def _record(
    plan: Plan, config: Config, curve: Sequence[tuple[float, float, float]], failed: bool, stopped: bool, **more: Any
) -> None:
    path = plan.root / name_of(config)
    if (path / "run.jsonl").exists():  # of a process that was killed while it wrote
        run = Run.resume(path)
        run.restore(rng=False)
    else:
        run = Run.create(
            plan.root, name=path.name, config={INNER: config, "budget": plan.fraction}, seed=plan.seed,
            tags=["hpo", *[STOPPED] * stopped],
        )  # fmt: skip
    for step, (score, fraction, seconds) in enumerate(curve, 1):
        run.log(step=step, **{plan.metric: score, FRACTION: fraction, SECONDS: seconds})
    run.note("trained", **more)
    if failed:
        run.fail(str(more.get("error") or "the training diverged"))
    else:
        run.finish()
