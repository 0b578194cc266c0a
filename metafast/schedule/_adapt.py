"""Few-shot adaptation: short trainings on a task, and the shift of the wanted update that they favour."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from metafast.data import Batches
from metafast.runs import rng_state, set_rng_state
from metafast.schedule._tasks import Task
from metafast.schedule._trainings import MAKERS

if TYPE_CHECKING:
    from metafast.schedule._controller import LRController

FIRST_SHIFT = 0.4  # in units of the feature "update": updates 3.3 times as large
LARGEST_SHIFT = 1.2
_EVAL = 512  # examples at a time


def short_run(controller: LRController, task: Task, seed: int, attach: dict[str, Any]) -> float:
    """Validation loss at the end of one training that the controller steers."""
    kept = rng_state()
    try:
        torch.manual_seed(seed)
        model = task.model(seed)
        loss_of = F.cross_entropy if task.loss == "cross_entropy" else F.mse_loss
        optimizer = MAKERS[task.optimizer](model.parameters(), lr=1e-3 if task.optimizer != "sgd" else 1e-2)
        options = {"interval": controller.learned.interval, "total_steps": task.steps, "model": model, **attach}
        controller.attach(optimizer, **options)
        batches = Batches(*task.train, batch_size=task.batch_size, seed=seed)
        for _, (x, y) in zip(range(task.steps), batches.forever(), strict=False):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            controller.step(loss)
        model.eval()
        with torch.no_grad():
            pieces = zip(task.val.inputs.split(_EVAL), task.val.labels.split(_EVAL), strict=True)
            total = sum(float(loss_of(model(x), y)) * len(y) for x, y in pieces)
        return total / len(task.val.labels)
    finally:
        controller.detach()
        set_rng_state(kept)


def adapted_shift(
    controller: LRController, task: Task, steps: int, seed: int, attach: dict[str, Any]
) -> tuple[float, list[dict[str, float | None]]]:
    """The shift of the best of `steps` runs, and all runs."""
    centre = controller.learned.shift
    runs: list[dict[str, float]] = []
    for _ in range(steps):
        tried = controller.copy()
        tried.learned.shift = centre + _next([run["shift"] - centre for run in runs], [run["loss"] for run in runs])
        loss = short_run(tried, task, seed, attach)
        runs.append({"shift": tried.learned.shift, "loss": loss if math.isfinite(loss) else math.inf})
    best = min(runs, key=lambda run: run["loss"])
    told: list[dict[str, float | None]] = [
        {"shift": run["shift"], "loss": run["loss"] if math.isfinite(run["loss"]) else None} for run in runs
    ]
    return best["shift"], told


def _next(shifts: list[float], losses: list[float]) -> float:
    """Where to look next: no shift, either side, then the vertex of a parabola around the best, or beyond an end."""
    if len(shifts) < 3:
        return (0.0, FIRST_SHIFT, -FIRST_SHIFT)[len(shifts)]
    order = sorted(range(len(shifts)), key=shifts.__getitem__)
    at, value = [shifts[i] for i in order], [losses[i] for i in order]
    best = min(range(len(at)), key=value.__getitem__)
    if best in (0, len(at) - 1):  # the best is an end: go on in that direction
        beyond = at[best] + math.copysign(FIRST_SHIFT, at[best])
        inner = (at[best] + at[best + (1 if best == 0 else -1)]) / 2
        return beyond if abs(beyond) <= LARGEST_SHIFT + 1e-9 else inner
    (a, b, c), (fa, fb, fc) = at[best - 1 : best + 2], value[best - 1 : best + 2]
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    vertex = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right) if left != right else b
    if not math.isfinite(vertex):
        vertex = b
    spacing = min(b - a, c - b) / 4
    if abs(vertex - b) < spacing:  # looking at the same place again tells nothing
        vertex = (a + b) / 2 if fa < fc else (b + c) / 2
    return min(max(vertex, a + spacing), c - spacing)
