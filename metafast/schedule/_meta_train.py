"""Meta-training: a controller from many small trainings, stopped by others; resumable, with a record."""

from __future__ import annotations

import functools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metafast._checks import integer, positive
from metafast.runs import Run, versions
from metafast.schedule import _features, _policy
from metafast.schedule._file import Learned
from metafast.schedule._judge import Judge
from metafast.schedule._pes import PES
from metafast.schedule._suite import Draw, training_suite, validation_suite
from metafast.schedule._tasks import Task
from metafast.schedule._truncated import Truncated

METHODS = ("pes", "truncated")
UPDATES = 400  # where neither a number nor a budget is given
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """How a controller is meta-trained.

    Args:
        method: "pes" (persistent evolution strategies) or "truncated" (back-propagation through windows).
        hidden: size of the LSTM.
        meta_lr: rate of Adam on the controller.
        dropout: on the LSTM's output while it learns.
        interval: steps between two decisions.
        intervals: decisions in a piece or window.
        pairs: trainings of each task; for "pes" pairs of them.
        sigma: size of PES's perturbations.
        max_change: bound of one change of a log rate.
        order: of "truncated", 1 or 2.
        tensor_share: share of the tasks whose tensors have rates of their own.
        halve: updates after which the meta-rate is halved; 0: never.
        rates: lowest and highest starting rate.
        usual: the same, of half of the trainings.
        steps: shortest and longest training.
    """

    method: str = "pes"
    hidden: int = 8
    meta_lr: float = 0.005
    dropout: float = 0.0
    interval: int = 10
    intervals: int = 2
    pairs: int = 16
    sigma: float = 0.05
    max_change: float = 1.0
    order: int = 2
    tensor_share: float = 0.25
    halve: int = 400
    rates: tuple[float, float] = (1e-6, 0.1)
    usual: tuple[float, float] = (3e-4, 3e-3)
    steps: tuple[int, int] = (100, 800)


PRESETS = {
    "default": Settings(),
    # The experiment plan: LSTM, meta-rate 1e-4, interval 10, dropout 0.5, base rate 1e-3.
    "paper": Settings(
        method="truncated", meta_lr=1e-4, dropout=0.5, halve=0, tensor_share=0.0, intervals=5, pairs=8,
        rates=(1e-3, 1.000001e-3), usual=(1e-3, 1.000001e-3),
    ),
}  # fmt: skip


