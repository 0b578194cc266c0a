"""Meta-training with a record: validation, early stopping, checkpoints, data parallel over tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from metafast._checks import integer
from metafast.maml._evaluate import Evaluation, evaluate, to_model
from metafast.maml._mamlpp import cosine_schedule
from metafast.maml._parallel import meta_gradient, world
from metafast.maml._progress import Progress
from metafast.maml._task_learner import TaskLearner
from metafast.maml._training_state import TrainingState, Window
from metafast.runs import Run
from metafast.runs._checkpoint import replace_file

if TYPE_CHECKING:
    from metafast.data import TaskBatch

BEST = "best.safetensors"


@dataclass(frozen=True)
class Training:
    """How a meta-training ended.

    Args:
        path: the run's folder; `metafast.runs.Run.open(path)` has the curves.
        steps: meta-steps done.
        stopped: "steps" (all done), "patience" (no better validation) or "time" (`max_minutes`).
        best_step: the meta-step of the best validation; None without validation.
        best_score: its accuracy, or mean squared error.
        seconds: of training, validation included, over all resumes.
        dropped: tasks left out because their loss was not finite.
    """

    path: Path
    steps: int
    stopped: str
    best_step: int | None
    best_score: float | None
    seconds: float
    dropped: int

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for a record."""
        return {
            "steps": self.steps,
            "stopped": self.stopped,
            "best_step": self.best_step,
            "best_validation": self.best_score,
            "seconds": round(self.seconds, 3),
            "dropped": self.dropped,
        }


