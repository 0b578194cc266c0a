"""A ring of snapshots of a tuned training: written in the background, resumed bit for bit, rolled back to."""

from __future__ import annotations

import atexit
import copy
import math
import os
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metafast._checks import fraction, integer, positive
from metafast.runs import _checkpoint, rng_state, set_rng_state
from metafast.runs._lock import take_lock
from metafast.runs._objects import apply, capture, check_objects, named_objects

if TYPE_CHECKING:
    from metafast.tune._tuner import OnlineTuner


@dataclass(frozen=True)
class RollBack:
    """When a training goes back to its last good snapshot, and with which learning rate it goes on.

    It goes back once the validation loss has been not finite, or above `best + (worse - 1) |best|`, `patience` times in
    a row. Then every learning rate is multiplied by `factor`, inside its bounds, so that it does not fall into the same
    hole; the hyper-optimizer is that of the snapshot.

    Args:
        worse: above 1. Default 2: twice the best loss.
        patience: looks at the validation data. Default 2.
        factor: of learning rates, in (0, 1). Default 0.5.
        limit: roll-backs in one training; after that it goes on as it is. Default 5.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> RollBack(worse=1.5).is_bad(0.31, best=0.2)
        True
    """

    worse: float = 2.0
    patience: int = 2
    factor: float = 0.5
    limit: int = 5

    def __post_init__(self) -> None:
        if positive("worse", self.worse) <= 1:
            raise ValueError(f"worse must be above 1, got {self.worse!r}")
        integer("patience", self.patience, minimum=1)
        fraction("factor", self.factor)
        integer("limit", self.limit, minimum=0)

    def is_bad(self, value: float, best: float) -> bool:
        """Whether a validation loss counts against the training."""
        return not math.isfinite(value) or value > best + (self.worse - 1) * abs(best)


