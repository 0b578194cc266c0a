"""Ways to adapt a frozen model to many tasks, from a workload to a function of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metafast.adapt import MetaFineTuner
from metafast.data import TaskBatch

from .peft_loop import PeftLoop
from .workloads import Workload

RANK = 4
Adaptation = Callable[[TaskBatch], Tensor]  # the logits of the query examples after adaptation, [T, Q, C]


@dataclass(frozen=True)
class Contender:
    """A way to adapt.

    Args:
        build: makes the function.
        packages: that it needs.
    """

    build: Callable[[Workload], Adaptation]
    packages: tuple[str, ...] = ()


def fine_tuner(workload: Workload, net: str | None = None, chunk: int | None = None) -> MetaFineTuner:
    """A meta-fine-tuner of the workload; without a network it is plain gradient descent."""
    return MetaFineTuner(
        workload.base(), workload.adapt, net, steps=workload.steps, inner_lr=workload.lr, chunk=chunk
    ).eval()


def batched(chunk: int | None = None) -> Contender:
    """All tasks, or `chunk` of them, go through the frozen model at once."""

    def build(workload: Workload) -> Adaptation:
        meta = fine_tuner(workload, chunk=chunk)

        @torch.no_grad()
        def run(batch: TaskBatch) -> Tensor:
            logits: Tensor = meta(batch)[1]["logits"]
            return logits

        return run

    return Contender(build)


def looped(trim: bool) -> Contender:
    """peft's model, one task after another."""

    def build(workload: Workload) -> Adaptation:
        meta = fine_tuner(workload)  # the others start from its numbers
        start = {site.name: meta.starts[f"{site.name.replace('.', '/')}:A"].detach() for site in meta.sites}
        return PeftLoop(workload.model(), list(start), RANK, start, workload.lr, workload.steps, trim)

    return Contender(build, ("peft", "transformers"))


PEFT = "peft, task by task"
CONTENDERS = {
    PEFT: looped(trim=True),
    "peft, task by task, padded to the longest of all": looped(trim=False),
    "metafast, all at once": batched(),
    "metafast, four at once": batched(4),
    "metafast, one at once": batched(1),
}
