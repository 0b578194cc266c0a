"""One of two processes of the data-parallel tests; writes what it found as JSON. Run by test_parallel.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metafast.adapt import MetaFineTuner, freeze
from metafast.data import TaskBatch, episodes
from metafast.maml import ALFA, MAML, MAMLpp, Reptile, Trainer
from metafast.maml._parallel import meta_gradient
from metafast.models import SinusoidMLP
from tests.maml.maml_cases import Net, make_batch

TASKS = 5  # two and three: shares need not be equal
BAD = {"maml, dropped": (0,), "maml, a whole share dropped": (0, 1), "alfa, a whole share dropped": (2, 3, 4),
       "meta-fine-tuner, a whole share dropped": (0, 1)}  # fmt: skip


def with_nan(batch: TaskBatch, tasks: tuple[int, ...]) -> TaskBatch:
    x = batch.support_x.clone()
    x[list(tasks), 0] = torch.nan
    return TaskBatch(x, batch.support_y, batch.query_x, batch.query_y)


def cases() -> dict[str, Any]:
    return {
        "maml": lambda: MAML(Net(), 0.3, 3),
        "maml, dropped": lambda: MAML(Net(), 0.3, 3, on_nan="drop"),
        "maml, a whole share dropped": lambda: MAML(Net(), 0.3, 3, on_nan="drop"),
        "alfa, a whole share dropped": lambda: seeded(lambda: ALFA(Net(), 0.3, 3, on_nan="drop")),
        "mamlpp": lambda: MAMLpp(Net(), 0.3, 3, statistics="per_step", momentum=1.0),
        "meta-fine-tuner": lambda: fine_tuner(),
        "meta-fine-tuner, a whole share dropped": lambda: fine_tuner(on_nan="drop", chunk=2),
        "reptile": lambda: Reptile(Net(), 0.3, 3, inner_batch=2),
    }


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def fine_tuner(**options: Any) -> MetaFineTuner:
    net = Net()
    net.features[1] = torch.nn.BatchNorm2d(4, dtype=torch.float64)  # its running statistics are those of no change
    return MetaFineTuner(freeze(net), "all", "init+alfa+mend", steps=2, dropout=0.0, **options)


def found(maml: Any, batch: TaskBatch) -> dict[str, Any]:
    metrics = meta_gradient(maml, batch)
    return {
        "grads": {name: p.grad.flatten().tolist() for name, p in maml.named_parameters()},
        "accuracy": metrics["accuracy"].tolist(),
        "dropped": metrics["dropped"],
        "buffers": {name: b.flatten().tolist() for name, b in maml.named_buffers() if b.is_floating_point()},
    }


def gradients() -> dict[str, Any]:
    batch = make_batch(tasks=TASKS)
    return {name: found(make(), with_nan(batch, BAD.get(name, ()))) for name, make in cases().items()}


def refused() -> str:
    """The error of a task that is not finite, in the share of process 1."""
    try:
        meta_gradient(MAML(Net(), 0.3, 3), with_nan(make_batch(tasks=TASKS), (3,)))
    except ValueError as error:
        return str(error)
    return ""


def trained(folder: str, rank: int, size: int, steps: int, resume: bool) -> list[float]:
    maml = MAML(SinusoidMLP((8, 8), seed=0).double(), 0.01, 2, loss="mse")
    val = episodes("sinusoid", split="val", shots=5, queries=5, tasks=4, seed=1)
    train = episodes("sinusoid", shots=5, queries=5, tasks=4, seed=0, rank=rank, world_size=size)
    Trainer(
        maml, train, steps, val=val, val_every=4, val_episodes=4, output=folder, name=f"{size}-processes",
        resume=resume, progress=False,
    ).fit()  # fmt: skip
    return torch.cat([p.detach().flatten() for p in maml.parameters()]).tolist()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    results: dict[str, Any] = {"gradients": gradients(), "refused": refused()}
    results["half"] = trained(folder, rank, size, 4, False)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
