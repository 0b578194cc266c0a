"""Doing a job: from its record where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from metafast._trainings import StoppedError
from metafast.experiments._running import Row, is_finished, open_record
from metafast.experiments.rapid_adaptation import _backbones, _cost
from metafast.experiments.rapid_adaptation._jobs import NOTE, VALUES, Job, trained
from metafast.experiments.rapid_adaptation._measure import Course, better, course
from metafast.experiments.rapid_adaptation._methods import learner
from metafast.experiments.rapid_adaptation._tasks import Watched, held_out_tasks, training_tasks, validation_tasks
from metafast.maml.trainer import Trainer
from metafast.runs import seed_all
from metafast.runs._checkpoint import replace_file

TAG = "rapid-adaptation"
Progress = Callable[[int], None]


def do(job: Job, root: Path, progress: Progress, stop: Callable[[], bool]) -> None:
    """Does one piece to its end.

    Args:
        job: the piece.
        root: the folder of the records.
        progress: called with the steps done.
        stop: whether to leave.

    Raises:
        StoppedError: `stop()` was true.
    """
    if not is_finished(root / job.name):
        if stop():
            raise StoppedError

        def tell(done: int) -> None:
            progress(min(done, job.steps - 1))  # the end is told once, when the record says so

        if job.kind == "meta":
            _meta_train(job, root, tell, stop)
        else:
            run, _ = open_record(root / job.name, job.config(), job.seed, TAG)
            with run:
                began, cpu = time.perf_counter(), time.thread_time()
                found = _DO[job.kind](job, root, tell)
                seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.thread_time() - cpu}
                run.note(NOTE, **found, **seconds)
    progress(job.steps)


def _backbone(job: Job, root: Path, progress: Progress) -> Row:
    about = _backbones.make(job.setup, job.setting, root, job.seed, progress)
    base = _backbones.backbone(job.setup, job.setting, root)
    numbers = sum(parameter.numel() for parameter in base.parameters())
    return {"numbers": numbers, "width": base.width, "model": type(base.model).__name__, "about": about}


def _rates(job: Job, root: Path, progress: Progress) -> Row:
    base = _backbones.backbone(job.setup, job.setting, root).to(job.device)
    count, found = job.recipe.val_episodes, []
    for number, rate in enumerate(job.rates):
        made = learner(job.method, job.setup, base, job.classes, job.inner_steps, rate=rate).to(job.device)
        tasks = validation_tasks(job.setup, job.classes, job.shots)
        found.append(course(made, tasks, count, job.classes, steps=None, device=job.device))
        progress((number + 1) * count)
    best = better(found)
    return {
        "rate": job.rates[best],
        "rates": list(job.rates),
        "accuracy": [float(each.accuracy[:, -1].mean()) for each in found],
        "loss": [float(each.loss[:, -1].mean()) for each in found],
    }


def _test(job: Job, root: Path, progress: Progress) -> Row:
    """The course of the first tasks, the end of all, and of the first also the courses of the rates not chosen."""
    recipe, whole = job.recipe, job.recipe.hindsight
    base = _backbones.backbone(job.setup, job.setting, root).to(job.device)
    tasks = held_out_tasks(job.setup, job.shots, job.seed, job.goal)
    stepwise = job.method not in ("probe", "protonet")
    options: dict[str, Any] = {"steps": recipe.steps if stepwise else None, "device": job.device}
    made = trained(job, root)
    mine = course(made, tasks, whole, job.classes, progress=progress, **options)
    values = {"course_loss": mine.loss, "course_accuracy": mine.accuracy}
    end, done = mine.end, whole
    if recipe.episodes > whole:
        rest = course(made, tasks, recipe.episodes, job.classes, every=False, first=whole, progress=progress, **options)
        end = Course(torch.cat([end.loss, rest.loss]), torch.cat([end.accuracy, rest.accuracy]))
        done = recipe.episodes
    values |= {"loss": end.loss, "accuracy": end.accuracy}
    for rate in job.others:
        other = learner(job.method, job.setup, base, job.classes, recipe.steps, rate=rate).to(job.device)
        found = course(other, tasks, whole, job.classes, **options)
        values |= {f"course_loss@{rate:g}": found.loss, f"course_accuracy@{rate:g}": found.accuracy}
        done += whole
        progress(done)
    values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
    replace_file(root / job.name / VALUES, lambda file: save_file(values, file))
    return {"accuracy": float(end.accuracy.mean()), "loss": float(end.loss.mean())}


def _meta_train(job: Job, root: Path, progress: Progress, stop: Callable[[], bool]) -> None:
    setup, method = job.setup, job.method
    seed_all(job.seed)
    base = _backbones.backbone(setup, job.setting, root).to(job.device)
    made = learner(method, setup, base, setup.ways, job.recipe.steps, seed=job.seed).to(job.device)
    initial = torch.optim.Adam(made.parameters(), lr=setup.initial.meta_lr)
    Trainer(
        made,
        Watched(training_tasks(setup, job.shots, job.seed), setup.ways, progress, stop),
        setup.meta_steps,
        val=validation_tasks(setup, setup.ways, job.shots),
        optimizer=made.optimizer() if method == "ours" else initial,
        schedule="cosine",
        clip=10.0,
        val_every=max(1, setup.meta_steps // 5),
        val_episodes=job.recipe.val_episodes,
        log_every=max(1, setup.meta_steps // 20),
        output=root,
        name=job.name,
        seed=job.seed,
        config=job.config(),
        tags=[TAG],
        resume=True,
        progress=False,
    ).fit()


_DO: Mapping[str, Callable[[Job, Path, Progress], Row]] = {
    "backbone": _backbone,
    "rates": _rates,
    "test": _test,
    "cost": _cost.measured,
}
