"""What a learner reaches on each of many tasks: loss and accuracy before adaptation and after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast.data import TaskBatch
from metafast.experiments.rapid_adaptation._tasks import prepared
from metafast.maml._evaluate import evaluating, first_tasks


class Course(NamedTuple):
    """Query loss and accuracy `[tasks, points]`; a loss that is not finite is infinite, its accuracy 0."""

    loss: Tensor
    accuracy: Tensor

    @property
    def end(self) -> Course:
        """The last point alone."""
        return Course(self.loss[:, -1:], self.accuracy[:, -1:])


def course(
    learner: Any,
    tasks: Iterable[TaskBatch],
    count: int,
    ways: int,
    *,
    steps: int | None,
    every: bool = True,
    first: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    device: str = "cpu",
) -> Course:
    """The course of each task.

    Args:
        learner: of `metafast.maml` or `metafast.adapt`.
        tasks: batches.
        count: how many tasks.
        ways: their classes.
        steps: of the course, from 0 on; None: what the learner does by itself, of which only the end is measured.
        every: measure before adaptation and after each step; else the end alone.
        first: tasks to leave out before the others; `count` counts them.
        progress: called with the number of tasks done.
        device: where.
    """
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    done = 0
    with evaluating(learner):
        for given in first_tasks(tasks, count):
            if first > done:
                skipped = min(first - done, len(given))
                done += skipped
                if skipped == len(given):
                    continue
                given = given[skipped:]
            batch = prepared(given.to(device=device), ways)
            points = _points(learner, batch, steps, every)
            losses.append(torch.stack([point["loss"].detach().cpu().double() for point in points], 1))
            accuracies.append(torch.stack([point["accuracy"].detach().cpu().double() for point in points], 1))
            done += len(batch)
            progress(done)
    loss, accuracy = torch.cat(losses), torch.cat(accuracies)
    lost = ~loss.isfinite()
    return Course(loss.masked_fill(lost, math.inf).float(), accuracy.masked_fill(lost, 0).float())


def _points(learner: Any, batch: TaskBatch, steps: int | None, every: bool) -> list[dict[str, Any]]:
    if steps is not None and every:
        return list(learner.trajectory(batch, steps))
    try:
        return [learner(batch, steps=steps)[1]]
    except ValueError:  # all of them diverged: a trajectory says so by their losses, and raises whatever else is wrong
        return list(learner.trajectory(batch, steps))[-1:]


def better(courses: Iterable[Course]) -> int:
    """The place of the course whose accuracy ends highest; of equals the one whose loss ends lowest."""
    scores = [(float(each.accuracy[:, -1].mean()), -float(each.loss[:, -1].mean())) for each in courses]
    return max(range(len(scores)), key=scores.__getitem__)
