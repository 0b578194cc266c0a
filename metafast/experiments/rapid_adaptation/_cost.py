"""What adapting to one task costs: time in rounds that take every method in turn, and memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metafast.adapt import Backbone, MetaFineTuner
from metafast.experiments._running import Row
from metafast.experiments.rapid_adaptation import _backbones
from metafast.experiments.rapid_adaptation._jobs import Job, trained
from metafast.experiments.rapid_adaptation._methods import METHODS, Classifier
from metafast.experiments.rapid_adaptation._tasks import validation_tasks

HAND = "by hand"  # fine-tuning as one writes it with torch.optim.SGD
ENGINE = "engine"  # fine-tuning of pictures on the inner loop's engine
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(job: Job, root: Path, progress: Callable[[int], None]) -> Row:
    """Seconds, CPU seconds and memory of adapting to one support set, by method, and the size of the meta-network.

    Args:
        job: of kind "cost"; its rate is that of fine-tuning.
        root: the folder of the records.
        progress: called with the rounds done.
    """
    batch = validation_tasks(job.setup, job.classes, job.shots)[0].to(device=job.device)
    x, y = batch.support_x[0], batch.support_y[0]
    base = _backbones.backbone(job.setup, job.setting, root).to(job.device)
    learners = {
        name: trained(replace(job, method=name, rate=_rate(job, name)), root) for name in METHODS if name != "none"
    }
    if not isinstance(learners["finetune"], MetaFineTuner):
        learners[ENGINE] = learners["finetune"]
        learners["finetune"] = MetaFineTuner(base, "all", None, steps=job.recipe.steps, inner_lr=_rate(job, "finetune"))
    calls: dict[str, Callable[[], Any]] = {
        name: lambda made=made: made.adapt(x, y)  # type: ignore[misc]
        for name, made in learners.items()
    }
    calls[HAND] = lambda: _by_hand(base, x, y, job)
    for call in calls.values():
        call()
    clock: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(job.recipe.repeats):
        for name, call in calls.items():
            clock[name].append(_timed(call, job.device))
        progress(number + 1)
    ours = [wall for wall, _ in clock["ours"]]
    size = learners["ours"].report()
    gc.collect()
    ratios = {
        name: statistics.median(mine / theirs for mine, (theirs, _) in zip(ours, clock[name], strict=True))
        for name in ("finetune", HAND, ENGINE)
        if name in clock
    }
    return {
        "methods": {
            name: {
                "seconds": statistics.median(wall for wall, _ in times),
                "range": [min(wall for wall, _ in times), max(wall for wall, _ in times)],
                "cpu_seconds": statistics.median(cpu for _, cpu in times),
                "steps": job.recipe.probe_steps if name == "probe" else 0 if name == "protonet" else job.recipe.steps,
                "peak_mb": _peak(calls[name]),
            }
            for name, times in clock.items()
        },
        "ratios": ratios,
        "support": len(y),
        "network": size.network,
        "starts": size.starts,
        "adapted": size.adapted,
        "backbone": size.base,
    }


def _rate(job: Job, method: str) -> float:
    """The clock does not depend on the rate; only fine-tuning's is known here."""
    return job.rate if method == "finetune" and job.rate is not None else job.setup.rates[0]


def _by_hand(base: Backbone, x: Tensor, y: Tensor, job: Job) -> Classifier:
    model = Classifier(base, job.classes).to(x.device).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=_rate(job, "finetune"))
    for _ in range(job.recipe.steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def _timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    _wait(device)
    began, cpu = time.perf_counter(), time.process_time()
    call()
    _wait(device)
    return time.perf_counter() - began, time.process_time() - cpu


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak(call: Callable[[], Any]) -> float | None:
    """The most that was resident beyond what was before, in MB of 10^6 bytes; None where the kernel does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed would hide what this one takes
        before = _resident("VmRSS")
        _CLEAR.write_text("5")  # a new high-water mark
        call()
        return max(0.0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no {name}")
