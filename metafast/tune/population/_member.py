"""One member of a population, as the user's training function sees it, and the leg that it trains."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metafast._checks import integer
from metafast.runs import Run, _checkpoint, seed_all

LOG = "run.jsonl"
PATIENCE = 10.0  # seconds; a worker of a search that was killed may hold its record for a moment longer


@dataclass(frozen=True)
class Leg:
    """A part of one training: from one step to another with one configuration.

    Attributes:
        member: number of the training.
        number: of the leg: round of a `PB2`, rung of an `ASHA`.
        start: steps done before it.
        stop: steps done after it.
        config: values of the searched hyperparameters.
        seed: of all random numbers in it.
        source: the member whose weights it began with, where they were not its own.
        value: the last one reported; None if the leg failed or is not done.
        error: why it failed.
    """

    member: int
    number: int
    start: int
    stop: int
    config: dict[str, Any]
    seed: int
    source: int | None = None
    value: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Folder name of the member's record."""
        return f"member-{self.member:03d}"


class Member:
    """What a training function gets: a configuration, the steps to train, and a record to restore from and save to.

    The function is called once per leg. It builds everything, restores it, trains `steps`, reports, and saves:

        def train(member):
            model, opt, tuner = ...                      # from member.config
            member.restore(model, opt, tuner=tuner)      # does nothing at the very beginning
            for step in member.steps:
                ...
            member.report(step, validation_loss)
            member.save(model, opt, tuner=tuner)

    Attributes:
        config: values of the searched hyperparameters, by name.
        seed: of this leg; Python's, NumPy's and torch's generators are seeded with it before the function is called.
            Give it to whatever has a generator of its own, such as `metafast.data.Batches`: its position in the data
            is not worth saving, because a batch size may change.
        id: number of the member.
        start: steps done before this leg; 0 at the beginning.
        stop: steps done after it.
        path: folder of the member's `metafast.runs.Run`.
    """

    def __init__(self, leg: Leg, run: Run, on_report: Callable[[int, float], None]) -> None:
        self.config, self.seed, self.id = dict(leg.config), leg.seed, leg.member
        self.start, self.stop, self.path = leg.start, leg.stop, run.path
        self._run, self._on_report = run, on_report
        self._value: float | None = None
        self._saved = False

    @property
    def steps(self) -> range:
        """Numbers of the steps to train, `start + 1` to `stop`."""
        return range(self.start + 1, self.stop + 1)

    def restore(self, model: Any = None, optimizer: Any = None, **stateful: Any) -> dict[str, Any]:
        """Bring back what `save` saved: the member's own state, or that of the member that it takes over.

        Args:
            model: an object with `state_dict()` and `load_state_dict()`.
            optimizer: the same.
            stateful: further ones, such as an `OnlineTuner`; the names given to `save`.

        Returns:
            The `extras` given to `save`; an empty dict at the very beginning.

        Raises:
            ValueError: the objects are not those of the checkpoint.
            RuntimeError: the checkpoint of step `start` is damaged.
        """
        back = self._run.restore(model, optimizer, rng=False, **stateful)
        step = 0 if back is None else back.step
        if step != self.start:
            raise RuntimeError(f"{self.path} has no good checkpoint of step {self.start}, the last one is of {step}")
        self._run.note("leg", start=self.start, stop=self.stop, config=self.config, seed=self.seed)
        return {} if back is None else back.extras

    def report(self, step: int, value: float | Tensor, **metrics: Any) -> None:
        """Tell how good the training is; the last value of a leg is the one that members are compared by.

        Args:
            step: one of `steps`, or `start`; never smaller than in the report before.
            value: of a validation, a number or a tensor of one element.
            metrics: whatever else shall be in the record.

        Raises:
            TypeError: `value` is no number.
            ValueError: `step` is not part of the leg.
            FloatingPointError: `value` is not finite. It ends the leg: the member counts as failed.
            RuntimeError: `restore` was not called before.
        """
        step = integer("step", step)
        if not self.start <= step <= self.stop:
            raise ValueError(f"step must be one of {self.start} to {self.stop}, the steps of this leg, got {step}")
        if isinstance(value, bool | str):
            raise TypeError(f"value must be a number, got {value!r}")
        try:
            self._value = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"value must be a number or a tensor of one element, got {value!r}") from None
        self._run.log(step=step, value=self._value, **metrics)
        if not math.isfinite(self._value):
            raise FloatingPointError(f"the value reported at step {step} is {self._value}")
        self._on_report(step, self._value)

    def save(
        self, model: Any = None, optimizer: Any = None, *, extras: Mapping[str, Any] | None = None, **stateful: Any
    ) -> None:
        """Save the state after step `stop`; the next leg, and members that take this one over, begin with it.

        Args:
            model: as for `restore`.
            optimizer: as for `restore`.
            extras: further values, for `restore` to return.
            stateful: as for `restore`.

        Raises:
            CheckpointError: (an OSError) it could not be written.
            TypeError: something in a state that only pickle could store.
        """
        self._run.save(self.stop, model, optimizer, extras=extras, **stateful)
        self._saved = True

    def _outcome(self) -> float:
        if self._value is None:
            raise RuntimeError("train returned without member.report(step, value): members are compared by that value")
        if not math.isfinite(self._value):
            raise FloatingPointError(f"the last value reported is {self._value}")
        if not self._saved:
            raise RuntimeError("train returned without member.save(model, optimizer, ...): nothing could go on from it")
        return self._value


def run_leg(train: Callable[[Member], Any], leg: Leg, folder: Path, on_report: Callable[[int, float], None]) -> Leg:
    """Train one leg; a leg that is finished in the record is not trained again.

    Args:
        train: the user's function.
        leg: what to train.
        folder: of the population.
        on_report: called with step and value.

    Returns:
        The leg with its value, or with the error that ended it.
    """
    run: Run | None = None
    try:
        path = folder / leg.name
        if not (path / LOG).exists():  # closed at once, so that the first leg restores like any other
            Run.create(folder, name=leg.name, config=leg.config, seed=leg.seed, tags=["population"]).close()
        run = _taken(path)
        if _is_finished(run, leg):
            return replace(leg, value=float(run.curve("value").values[-1]))
        for step in run.checkpoints():
            if step > leg.start:  # of a leg that was cut off
                _checkpoint.set_aside(path / "checkpoints", step)
        if leg.source is not None:
            _copy_checkpoint(folder / replace(leg, member=leg.source).name, path, leg.start)
        seed_all(leg.seed)
        member = Member(leg, run, on_report)
        train(member)
        value = member._outcome()
        run.finish()
        return replace(leg, value=value)
    except (Exception, SystemExit) as error:
        return replace(leg, error=_recorded(run, error))
    finally:
        if run is not None:
            run.close()


def _is_finished(run: Run, leg: Leg) -> bool:
    ends = [row["status"] for row in run.rows() if row["kind"] == "status"]
    return ends == ["finished"] and run.checkpoints()[-1:] == [leg.stop]


def _taken(path: Path) -> Run:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return Run.resume(path)
        except RuntimeError:  # somebody writes it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _copy_checkpoint(source: Path, target: Path, step: int) -> None:
    state = _checkpoint.read(source / "checkpoints", step)
    _checkpoint.write(target / "checkpoints", step, state, keep=2)


def _recorded(run: Run | None, error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if run is not None:
        # not on a full disk, nor where train failed before it restored; the population's record has it in any case
        with contextlib.suppress(OSError, RuntimeError):
            run.note("the leg failed", error=text, trace=traceback.format_exc())
            run.fail(text)
    return text
