"""The test of the transfer experiment: one start, fine-tuned on the tasks of one unseen data set."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast.data import ClassSet, episodes
from metafast.maml._evaluate import evaluating, first_tasks
from metafast.maml._maml import MAML
from metafast.maml._metrics import interval
from metafast.metrics import macro_f1, steps_to_threshold

if TYPE_CHECKING:
    from metafast.maml.transfer import Options

TEST_SEED = 1_000_003  # validation and test episodes do not depend on the experiment's seed


def episodes_of(classes: ClassSet, options: Options, seed: int) -> Any:
    """Episodes of the experiment's size."""
    return episodes(
        classes, ways=options.ways, shots=options.shots, queries=options.queries, tasks=options.tasks, seed=seed
    )


def fine_tuned(model: nn.Module, classes: ClassSet, rate: float, options: Options) -> dict[str, Any]:
    """Accuracy and F1 of a start on test episodes, the course of its accuracy, and the seconds of a step."""
    maml = MAML(copy.deepcopy(model), rate, options.steps, on_nan="drop")
    course = max(options.course, options.steps)
    accuracy: list[list[Tensor]] = [[] for _ in range(course + 1)]
    f1: list[float] = []
    seconds, adapted = 0.0, 0
    with evaluating(maml):
        for given in first_tasks(episodes_of(classes, options, TEST_SEED), options.episodes):
            batch = given.to(device=options.device)
            began = time.perf_counter()
            maml.inner.adapt(batch.support_x, batch.support_y, rates=rate, steps=options.steps)
            seconds, adapted = seconds + time.perf_counter() - began, adapted + len(batch)
            for step, metrics in enumerate(maml.trajectory(batch, course)):
                accuracy[step].append(metrics["accuracy"].cpu())
                if step == options.steps:
                    pairs = zip(metrics["logits"].cpu(), batch.query_y.cpu(), strict=True)
                    f1 += [macro_f1(logits, labels) for logits, labels in pairs]
    curve = [interval(torch.cat(values).double()) for values in accuracy]
    score = interval(torch.tensor(f1, dtype=torch.float64))
    at = curve[options.steps]
    return {
        "accuracy": [at.mean, at.half],
        "f1": [score.mean, score.half],
        "course": [[point.mean, point.half] for point in curve],
        "seconds_per_step": seconds / adapted / options.steps,
    }


def thresholds(rows: list[dict[str, Any]], given: float | None) -> None:
    """Steps and seconds until the mean accuracy reaches the threshold of its data set."""
    for data in dict.fromkeys(row["data"] for row in rows):
        members = [row for row in rows if row["data"] == data]
        threshold = 0.9 * max(row["accuracy"][0] for row in members) if given is None else given
        for row in members:
            values = [point[0] for point in row["course"]]
            steps = steps_to_threshold(list(range(len(values))), values, threshold)
            row["threshold"] = threshold
            row["steps_to_threshold"] = steps
            row["seconds_to_threshold"] = None if steps is None else steps * row["seconds_per_step"]
