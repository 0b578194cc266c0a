"""The trainings of `metafast demo`: one small CNN per data set, method and starting rate; each is a run record."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from metafast._trainings import StoppedError
from metafast.data import Batches, Samples, Splits, digits, load, split_validation, to_tensors
from metafast.metrics import accuracy, steps_to_threshold
from metafast.models import SmallCNN
from metafast.optim import AdamW
from metafast.runs import Run, seed_all

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
METHODS = {
    "fixed": "AdamW, fixed rate",
    "hypergradient": "AdamW, hypergradient",
    "cosine": "AdamW, cosine schedule",
}
GRANULARITY = "global"  # on these two, one rate for all ended closer to the best fixed rate than one per tensor
LOGS = 40  # points per curve
EARLY = (1, 2, 5, 10, 20)  # a learned rate moves most at the start


@dataclass(frozen=True)
class Setup:
    """What a data set is trained with."""

    title: str
    classes: int
    image_size: int
    stride: int
    batch_size: int
    epochs: int
    quick_epochs: int
    threshold: float
    total: int  # training images in the complete set


SETUPS = {
    "digits": Setup("Digits", 10, 8, 1, 32, 40, 8, 0.90, 0),
    "fashion_mnist": Setup("Fashion-MNIST", 10, 28, 2, 64, 5, 1, 0.80, 60_000),
}


@dataclass(frozen=True)
class Task:
    """One training."""

    data: str
    method: str
    rate: float
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Folder name of its record."""
        return f"{self.data}-{self.method}-{self.rate:g}"


@functools.cache
def splits(data: str, seed: int) -> Splits:
    """The three parts of a data set; the validation part is cut from the training split."""
    if data == "digits":
        return digits(seed)
    images, labels = to_tensors(load(data, "train"))
    train, val = split_validation(labels, 0.05, seed)
    test = Samples(*to_tensors(load(data, "test")))
    return Splits(Samples(images[train], labels[train]), Samples(images[val], labels[val]), test)


def steps_of(task: Task) -> int:
    """Steps of a training."""
    return task.epochs * -(-len(splits(task.data, task.seed).train.labels) // SETUPS[task.data].batch_size)


def train(task: Task, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Run one training to its end, from its record where there is one.

    Raises:
        StoppedError: `stop()` was true; the state is saved.
    """
    setup, parts = SETUPS[task.data], splits(task.data, task.seed)
    steps = steps_of(task)
    marks = sorted({max(1, round(steps * part / LOGS)) for part in range(1, LOGS + 1)})
    saves = set(marks[9::10])
    seed_all(task.seed)
    model = SmallCNN(1, setup.classes, setup.image_size, stride=setup.stride, seed=task.seed)
    opt = AdamW(model.parameters(), lr=task.rate, hypergrad=GRANULARITY if task.method == "hypergradient" else None)
    batches = Batches(*parts.train, batch_size=setup.batch_size, seed=task.seed)
    stateful: dict[str, Any] = {"batches": batches}
    schedule = None
    if task.method == "cosine":
        schedule = stateful["schedule"] = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)

    folder = root / task.name
    start = 0
    if (folder / "run.jsonl").exists():
        run = Run.open(folder)
        if run.status == "finished":
            progress(steps)
            return
        run = Run.resume(folder)
        back = run.restore(model, opt, **stateful)
        start = back.step if back else 0
    else:
        run = Run.create(root, name=task.name, config={**asdict(task), "steps": steps}, seed=task.seed, tags=["demo"])
    with run:
        progress(start)
        stream = batches.forever()
        loss_sum, seconds, count = torch.zeros(()), 0.0, 0
        for step in range(start + 1, steps + 1):
            began = time.thread_time()  # one thread does all the work, and a busy machine does not count
            images, labels = next(stream)
            opt.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            opt.step()
            if schedule is not None:
                schedule.step()
            seconds += time.thread_time() - began
            loss_sum += loss.detach()
            count += 1
            if step in marks:
                run.log(
                    step=step,
                    loss=loss_sum / count,
                    val_accuracy=_evaluate(model, parts.val),
                    step_ms=1e3 * seconds / count,
                    rates=_rates(opt, task),
                )
                loss_sum, seconds, count = torch.zeros(()), 0.0, 0
                progress(step)
                leave = stop() and step < steps
                if leave or step in saves:
                    run.save(step, model, opt, **stateful)
                if leave:
                    run.close()
                    raise StoppedError
            elif step in EARLY:
                run.log(step=step, rates=_rates(opt, task))
        run.log(step=steps, test_accuracy=_evaluate(model, parts.test))


def result_of(run: Run) -> dict[str, Any]:
    """The row of the table that a finished record gives."""
    val, ms = run.curve("val_accuracy"), run.curve("step_ms")
    threshold = SETUPS[run.config["data"]].threshold
    return {
        "data": run.config["data"],
        "method": run.config["method"],
        "rate": run.config["rate"],
        "test_accuracy": float(run.curve("test_accuracy").values[-1]),
        "steps_to_threshold": steps_to_threshold(val.steps, val.values, threshold),
        "ms_per_step": float(torch.tensor(ms.values).median()),
        "steps": run.config["steps"],
    }


def _rates(opt: AdamW, task: Task) -> list[float]:
    return opt.learned_lr() if task.method == "hypergradient" else [float(opt.param_groups[0]["lr"])]


@torch.no_grad()
def _evaluate(model: torch.nn.Module, part: Samples) -> float:
    logits = torch.cat([model(images) for images in part.inputs.split(1000)])
    return accuracy(logits, part.labels)
