"""One training of a pair, or the adaptation of the controller to it. Each is a run record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast._trainings import StoppedError
from metafast.data import Batches, Samples, Splits
from metafast.experiments._data import some
from metafast.experiments._running import Row, is_finished, open_record
from metafast.experiments.lr_adaptation import _controller
from metafast.experiments.lr_adaptation._methods import DRIVERS, Driver, Start
from metafast.experiments.lr_adaptation._pairs import build_model, load_pair
from metafast.experiments.lr_adaptation._recipes import RUNS, Setup
from metafast.metrics import accuracy, class_scores
from metafast.runs import Run, seed_all
from metafast.runs._state import unpack

TAG = "lr-adaptation"
LOOKS = 25  # evaluations of a training
RATE_LOGS = 100  # points of the history of rates
AT_ONCE = 500  # examples of an evaluation
NORM_EXAMPLES = 512  # that batch statistics are measured on
SAVE_SECONDS = 30.0
KEPT = 2  # pairs whose data a process holds; trainings come pair by pair
_loaded: dict[tuple[str, int, str], tuple[Splits, Samples]] = {}  # the trainings of a process share their data


@dataclass(frozen=True)
class Training:
    """One training; equal ones are trained once, whatever they are for.

    Args:
        setup: the pair.
        method: "fixed", "cosine", "hypergradient", "schedule_free", "prodigy", "controller", "layers" (the controller
            with a rate for each tensor), "adapted", or "adaptation", which makes the controller that "adapted" uses.
        rate: where the rate starts.
        seed: of weights, batches and dropout.
        data_seed: of what is held out, and of the adaptation.
        device: "cpu" or "cuda".
    """

    setup: Setup
    method: str
    rate: float
    seed: int
    data_seed: int
    device: str = "cpu"

    @property
    def pair(self) -> str:
        """Name of the pair."""
        return self.setup.pair

    @property
    def name(self) -> str:
        """Folder name of its record."""
        return f"{self.pair.replace('/', '-')}-{self.method}-{self.rate:g}-s{self.seed}"

    @property
    def steps(self) -> int:
        """Training steps."""
        return RUNS * self.setup.steps if self.method == "adaptation" else self.setup.steps

    def load(self) -> tuple[Splits, Samples]:
        """Its data and the validation examples that are looked at during training, read once in a process."""
        key = (repr(self.setup), self.data_seed, self.device)
        if key not in _loaded:
            found = load_pair(self.setup, self.data_seed)
            parts = Splits(*(Samples(*(tensor.to(self.device) for tensor in part)) for part in found))
            rows = some(parts.val.labels.cpu(), self.setup.watch, self.data_seed).to(self.device)
            while len(_loaded) >= KEPT:
                del _loaded[next(iter(_loaded))]
            _loaded[key] = parts, Samples(parts.val.inputs[rows], parts.val.labels[rows])
        return _loaded[key]


def train(training: Training, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Run one training to its end, from its record where there is one.

    Raises:
        StoppedError: `stop()` was true; the state is saved.
    """
    folder = root / training.name
    if is_finished(folder):
        progress(training.steps)
        return
    if training.method == "adaptation":
        _adapt(training, folder)
        progress(training.steps)
        return
    setup, (parts, watched) = training.setup, training.load()
    seed_all(training.seed)
    model = build_model(setup, training.seed).to(training.device)
    batches = Batches(*parts.train, batch_size=setup.batch_size, seed=training.seed)
    driver = _driver(training, model, parts.train, root)
    stateful = {"batches": batches, **driver.stateful}
    run, back = open_record(folder, _config(training), training.seed, TAG, model, driver.optimizer, **stateful)
    first, steps, seconds, total = 0, training.steps, 0.0, torch.zeros((), device=training.device)
    count = 0
    if back is not None:
        first, seconds, count = back.step, back.extras["seconds"], back.extras["count"]
        total = back.extras["total"].to(training.device)
    looks = {max(1, round(steps * part / LOOKS)) for part in range(1, LOOKS + 1)}
    every = max(1, steps // RATE_LOGS)
    with run:
        progress(first)
        if first == 0:
            run.log(step=0, rates=driver.rates())
        saved, stream = time.monotonic(), batches.forever()
        for step in range(first + 1, steps + 1):
            inputs, labels = next(stream)
            began = time.thread_time()  # one thread does all the work, and a busy machine does not count
            loss = _step(model, driver, inputs, labels)
            seconds += time.thread_time() - began
            total += loss
            count += 1
            if step % every == 0:
                run.log(step=step, rates=driver.rates())
            if step not in looks:
                continue
            with driver.looking():
                seen = accuracy(_logits(model, watched), watched.labels)
            run.log(step=step, loss=total / count, watch_accuracy=seen)
            total, count = torch.zeros_like(total), 0
            progress(step)
            leave = stop() and step < steps
            if leave or (time.monotonic() - saved > SAVE_SECONDS and step < steps):
                run.save(
                    step,
                    model,
                    driver.optimizer,
                    extras={"seconds": seconds, "total": total, "count": count},
                    **stateful,
                )
                saved = time.monotonic()
            if leave:
                run.close()
                raise StoppedError
        run.note("course", labels=driver.labels(), events=driver.events())
        with driver.looking():
            val, test = (class_scores(_logits(model, part), part.labels) for part in (parts.val, parts.test))
        scores = {f"test_{name}": value for name, value in test._asdict().items()}
        run.log(step=steps, seconds=seconds, val_accuracy=val.accuracy, **scores)


def row_of(run: Run) -> Row:
    """What a finished record says, for the tables."""
    config = run.config
    row: Row = {key: config[key] for key in ("pair", "method", "rate", "seed")}
    if row["method"] == "adaptation":
        return {**row, "steps": config["steps"], "seconds": float(run.curve("seconds").values[-1])}
    for name in run.metrics:
        if name not in ("loss", "rates", "watch_accuracy"):
            row[name] = float(run.curve(name).values[-1])
    watched = run.curve("watch_accuracy")
    looks = [[int(step), round(value, 5)] for step, value in zip(watched.steps, watched.values, strict=True)]
    return {
        **row,
        "steps": config["steps"],
        "final_rate": history_of(run)[-1][1],
        "looks": looks,
        "events": _events(run),
    }


def history_of(run: Run) -> list[tuple[int, list[float]]]:
    """Step and effective rates, over a training."""
    rows = (row for row in run.rows() if row["kind"] == "metrics" and "rates" in row)
    return [(row["step"], [float(rate) for rate in unpack(row["rates"], {})]) for row in rows]


def labels_of_rates(run: Run) -> list[str]:
    """What each rate is of."""
    labels: list[str] = _course(run)["labels"]
    return labels


def _events(run: Run) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = _course(run)["events"]
    return events


def _course(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = next(row["data"] for row in reversed(run.rows()) if row.get("text") == "course")
    return found


def _config(training: Training) -> dict[str, Any]:
    return {**asdict(training), "pair": training.pair, "steps": training.steps}


def _adapt(training: Training, folder: Path) -> None:
    """Interrupted, it begins again."""
    parts, _ = training.load()
    seed_all(training.seed)
    run, _ = open_record(folder, _config(training), training.seed, TAG)
    with run:
        began = time.process_time()
        adapted = _controller.adapt(training.setup, parts, training.seed)
        run.log(step=training.steps, seconds=time.process_time() - began)
        adapted.save(folder / _controller.FILE)


def _driver(training: Training, model: nn.Module, part: Samples, root: Path) -> Driver:
    file = None
    if training.method == "adapted":
        made = Training(training.setup, "adaptation", training.rate, training.data_seed, training.data_seed)
        file = root / made.name / _controller.FILE
    per = "tensor" if training.method == "layers" else "global"
    rows = some(part.labels.cpu(), NORM_EXAMPLES, training.data_seed).to(training.device)
    start = Start(model, training.rate, training.steps, part.inputs[rows], file, per)
    return DRIVERS[training.method](start)


def _step(model: nn.Module, driver: Driver, inputs: Tensor, labels: Tensor) -> Tensor:
    driver.optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    loss.backward()
    driver.optimizer.step()
    loss = loss.detach()
    driver.after_step(loss)
    return loss


@torch.no_grad()
def _logits(model: nn.Module, part: Samples) -> Tensor:
    return torch.cat([model(inputs) for inputs in part.inputs.split(AT_ONCE)])
