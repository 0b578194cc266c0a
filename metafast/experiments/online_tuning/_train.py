"""One training: with hyperparameters that stay, or that are tuned meanwhile. Each is a run record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast._trainings import StoppedError
from metafast.data import Batches
from metafast.experiments._running import is_finished, open_record
from metafast.experiments.online_tuning._recipes import Setup, Tuning, Values
from metafast.experiments.online_tuning._tasks import TASKS, Built, Part, Parts, Task
from metafast.runs import Run, seed_all
from metafast.tune import Forward, Method, OnlineTuner, Tuned

METHODS: dict[str, Callable[[], str | Method]] = {
    "forward": lambda: Forward(hvp=False),
    "decayed": lambda: Forward(hvp=False, decay=0.9),
    "carried": lambda: Forward(hvp=False, decay=0.97, carry=True),
    "one_step": lambda: "one_step",
    "sama": lambda: "sama",
}
AT_ONCE = 500  # examples of an evaluation
_parts: dict[tuple[str, str, int, str], Parts] = {}  # the trainings of a process share their data


@dataclass(frozen=True)
class Training:
    """One training; equal ones are trained once, whatever they are for.

    Args:
        experiment: name in `TASKS`.
        setup: its settings.
        values: hyperparameters, where an adaptive one starts.
        feedback: None, "batch" or "epoch".
        seed: of weights, batches and dropout.
        data_seed: of what is held out.
        device: "cpu" or "cuda".
    """

    experiment: str
    setup: Setup
    values: Values
    feedback: str | None
    seed: int
    data_seed: int
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Folder name of its record."""
        values = "-".join(f"{name}={value:g}" for name, value in self.values.items())
        return f"{self.experiment}-{self.feedback or 'static'}-{values}-s{self.seed}"

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.setup.epochs * -(-len(self.load().train.targets) // self.setup.batch_size)

    def load(self) -> Parts:
        """Its data, read once in a process."""
        key = (self.experiment, repr(self.setup), self.data_seed, self.device)
        if key not in _parts:
            found = TASKS[self.experiment].load(self.setup, self.data_seed)
            _parts[key] = Parts(*(Part(*(tensor.to(self.device) for tensor in part)) for part in found))
        return _parts[key]


@dataclass
class Cost:
    """What a training has cost so far.

    Attributes:
        gradients: examples that a gradient was computed for, of training and of validation.
        seconds: CPU time of the steps and hypergradients on this thread, without evaluations.
    """

    gradients: int = 0
    seconds: float = 0.0


def train(training: Training, root: Path, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Run one training to its end, from its record where there is one.

    Raises:
        StoppedError: `stop()` was true; the state is saved.
    """
    folder = root / training.name
    if is_finished(folder):
        progress(training.steps)
        return
    task, setup, parts = TASKS[training.experiment], training.setup, training.load()
    seed_all(training.seed)
    built = task.build(setup, dict(training.values), training.seed)
    built.model.to(training.device)
    batches = Batches(*parts.train, batch_size=setup.batch_size, seed=training.seed)
    stateful: dict[str, Any] = {"batches": batches}
    if built.scheduler is not None:
        stateful["scheduler"] = built.scheduler
    tuner, cost = None, Cost()
    if training.feedback is not None:
        tuner = stateful["tuner"] = _tuner(
            task, built, setup.tuning[training.feedback], parts, batches, training.seed, cost
        )

    start, loss_sum = 0, 0.0
    run, back = open_record(
        folder, asdict(training), training.seed, "online-tuning", built.model, built.optimizer, **stateful
    )
    if back is not None:
        start, loss_sum = back.step, back.extras["loss_sum"]
        cost.gradients, cost.seconds = back.extras["gradients"], back.extras["seconds"]
    steps, epoch = training.steps, len(batches)
    with run:
        progress(start)
        stream = batches.forever()
        for step in range(start + 1, steps + 1):
            began = time.thread_time()  # one thread does all the work, and a busy machine does not count
            loss_sum += _step(task, built, tuner, next(stream), cost)
            cost.seconds += time.thread_time() - began
            if step % epoch == 0:
                run.log(step=step, loss=loss_sum / epoch, **_measured(task, built.model, parts.val, "val"))
                loss_sum = 0.0
                progress(step)
            leave = stop() and step < steps
            if leave or (step % epoch == 0 and step < steps):
                extras = {"loss_sum": loss_sum, "gradients": cost.gradients, "seconds": cost.seconds}
                run.save(step, built.model, built.optimizer, extras=extras, **stateful)
            if leave:
                run.close()
                raise StoppedError
        if tuner is not None:
            run.note("tuned", **_course(tuner))
        tested = _measured(task, built.model, parts.test, "test")
        run.log(step=steps, gradients=cost.gradients, seconds=cost.seconds, **tested)


def row_of(run: Run) -> dict[str, Any]:
    """What a finished record says, for the tables: the last value of each metric."""
    config = run.config
    last: dict[str, Any] = {}
    for metric in run.metrics:
        last[metric] = float(run.curve(metric).values[-1])
    return {
        "experiment": config["experiment"],
        "feedback": config["feedback"],
        "seed": config["seed"],
        "values": config["values"],
        **last,
        "gradients": int(last["gradients"]),
    }


def tuned_of(run: Run) -> tuple[dict[str, Tuned], list[tuple[int, float]]]:
    """Trajectories of a finished adaptive run, and the validation losses that moved them."""
    data = next(row["data"] for row in reversed(run.rows()) if row.get("text") == "tuned")
    state = {
        name: Tuned("global", {"all": rows[-1][1]}, [(calls, [value]) for calls, value in rows])
        for name, rows in data["histories"].items()
    }
    return state, [(calls, value) for calls, value in data["validation"]]


def _step(task: Task, built: Built, tuner: OnlineTuner | None, batch: tuple[Tensor, ...], cost: Cost) -> float:
    inputs, targets = batch
    cost.gradients += len(targets)
    if tuner is None:
        built.optimizer.zero_grad()
        loss = task.loss(built.model(inputs), targets)
        loss.backward()
        built.optimizer.step()
    else:
        loss = tuner.step(lambda x, y: task.loss(built.model(x), y), inputs, targets)
    if built.scheduler is not None:
        built.scheduler.step()
    return float(loss.detach())


def _tuner(
    task: Task, built: Built, tuning: Tuning, parts: Parts, batches: Batches, seed: int, cost: Cost
) -> OnlineTuner:
    def val_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        cost.gradients += len(targets)
        return task.look(model, inputs, targets)

    return OnlineTuner(
        built.model,
        built.optimizer,
        built.tune,
        Batches(*parts.val, batch_size=batches.batch_size, seed=seed),
        METHODS[tuning.method](),
        "epoch" if tuning.every is None else tuning.every,
        val_loss=val_loss,
        val_batches="all" if tuning.val_batches is None else tuning.val_batches,
        hyper_optimizer=lambda groups: torch.optim.Adam(groups, betas=tuning.memory),
        hyper_lr=tuning.hyper_lr,
        train_loader=batches if tuning.every is None else None,
        scheduler=built.scheduler,
        seed=seed,
        start=tuning.start,
    )


def _course(tuner: OnlineTuner) -> dict[str, Any]:
    """Step and value of each hyperparameter, which has one value here, and of the validation loss."""
    return {
        "validation": [[calls, value] for calls, value in tuner.validation],
        "histories": {
            name: [[calls, values[0]] for calls, values in tuned.history] for name, tuned in tuner.state.items()
        },
        "skipped": {name: tuned.skipped for name, tuned in tuner.state.items()},
    }


@torch.no_grad()
def _measured(task: Task, model: nn.Module, part: Part, prefix: str) -> Values:
    model.eval()
    outputs = torch.cat([model(inputs) for inputs in part.inputs.split(AT_ONCE)])
    model.train()
    loss = float(task.loss(outputs, part.targets))
    return {f"{prefix}_{name}": value for name, value in (("loss", loss), *task.score(outputs, part.targets).items())}