class Snapshots:
    """Saves a tuned training again and again, and takes it back when it goes wrong.

    A snapshot has model, optimizer, tuner (values, histories, tangents or window, hyper-optimizer), `stateful` objects,
    and the random states of Python, NumPy and torch: safetensors and JSON with checksums, each complete before the
    oldest goes. The training thread only copies tensors; one thread writes, and of several snapshots that wait for it
    the newest is written. Snapshots are taken only while the validation loss is within the rule of `rollback`, so that
    the last one is good.

    A snapshot that cannot be written (a full disk, a folder that is gone) is a warning and `error`, never the end of
    the training; older ones stay, and the next is tried again.

    A roll-back restores model, optimizer, tuner and `stateful` objects but not data and random states: the same
    batches would lead to the same place. `resume` restores these too.

    Args:
        folder: of this training alone.
        every: calls of the tuner between two snapshots. Default 100.
        keep: snapshots on disk. Default 3.
        rollback: None: never. Default `RollBack()`.
        background: False writes in the training thread. Default True.
        data: a loader with `state_dict()`, such as `metafast.data.Batches`; its position.
        stateful: further objects with `state_dict()`: a scheduler, a `GradScaler`.

    Attributes:
        events: roll-backs: dicts with `calls`, `validation`, `best`, `to` (calls of the snapshot).
        error: of the last snapshot, None if it was written.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.
        RuntimeError: another process uses the folder.

    Example:
        >>> import tempfile, torch
        >>> from torch.nn import functional as F
        >>> from metafast.tune import OnlineTuner
        >>> folder, x, y = tempfile.mkdtemp(), torch.randn(64, 4), torch.randint(2, (64,))
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> snapshots = Snapshots(folder, every=10)
        >>> tuner = OnlineTuner(model, opt, "lr", [(x[32:], y[32:])], snapshots=snapshots)
        >>> for step in range(snapshots.resume(tuner), 30):
        ...     loss = tuner.step(lambda: F.cross_entropy(model(x[:32]), y[:32]))
        >>> snapshots.close()
        >>> snapshots.resume(tuner)
        30
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 100,
        keep: int = 3,
        rollback: RollBack | None = RollBack(),
        background: bool = True,
        data: Any = None,
        **stateful: Any,
    ) -> None:
        self.every = integer("every", every, minimum=1)
        self.keep = integer("keep", keep, minimum=1)
        if rollback is not None and not isinstance(rollback, RollBack):
            raise TypeError(f"rollback must be a RollBack or None, got {type(rollback).__name__}")
        for name, value in named_objects(None, None, {"data": data, **stateful}).items():
            capture(name, value)  # what cannot be saved is said now
        if {"model", "optimizer", "tuner"} & set(stateful):
            raise ValueError("model, optimizer and tuner are saved anyway; leave them out of stateful")
        self.folder, self.rollback = Path(folder), rollback
        self.data, self._stateful = data, stateful
        self.events: list[dict[str, Any]] = []
        self.error: OSError | None = None
        self._best, self._bad, self._looks = math.inf, 0, 0
        self._good: dict[str, Any] | None = None  # the last snapshot, in memory
        self._warned = False
        self._writer = _Writer(self.folder, self.keep) if background else None
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock: int | None = take_lock(self.folder / ".lock")
        except BlockingIOError:
            raise RuntimeError(f"another process writes snapshots to {folder}; choose another folder") from None
        self._number = max(_checkpoint.steps_on_disk(self.folder), default=-1) + 1

    # ---- while training

    def after_step(self, tuner: OnlineTuner) -> None:
        """Rolls back, or takes a snapshot that is due; the tuner calls it at the end of each step."""
        self._hear()
        if len(tuner.validation) > self._looks:
            self._looks = len(tuner.validation)
            if self._look(tuner, tuner.validation[-1][1]):
                return
        if not self._bad and tuner.calls % self.every == 0 and math.isfinite(self._best):
            self.save(tuner)

    def save(self, tuner: OnlineTuner) -> None:
        """Takes a snapshot now."""
        objects = self._objects(tuner, with_data=True)
        state = copy.deepcopy({name: capture(name, value) for name, value in objects.items()})
        ring = {"best": self._best, "events": self.events, "bad": self._bad}
        self._good = {"objects": state, "rng": rng_state(), "extras": {"calls": tuner.calls, **copy.deepcopy(ring)}}
        if self._writer is not None:
            self._writer.put(self._number, self._good)
        else:
            self._note(_write(self.folder, self._number, self._good, self.keep))
        self._number += 1

    def flush(self) -> None:
        """Waits until all is written."""
        if self._writer is not None:
            self._writer.flush()
        self._hear()

    def close(self) -> None:
        """Writes what waits, and leaves the folder to others."""
        self.flush()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Snapshots({str(self.folder)!r}, {self._number} taken, {len(self.events)} roll-backs, error={self.error})"
        )

    # ---- going back

    def resume(self, tuner: OnlineTuner) -> int:
        """Goes on from the newest good snapshot, bit for bit.

        Args:
            tuner: made with the arguments of the training that was interrupted.

        Returns:
            Calls of the tuner so far; 0 where there is no snapshot.

        Raises:
            ValueError: the snapshots belong to another model, optimizer or tuner. Nothing has changed then.
        """
        self.flush()
        objects = self._objects(tuner, with_data=True)
        for number, state, problem in _checkpoint.valid(self.folder):
            if state is None:
                warnings.warn(f"{problem}; the one before it is used", RuntimeWarning, stacklevel=2)
                _checkpoint.set_aside(self.folder, number)
                continue
            check_objects(number, state["objects"], objects)
            self._restore(objects, state)
            set_rng_state(state["rng"])
            kept = state["extras"]
            self._best, self._bad, self._looks = kept["best"], kept["bad"], len(tuner.validation)
            self.events = list(kept["events"])
            self._good = state
            calls: int = kept["calls"]
            return calls
        return 0

    def _look(self, tuner: OnlineTuner, value: float) -> bool:
        """Judges a validation loss; whether the training went back."""
        rule = self.rollback
        if rule is not None and rule.is_bad(value, self._best):
            self._bad += 1
            if self._bad >= rule.patience and self._good is not None and len(self.events) < rule.limit:
                self._go_back(tuner, value, rule)
                return True
            return False
        self._bad = 0
        if math.isfinite(value):
            self._best = min(self._best, value)
        return False

    def _go_back(self, tuner: OnlineTuner, value: float, rule: RollBack) -> None:
        assert self._good is not None
        event = {"calls": tuner.calls, "validation": value, "best": self._best, "to": self._good["extras"]["calls"]}
        self._restore(self._objects(tuner, with_data=False), self._good)
        tuner.scale_rates(rule.factor)
        self.events.append({**event, "rule": asdict(rule)})
        self._bad, self._looks = 0, len(tuner.validation)
        self.save(tuner)  # with the smaller rates, so that a resumed training and the next roll-back have them

    def _objects(self, tuner: OnlineTuner, *, with_data: bool) -> dict[str, Any]:
        others = {"tuner": tuner, **self._stateful, "data": self.data if with_data else None}
        return named_objects(tuner.module, tuner.optimizer, others)

    @staticmethod
    def _restore(objects: dict[str, Any], state: dict[str, Any]) -> None:
        kept = copy.deepcopy(state["objects"])
        for name in reversed(objects):  # the rest before the model: what can refuse a state does so first
            apply(objects[name], kept[name])

    # ---- errors

    def _hear(self) -> None:
        if self._writer is not None:
            self._note(self._writer.error)

    def _note(self, error: OSError | None) -> None:
        self.error = error
        if error is None:
            self._warned = False
        elif not self._warned:
            self._warned = True
            warnings.warn(
                f"{error}; the training goes on, and the next snapshot is tried", RuntimeWarning, stacklevel=4
            )


class _Writer:
    """One thread that writes the newest of what waits."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._waiting: tuple[int, dict[str, Any]] | None = None
        self._busy = False
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self.error: OSError | None = None  # of the last one written

    def put(self, number: int, state: dict[str, Any]) -> None:
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="metafast snapshots", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._waiting = (number, state)
            self._condition.notify_all()

    def flush(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting is None and not self._busy)

    def _serve(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None)
                assert self._waiting is not None
                (number, state), self._waiting, self._busy = self._waiting, None, True
            error = _write(self._folder, number, state, self._keep)
            with self._condition:
                self._busy, self.error = False, error
                self._condition.notify_all()


def _write(folder: Path, number: int, state: dict[str, Any], keep: int) -> OSError | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _checkpoint.write(folder, number, state, keep=keep)
    except OSError as error:
        return error
    return None
