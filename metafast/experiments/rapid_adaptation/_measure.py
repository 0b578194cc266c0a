"""What a learner reaches on each of many tasks: loss and accuracy before adaptation and after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast.data import TaskBatch
from metafast.experiments.rapid_adaptation._tasks import with_classes
from metafast.maml._evaluate import evaluating, first_tasks


class Course(NamedTuple):
    """Query loss and accuracy `[tasks, points]`; a loss that is not finite is infinite, its accuracy 0."""

    loss: Tensor
    accuracy: Tensor

    def rows(self, first: int, last: int | None = None) -> Course:
        """Some of the tasks."""
        return Course(self.loss[first:last], self.accuracy[first:last])


def course(
    learner: Any,
    tasks: Iterable[TaskBatch],
    count: int,
    ways: int,
    *,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    device: str = "cpu",
) -> Course:
    """The course of each task.

    Args:
        learner: has `trajectory(batch, steps)`, or is called with a batch.
        tasks: batches.
        count: how many tasks.
        ways: their classes.
        steps: of the course, from 0 on; None: only the end of what the learner does by itself.
        progress: called with the number of tasks done.
        device: where.
    """
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    done = 0
    with evaluating(learner):
        for given in first_tasks(tasks, count):
            batch = with_classes(given.to(device=device), ways)
            points = [learner(batch)[1]] if steps is None else list(learner.trajectory(batch, steps))
            losses.append(torch.stack([point["loss"].detach().cpu().double() for point in points], 1))
            accuracies.append(torch.stack([point["accuracy"].detach().cpu().double() for point in points], 1))
            done += len(batch)
            progress(done)
    loss, accuracy = torch.cat(losses), torch.cat(accuracies)
    lost = ~loss.isfinite()
    return Course(loss.masked_fill(lost, math.inf).float(), accuracy.masked_fill(lost, 0).float())


def better(courses: Iterable[Course]) -> int:
    """The place of the course whose accuracy ends highest; of equals the one whose loss ends lowest."""
    scores = [(float(each.accuracy[:, -1].mean()), -float(each.loss[:, -1].mean())) for each in courses]
    return max(range(len(scores)), key=scores.__getitem__)