class Trainer:
    """Trains a meta-learner on episodes, and loses nothing if it is interrupted.

    The record is a `metafast.runs.Run`: curves of loss and accuracy, validation with 95 % intervals, dropped tasks,
    checkpoints. With `resume=True` a run that was killed goes on bit for bit from its last checkpoint. Under torchrun
    or `accelerate launch` every process builds the same trainer (after `torch.distributed.init_process_group`); each
    takes a share of the tasks of every batch, and process 0 writes the record.

    Args:
        maml: any algorithm.
        train: batches of training tasks from `metafast.data.episodes`; where several processes train, with their `rank`
            and `world_size`, or whole batches of which each process takes its share.
        steps: meta-steps.
        val: batches of validation tasks; the same first `val_episodes` are used each time. Default: no validation.
        optimizer: an optimizer of `maml.parameters()`, or a function that makes one of them. Default: Adam with
            rate 1e-3.
        schedule: None, "cosine" (see `cosine_schedule`), or an object with `step()` and `state_dict()`.
        clip: largest norm of the meta-gradient. Default: no limit.
        val_every: meta-steps between validations. Default: a twentieth of `steps`.
        val_episodes: episodes of a validation. Default 200.
        patience: stop after this many validations without a better one. Default: never.
        save_every: meta-steps between checkpoints. Default: `val_every`.
        log_every: meta-steps between rows of the record. Default 50.
        max_minutes: stop after this time of training. Default: no limit.
        output: folder of runs. Default "runs".
        name: of the run's folder; default: the time.
        seed: written to the record; the learner and the episodes have their own.
        config: whatever else defines the run, for the record.
        tags: for the record.
        resume: go on with the run `name` where it exists.
        progress: show a bar on a terminal, lines elsewhere. Default True.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example:
        >>> import tempfile, torch, metafast
        >>> x = torch.randn(8, 10, 4); y = (x.sum(-1) > 0).long()
        >>> tasks = [metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])] * 4
        >>> maml = metafast.maml.MAML(torch.nn.Linear(4, 2), inner_lr=0.1, steps=2)
        >>> trainer = Trainer(maml, tasks, 6, val=tasks, val_episodes=8, output=tempfile.mkdtemp(), progress=False)
        >>> result = trainer.fit()
        >>> result.steps, result.stopped
        (6, 'steps')

    Source:
        The protocol of Finn et al., ICML 2017, and Antoniou et al., ICLR 2019.
    """

    def __init__(
        self,
        maml: TaskLearner,
        train: Iterable[TaskBatch],
        steps: int,
        *,
        val: Iterable[TaskBatch] | None = None,
        optimizer: torch.optim.Optimizer | Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Any = None,
        clip: float | None = None,
        val_every: int | None = None,
        val_episodes: int = 200,
        patience: int | None = None,
        save_every: int | None = None,
        log_every: int = 50,
        max_minutes: float | None = None,
        output: str | Path = "runs",
        name: str | None = None,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        resume: bool = False,
        progress: bool = True,
    ) -> None:
        if not isinstance(maml, TaskLearner):
            raise TypeError(
                f"maml must be an algorithm of metafast.maml, or a MetaFineTuner, got {type(maml).__name__}"
            )
        if not isinstance(train, Iterable):
            raise TypeError(
                f"train must be batches of tasks, as metafast.data.episodes(...), got {type(train).__name__}"
            )
        if not (optimizer is None or callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer)):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer or make one, got {type(optimizer).__name__}; a function of "
                "the parameters does, such as lambda p: torch.optim.Adam(p)"
            )
        if isinstance(train, Iterator):
            raise TypeError("train must be iterable more than once, as metafast.data.episodes(...) is, not an iterator")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip!r}")
        if max_minutes is not None and not max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, got {max_minutes!r}")
        if resume and name is None:
            raise ValueError("name must be given with resume=True; it says which run to go on with")
        self.maml, self.train, self.val = maml, train, val
        self.steps = integer("steps", steps, minimum=1)
        self.clip, self.max_minutes = clip, max_minutes
        self.val_every = max(1, self.steps // 20) if val_every is None else integer("val_every", val_every, minimum=1)
        self.val_episodes = integer("val_episodes", val_episodes, minimum=1)
        self.patience = None if patience is None else integer("patience", patience, minimum=1)
        self.save_every = self.val_every if save_every is None else integer("save_every", save_every, minimum=1)
        self.log_every = integer("log_every", log_every, minimum=1)
        self.output, self.name, self.seed = Path(output), name, seed
        self.config, self.tags, self.resume, self.progress = dict(config or {}), list(tags), resume, progress
        parameters = [parameter for parameter in maml.parameters() if parameter.requires_grad]
        self.optimizer: torch.optim.Optimizer
        if optimizer is None:
            self.optimizer = torch.optim.Adam(parameters, lr=1e-3)
        else:
            self.optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(parameters)
        if isinstance(schedule, str) and schedule != "cosine":
            raise ValueError(f'schedule must be None, "cosine" or a scheduler, got {schedule!r}')
        self.schedule = cosine_schedule(self.optimizer, self.steps) if schedule == "cosine" else schedule

    def fit(self) -> Training:
        """Train to the end; the best weights of the validation are in the learner afterwards.

        Returns:
            How it ended, and where the record is.

        Raises:
            FileExistsError: a run of that name exists and `resume` is False.
            ValueError: a loss that is not finite (with `on_nan="raise"`), or what the learner raises.
        """
        rank, size = world()
        state = TrainingState()
        run, objects = self._open(state, rank, size)
        self._seconds_before, self._began = state.seconds, time.perf_counter()
        if state.stopped is None:
            with Progress(self.steps, state.step, shown=self.progress and rank == 0) as bar:
                if run is None:
                    self._loop(state, None, objects, bar)
                else:
                    with run:
                        self._loop(state, run, objects, bar)
        path = self.output / (run.name if run is not None else self.name or "")
        if self.val is not None and state.best_step is not None:
            self._barrier(size)
            load_weights(self.maml, path / BEST)
        return Training(
            path, state.step, state.stopped or "steps", state.best_step, state.best_score, state.seconds, state.dropped
        )

    # ---- inside

    def _open(self, state: TrainingState, rank: int, size: int) -> tuple[Run | None, dict[str, Any]]:
        """The record, with everything put back where there was one."""
        objects: dict[str, Any] = {} if self.schedule is None else {"schedule": self.schedule}
        if hasattr(self.train, "state_dict"):
            objects["episodes"] = self.train
        if size > 1 and self.name is None:
            raise ValueError("name must be given where several processes train: they share the run's folder")
        exists = self.resume and self.name is not None and (self.output / self.name / "run.jsonl").exists()
        run: Run | None = None
        self._barrier(size)  # all have looked before one makes the folder
        if rank == 0:
            if exists:
                done = Run.open(self.output / str(self.name))
                run = done if done.status == "finished" else Run.resume(done.path)
            else:
                run = Run.create(
                    self.output, name=self.name, seed=self.seed, config=self._describe(), tags=["maml", *self.tags]
                )
        if exists:
            source = run if run is not None else Run.open(self.output / str(self.name))
            back = source.restore(self.maml, self.optimizer, **objects)
            if back is not None:
                state.load(back.step, back.extras)
                if run is not None and state.stopped is not None and run.status != "finished":
                    run.finish()  # killed between its last checkpoint and its last word
        self._barrier(size)
        return run, objects

    def _describe(self) -> dict[str, Any]:
        maml = self.maml
        return {
            "algorithm": type(maml).__name__,
            "inner_steps": maml.steps,
            "order": maml.order,
            "parameters": sum(p.numel() for p in maml.parameters()),
            "optimizer": type(self.optimizer).__name__,
            "meta_lr": float(self.optimizer.param_groups[0]["lr"]),
            "steps": self.steps,
            "clip": self.clip,
            "val_episodes": self.val_episodes,
            "processes": world()[1],
            **self.config,
        }

    def _loop(self, state: TrainingState, run: Run | None, objects: dict[str, Any], bar: Progress) -> None:
        maml, window = self.maml, Window(state.window)
        maml.train()
        if self.val is not None and state.step == 0 and state.score is None:
            self._validate(state, run, bar)
        tasks = forever(self.train)
        own = world()[1] > 1 and getattr(self.train, "world_size", 1) == world()[1]
        while state.stopped is None:
            batch = next(tasks)
            began = time.perf_counter()
            metrics = meta_gradient(maml, to_model(maml, batch), own=own)
            norm = self._step()
            state.step += 1
            state.dropped += len(metrics["dropped"])
            if norm is None:
                state.skipped += 1
            window.add(metrics, norm, time.perf_counter() - began)
            last = state.step == self.steps
            if run is not None and (state.step % self.log_every == 0 or last):
                row = window.row()
                run.log(
                    step=state.step,
                    **row,
                    meta_lr=float(self.optimizer.param_groups[0]["lr"]),
                    dropped=state.dropped,
                    skipped=state.skipped,
                )
                bar.update(state.step, row)
                window = Window({})
            else:
                bar.update(state.step, {})
            late = self._is_late(state)
            if self.val is not None and (state.step % self.val_every == 0 or last or late):
                self._validate(state, run, bar)
            if last or late:
                state.stopped = "steps" if last else "time"
            elif self.patience is not None and state.waited >= self.patience:
                state.stopped = "patience"
            if run is not None and (state.stopped or state.step % self.save_every == 0):
                state.seconds, state.window = self._seconds(), window.sums
                run.save(state.step, maml, self.optimizer, extras=state.extras(), **objects)
        state.seconds = self._seconds()
        if run is not None:
            run.note("the training ended", reason=state.stopped, best_step=state.best_step, dropped=state.dropped)

    def _step(self) -> float | None:
        """One step of the meta-optimizer; the gradient's norm, or None where it is not finite and no step was made."""
        parameters = [p for p in self.maml.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip or math.inf))
        if not math.isfinite(norm):
            if self.maml.on_nan == "raise":
                raise ValueError(
                    f"the meta-gradient is not finite (norm {norm}); lower inner_lr or the meta rate, "
                    'or skip such steps with on_nan="drop"'
                )
            self.optimizer.zero_grad()
        else:
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return norm if math.isfinite(norm) else None

    def _validate(self, state: TrainingState, run: Run | None, bar: Progress) -> None:
        assert self.val is not None
        result = evaluate(self.maml, self.val, self.val_episodes)
        state.score = result.score.mean
        better = state.best_score is None or (
            result.score.mean > state.best_score
            if result.metric == "accuracy"
            else result.score.mean < state.best_score
        )
        if better:
            state.best_score, state.best_step, state.waited = result.score.mean, state.step, 0
        elif state.step > 0:
            state.waited += 1
        if run is not None:
            names = {
                f"val_{result.metric}": result.score.mean,
                "val_half_width": result.score.half,
                "val_loss": result.loss.mean,
            }
            run.log(step=state.step, **names)
            if better:
                save_weights(self.maml, run.path / BEST)
        bar.validated(state.step, result)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _is_late(self, state: TrainingState) -> bool:
        late = self.max_minutes is not None and self._seconds() > 60 * self.max_minutes
        if self.max_minutes is None or world()[1] == 1:
            return late
        said = torch.tensor(float(late))
        torch.distributed.all_reduce(said)  # clocks differ: all stop, or none
        return bool(said > 0)

    @staticmethod
    def _barrier(size: int) -> None:
        if size > 1:
            torch.distributed.barrier()


def forever(episodes: Iterable[TaskBatch]) -> Iterator[TaskBatch]:
    """Batches without end, from the beginning again where the episodes end."""
    while True:
        empty = True
        for batch in episodes:
            empty = False
            yield batch
        if empty:
            raise ValueError("train must give at least one batch of tasks, it gave none")


def save_weights(maml: TaskLearner, path: Path) -> None:
    """Write a learner's state to a safetensors file, whole or not at all."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in maml.state_dict().items()}
    replace_file(path, lambda file: save_file(state, file))


def load_weights(maml: TaskLearner, path: Path) -> None:
    """Read what `save_weights` wrote."""
    maml.load_state_dict(load_file(path))


__all__ = ["Evaluation", "Trainer", "Training", "load_weights", "save_weights"]
