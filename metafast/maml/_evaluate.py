"""What a learner reaches on episodes that it has not seen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.maml._metrics import interval
from metafast.maml._modules import check_batch
from metafast.metrics import Interval

if TYPE_CHECKING:
    from metafast.data import TaskBatch
    from metafast.maml._task_learner import TaskLearner


@dataclass(frozen=True)
class Evaluation:
    """A metric over n test episodes.

    Args:
        metric: "accuracy" or "mse".
        score: mean and 95 % interval of the metric after the last step.
        loss: the same of the query loss.
        values: the metric of every episode, float64 `[n]`; NaN-free, an episode without a finite result counts as 0
            accuracy.
        per_step: the metric before adaptation and after each step, where it was asked for.
        seconds: the evaluation took.
    """

    metric: str
    score: Interval
    loss: Interval
    values: Tensor
    per_step: list[Interval] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"{100 * self.score.mean:.2f} ± {100 * self.score.half:.2f} %"
        return f"{self.score.mean:.4f} ± {self.score.half:.4f}"

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for a record."""
        return {
            "metric": self.metric,
            "mean": self.score.mean,
            "half_width": self.score.half,
            "episodes": self.score.n,
            "loss": self.loss.mean,
            "per_step": [[step.mean, step.half] for step in self.per_step],
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    maml: TaskLearner,
    episodes: Iterable[TaskBatch],
    n: int = 600,
    *,
    steps: int | None = None,
    per_step: bool = False,
) -> Evaluation:
    """Adapt to n episodes and measure the metric on their query sets, with a 95 % interval.

    The learner is in evaluation mode meanwhile and nothing is learned. Episodes that remember their position
    (`state_dict`) are put back to it, so that the same ones come again next time.

    Args:
        maml: any algorithm.
        episodes: batches of tasks, from `metafast.data.episodes`.
        n: episodes (tasks) to measure. Default 600.
        steps: inner steps; default those of the learner.
        per_step: also measure before adaptation and after every step.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: n below 1, or fewer episodes than n.

    Example:
        >>> import torch, metafast
        >>> x, y = torch.randn(8, 10, 4), torch.randint(0, 2, (8, 10))
        >>> tasks = [metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])]
        >>> result = evaluate(metafast.maml.MAML(torch.nn.Linear(4, 2), steps=2), tasks, n=8, per_step=True)
        >>> result.score.n, len(result.per_step)
        (8, 3)
    """
    n = integer("n", n, minimum=1)
    steps = maml.steps if steps is None else integer("steps", steps, minimum=1)
    began = time.perf_counter()
    found: list[list[Tensor]] = [[] for _ in range(steps + 1 if per_step else 1)]
    losses: list[Tensor] = []
    metric = "accuracy"
    with evaluating(maml):
        for given in first_tasks(episodes, n):
            batch = to_model(maml, given)
            course = maml.trajectory(batch, steps) if per_step else iter([maml(batch, steps=steps)[1]])
            for values, metrics in zip(found, course, strict=True):
                metric = "accuracy" if "accuracy" in metrics else "mse"
                values.append(metrics[metric].double().cpu())
            losses.append(metrics["loss"].double().cpu())
    results = [torch.cat(values) for values in found]
    return Evaluation(
        metric=metric,
        score=interval(results[-1]),
        loss=interval(torch.cat(losses)),
        values=results[-1],
        per_step=[interval(values) for values in results] if per_step else [],
        seconds=time.perf_counter() - began,
    )


def to_model(maml: nn.Module, batch: TaskBatch) -> TaskBatch:
    """The batch on the device and in the floating type of the learner's weights."""
    check_batch(batch)
    like = next(maml.parameters(), None)
    if like is None:  # nothing is learned: the batch is as its model takes it
        return batch
    if batch.query_x.device == like.device and batch.query_x.dtype in (like.dtype, torch.int64):
        return batch
    return batch.to(device=like.device, dtype=like.dtype)


@contextlib.contextmanager
def evaluating(maml: TaskLearner) -> Iterator[None]:
    """Evaluation mode without gradients, for a while."""
    training = maml.training
    maml.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        maml.train(training)


def first_tasks(episodes: Iterable[TaskBatch], n: int) -> Iterator[TaskBatch]:
    """Batches until n tasks have come, the last one cut; the position of the episodes is put back."""
    position = episodes.state_dict() if hasattr(episodes, "state_dict") else None
    left = n
    try:
        for batch in episodes:
            yield batch if len(batch) <= left else batch[:left]
            left -= min(len(batch), left)
            if not left:
                return
    finally:
        if position is not None:
            episodes.load_state_dict(position)  # type: ignore[attr-defined]
    raise ValueError(f"episodes must give at least n = {n} tasks, they gave {n - left}; ask for more or lower n")