def meta_train(
    tasks: Sequence[Task] | None = None,
    *,
    budget: str | float | None = None,
    updates: int | None = None,
    preset: str = "default",
    validation: Sequence[Task] | None = None,
    validate_every: int = 50,
    patience: int | None = 20,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    **settings: Any,
) -> Learned:
    """Trains a controller.

    Args:
        tasks: what it learns from. Default: the shipped suite (digits, CIFAR-100, Omniglot, CLINC, spoken digits).
        budget: CPU time, such as "20min", "90s" or seconds; over all calls where it is resumed.
        updates: how many updates at most. Default: as many as the budget allows, or 400 without one.
        preset: "default" or "paper" (the experiment plan's settings). Default "default".
        validation: other tasks; the controller that is best on them is the result. Default: the shipped ones (FewRel,
            CoNLL++) with the shipped suite, none with tasks of your own. Without any the last one is the result.
        validate_every: updates between two looks at them. Default 50.
        patience: looks without a better one after which it stops; None: never. Default 20.
        seed: of everything. Default 0.
        output: folder of a run record that an interrupted call goes on from, bit for bit; the end of a budget is one
            more look at the validation suite. Default: a temporary one.
        progress: called after each update with its numbers.
        settings: of `Settings`, in place of the preset's.

    Returns:
        What `LRController` is made of, with its record.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or a task that is in both suites; or `output`
            holds a meta-training with other settings.
        FileNotFoundError: the data of the shipped suites are not there.

    Example:
        >>> parse_budget("20min")
        1200.0
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = _checked(PRESETS[preset], settings)
    seconds = math.inf if budget is None else parse_budget(budget)
    if updates is not None:
        integer("updates", updates, minimum=1)
    most = updates if updates is not None else (UPDATES if budget is None else 1 << 40)
    integer("validate_every", validate_every, minimum=1)
    if tasks is None:
        tasks = training_suite()
        validation = validation_suite() if validation is None else validation
    validation = list(validation or ())
    _check_tasks(tasks, validation)
    with tempfile.TemporaryDirectory() as folder:
        training = _MetaTraining(tasks, validation, chosen, seed, Path(folder if output is None else output))
        return training.run(most, seconds, validate_every, patience, progress)


class _MetaTraining:
    """The state of a meta-training, and its loop."""

    def __init__(
        self, tasks: Sequence[Task], validation: Sequence[Task], settings: Settings, seed: int, root: Path
    ) -> None:
        self.settings = settings
        self.shape = _policy.Shape(len(_features.NAMES), settings.hidden)
        self.model = nn.ParameterDict({"weights": nn.Parameter(self.shape.initial(seed))})
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.meta_lr, betas=(0.9, 0.99))
        draw = Draw(settings.interval, settings.rates, settings.usual, settings.steps)
        own = _spread(len(tasks), settings.tensor_share)
        self.learners: dict[str, Any] = {}  # PES or Truncated, by place
        for i, task in enumerate(tasks):
            common = (task, settings.pairs, "tensor" if own[i] else "global", settings.interval, seed + 100 * (i + 1))
            self.learners[f"task{i}"] = (
                PES(*common, settings.sigma, settings.intervals, draw)
                if settings.method == "pes"
                else Truncated(*common, settings.intervals, draw, settings.order)
            )
        self.judge = Judge(validation, interval=settings.interval) if validation else None
        self.best, self.best_score, self.best_update = self.shape.initial(seed), math.inf, 0
        self.update, self.seconds = 0, 0.0
        self.scores: list[list[float]] = []  # update, score of the validation suite
        self.config: dict[str, Any] = {
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
            "seed": seed,
            "tasks": [task.name for task in tasks],
            "validation": [task.name for task in validation],
        }
        self.about = {
            "meta_training": _seen(tasks),
            "meta_validation": _seen(validation),
        }
        self.record = self._open(root)

    def _open(self, root: Path) -> Run:
        folder = root / "meta-train"
        if not (folder / "run.jsonl").exists():
            return Run.create(root, name="meta-train", config=self.config, seed=self.config["seed"], keep=2)
        run = Run.resume(folder)
        if run.config != self.config:
            wrong = [key for key in self.config if run.config.get(key) != self.config[key]]
            raise ValueError(
                f"output {root} holds a meta-training with other {', '.join(wrong)}; give the same, or another folder"
            )
        back = run.restore(self.model, self.optimizer, **self.learners)
        if back is not None:
            extras = back.extras
            self.update, self.seconds, self.scores = back.step, extras["seconds"], extras["scores"]
            self.best = torch.tensor(extras["best"])
            self.best_score, self.best_update = extras["best_score"], extras["best_update"]
        return run

    def run(
        self,
        updates: int,
        seconds: float,
        validate_every: int,
        patience: int | None,
        progress: Callable[[dict[str, float]], None] | None,
    ) -> Learned:
        s, weights = self.settings, self.model["weights"]
        saved = began = time.process_time()
        before = self.seconds
        with self.record:
            while self.update < updates and self.seconds < seconds:
                estimates, means = [], []
                for learner in self.learners.values():
                    estimate, mean = learner.gradient(self.shape, weights.detach(), s.max_change, s.dropout)
                    estimates.append(estimate)
                    means.append(mean)
                weights.grad = _combined(estimates, s.method)
                for group in self.optimizer.param_groups:
                    group["lr"] = s.meta_lr * (0.5 ** (self.update / s.halve) if s.halve else 1.0)
                self.optimizer.step()
                self.update += 1
                self.seconds = before + time.process_time() - began
                row = {"train_score": sum(means) / len(means), "seconds": self.seconds}
                due = self.update % validate_every == 0 or self.update == updates or self.seconds >= seconds
                if self.judge is not None and due:
                    row["val_score"] = self._validate(weights.detach())
                self.record.log(step=self.update, **row)
                if progress is not None:
                    progress({"update": float(self.update), **row})
                late = (self.update - self.best_update) // validate_every
                if self.judge is not None and patience is not None and due and late >= patience:
                    break
                if time.process_time() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.process_time()
            self._save()
        return self._learned(weights.detach())

    def _validate(self, weights: torch.Tensor) -> float:
        assert self.judge is not None
        value = self.judge.score(self.shape, weights, self.settings.max_change)
        self.scores.append([self.update, value])
        if value < self.best_score:
            self.best, self.best_score, self.best_update = weights.clone(), value, self.update
        return value

    def _save(self) -> None:
        extras = {
            "seconds": self.seconds,
            "scores": self.scores,
            "best": self.best.tolist(),
            "best_score": self.best_score if math.isfinite(self.best_score) else 1e30,
            "best_update": self.best_update,
        }
        self.record.save(self.update, self.model, self.optimizer, extras=extras, **self.learners)

    def _learned(self, last: torch.Tensor) -> Learned:
        record = {
            **self.about,
            **self.config,
            "updates": self.update,
            "cpu_seconds": round(self.seconds, 1),
            "kept_update": self.best_update if self.judge else self.update,
            "validation_score": self.best_score if self.judge else None,
            "validation_scores": [[int(update), round(value, 5)] for update, value in self.scores],
            "versions": versions(),
        }
        weights = self.best if self.judge else last.clone()
        return Learned(self.shape, weights, self.settings.max_change, self.settings.interval, record=record)


def parse_budget(budget: str | float) -> float:
    """Seconds of "20min", "1.5h", "90s" or a number.

    Raises:
        TypeError, ValueError: nothing of the kind.
    """
    if isinstance(budget, bool) or not isinstance(budget, str | int | float):
        raise TypeError(f'budget must be seconds or a text such as "20min", got {budget!r}')
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h)\s*", budget)
        if found is None:
            raise ValueError(f'budget must be like "90s", "20min" or "2h", got {budget!r}')
        budget = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be above 0, got {budget!r}")
    return float(budget)


def _checked(preset: Settings, settings: dict[str, Any]) -> Settings:
    unknown = set(settings) - set(asdict(preset))
    if unknown:
        raise TypeError(f"unknown settings {', '.join(sorted(unknown))}; there are {', '.join(asdict(preset))}")
    chosen = replace(preset, **settings)
    if chosen.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {chosen.method!r}")
    for name in ("hidden", "interval", "intervals", "pairs"):
        integer(name, getattr(chosen, name), minimum=1)
    for name in ("meta_lr", "sigma", "max_change"):
        positive(name, getattr(chosen, name))
    if not 0 <= chosen.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {chosen.dropout!r}")
    if chosen.order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {chosen.order!r}")
    return chosen


def _check_tasks(tasks: Sequence[Task], validation: Sequence[Task]) -> None:
    for name, suite in (("tasks", tasks), ("validation", validation)):
        for task in suite:
            if not isinstance(task, Task):
                raise TypeError(f"{name} must be metafast.schedule.Task objects, got {type(task).__name__}")
    if not tasks:
        raise ValueError("tasks must have at least one task")
    both = {task.data for task in tasks} & {task.data for task in validation}
    if both:
        raise ValueError(f"validation must have other data than tasks, got {', '.join(sorted(both))} in both")


def _seen(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Names of data and models, for whoever must keep something apart."""
    return {
        "data": sorted({task.data for task in tasks}),
        "models": sorted({_model_name(task) for task in tasks}),
    }


@functools.lru_cache(maxsize=256)
def _model_name(task: Task) -> str:
    return type(task.model(0)).__name__


def _spread(count: int, share: float) -> list[bool]:
    """Which of `count` tasks, evenly spread, belong to a share of them."""
    return [math.floor((i + 1) * share + 1e-9) > math.floor(i * share + 1e-9) for i in range(count)]


def _combined(estimates: list[torch.Tensor], method: str) -> torch.Tensor:
    """The mean; windows that explode must not outweigh the others, so theirs are scaled to one size."""
    if method == "truncated":
        estimates = [x / x.norm().clamp(min=1.0) for x in estimates]
    return torch.stack(estimates).mean(0).nan_to_num(0.0, 0.0, 0.0)
