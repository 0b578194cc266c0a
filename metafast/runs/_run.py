"""The run record: one folder per training run, readable and resumable whatever happened to the process."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import numbers
import os
import random
import secrets
import socket
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metafast._checks import integer
from metafast.runs import _checkpoint
from metafast.runs._checkpoint import CheckpointError, dumps
from metafast.runs._lock import take_lock
from metafast.runs._objects import apply, capture, check_objects, named_objects
from metafast.runs._state import pack, unpack
from metafast.runs._versions import versions

FORMAT = 1
LOG = "run.jsonl"
_locked: weakref.WeakSet[Run] = weakref.WeakSet()
STATUSES = ("running", "finished", "failed", "killed")
_RESERVED = ("kind", "step", "time")


class Restored(NamedTuple):
    """What `Run.restore` brought back: the step of the checkpoint and its `extras`."""

    step: int
    extras: dict[str, Any]


class Curve(NamedTuple):
    """One metric over a run: `steps` (int64) and `values` (float64), equally long."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class Run:
    """One training run: a folder with `run.jsonl` (configuration, versions, metrics, status) and checkpoints.

    Make one with `Run.create`, look at one with `Run.open`, go on with one with `Run.resume`. As a context manager it
    records how the run ended. A process that dies at any moment, by ``kill -9`` too, leaves a readable record, and the
    run goes on bit for bit from its last checkpoint.

    Example:
        >>> import tempfile, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> with Run.create(tempfile.mkdtemp(), config={"lr": 0.1}, seed=0) as run:
        ...     for step in range(1, 4):
        ...         run.log(step=step, loss=1 / step)
        ...     run.save(3, model)
        >>> Run.open(run.path).curve("loss").steps.tolist(), run.status
        ([1, 2, 3], 'finished')
    """

    def __init__(self, path: Path, *, _writable: bool = False) -> None:
        self._path = path
        self._fd: int | None = None
        self._lock: int | None = None
        self._writable = _writable
        self._must_restore = False
        self._keep = 2
        self._cache: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None
        self._last_step = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    # ---- making, opening ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        keep: int = 2,
    ) -> Run:
        """Start a record in a new folder under `root`.

        Args:
            root: folder of runs; made if missing.
            config: what defines the run; anything but tensors that `Run.save` can hold.
            seed: the seed of the run; recorded, and applied by `seed_all`, not here.
            name: folder name; default is the time and a random suffix.
            tags: words to find the run by.
            keep: how many checkpoints to keep, at least 1; with 2 a damaged newest one costs little.

        Returns:
            The run, open for writing.

        Raises:
            FileExistsError: `root/name` already holds a run.
            TypeError: an argument of the wrong type, or a config that JSON cannot hold.
            OSError: the folder cannot be written to.

        Example:
            >>> import tempfile
            >>> run = Run.create(tempfile.mkdtemp(), config={"lr": 0.1}, seed=7, tags=["try"])
            >>> run.config, run.seed, run.status
            ({'lr': 0.1}, 7, 'running')
            >>> run.finish()
        """
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"config must be a mapping such as a dict, got {type(config).__name__}")
        if seed is not None:
            seed = integer("seed", seed)
        if isinstance(tags, str):
            raise TypeError(f"tags must be a list of strings, got the string {tags!r}; write [{tags!r}]")
        tags = list(tags)
        if not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"tags must be strings, got {tags!r}")
        keep = integer("keep", keep, minimum=1)
        if name is None:
            name = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        elif not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"name must be a plain folder name, got {name!r}")
        tree, tensors = pack(dict(config or {}))
        if tensors:
            raise TypeError(
                "config holds tensors or arrays, expected numbers, strings and lists of them; save arrays by save()"
            )

        path = Path(root) / name
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, _writable=True)
        run._keep = keep
        run._take_lock()
        if (path / LOG).exists():
            run._release()
            raise FileExistsError(
                f"{path} already holds a run; go on with Run.resume({str(path)!r}) or choose another name"
            )
        header = {
            "kind": "header",
            "format": FORMAT,
            "name": name,
            "created": _now(),
            "seed": seed,
            "tags": tags,
            "keep": keep,
            "config": tree,
            "versions": versions(),
            **_process(),
        }
        try:
            _checkpoint.replace_file(path / LOG, lambda file: file.write_text(dumps(header) + "\n", encoding="utf-8"))
            run._open_log()
        except BaseException:
            run._release()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open a record for reading; the run may be in progress in another process.

        Args:
            path: the run's folder.

        Raises:
            FileNotFoundError: no record there.
            ValueError: its first line is unreadable or from a newer format.

        Example:
            >>> Run.open("nowhere")
            Traceback (most recent call last):
            ...
            FileNotFoundError: nowhere holds no run (no run.jsonl); list_runs(root) shows what is there
        """
        run = cls(Path(path))
        run._header()
        return run

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> Run:
        """Open a record to go on with it; call `restore` next.

        Args:
            path: the run's folder.

        Returns:
            The run, open for writing once `restore` was called.

        Raises:
            FileNotFoundError: no record there.
            RuntimeError: another process is writing it.

        Example:
            >>> import tempfile
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.log(step=1, loss=2.0)
            >>> again = Run.resume(run.path)
            >>> again.restore() is None  # no checkpoint: start from the beginning
            True
            >>> again.finish()
        """
        run = cls(Path(path), _writable=True)
        header = run._header()
        run._keep = header.get("keep", 2)
        run._take_lock()
        run._must_restore = True
        return run

    # ---- reading -----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._path.name

    @property
    def config(self) -> dict[str, Any]:
        """The configuration given to `create`."""
        config: dict[str, Any] = unpack(self._header()["config"], {})
        return config

    @property
    def seed(self) -> int | None:
        """The seed given to `create`."""
        seed: int | None = self._header()["seed"]
        return seed

    @property
    def tags(self) -> list[str]:
        """The tags given to `create`."""
        return list(self._header()["tags"])

    @property
    def versions(self) -> dict[str, str | None]:
        """Versions and machine at the start of the run; rows of kind "resume" hold those of later processes."""
        return dict(self._header()["versions"])

    @property
    def status(self) -> str:
        """ "running", "finished", "failed" (by an exception) or "killed" (the process is gone without a word)."""
        status = "running"
        owner = self._header()
        for row in self.rows():
            if row["kind"] == "status":
                status = row["status"]
            elif row["kind"] == "resume":
                status, owner = "running", row
        if status == "running" and self._fd is None and not self._is_held(owner):
            return "killed"
        return status

    @property
    def cost(self) -> dict[str, float]:
        """`seconds` of training that the record stands on (work lost to a crash not counted) and `steps` done."""
        seconds, steps = 0.0, 0
        for row in self.rows():
            seconds = max(seconds, row.get("time", 0.0))
            steps = max(steps, row.get("step", 0))
        return {"seconds": seconds, "steps": steps}

    @property
    def metrics(self) -> list[str]:
        """Names of the logged metrics, in order of appearance."""
        names = {key: None for row in self.rows() if row["kind"] == "metrics" for key in row if key not in _RESERVED}
        return list(names)

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the record as a dict; a line cut off by a crash is left out.

        Returns:
            Rows with a "kind": "header", "metrics", "note", "checkpoint", "resume" or "status".

        Example:
            >>> import tempfile
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.note("watchdog", rate=0.1)
            >>> [row["kind"] for row in run.rows()]
            ['header', 'note', 'status']
        """
        log = self._path / LOG
        try:
            stat = log.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._cache is None or self._cache[0] != stamp:
                self._cache = stamp, _parse(log, log.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self._path} holds no run (no {LOG}); list_runs(root) shows what is there"
            ) from None
        return list(self._cache[1])

    def curve(self, metric: str) -> Curve:
        """One metric over the run.

        Args:
            metric: a name that was logged.

        Returns:
            `Curve(steps, values)`, arrays of equal length.

        Raises:
            KeyError: nothing was logged by that name.
            TypeError: the metric is not a number in every row.

        Example:
            >>> import tempfile
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.log(step=10, loss=0.5)
            >>> run.curve("loss").values
            array([0.5])
        """
        steps, values = [], []
        for row in self.rows():
            if row["kind"] == "metrics" and metric in row:
                value = unpack(row[metric], {})
                if not isinstance(value, int | float):
                    raise TypeError(
                        f"metric {metric!r} is a {type(value).__name__} at step {row['step']}, "
                        "expected a number; rows() has all values"
                    )
                steps.append(row["step"])
                values.append(float(value))
        if not steps:
            raise KeyError(f"no metric {metric!r} in {self._path}; logged: {self.metrics or 'nothing'}")
        return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    def checkpoints(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return _checkpoint.steps_on_disk(self._folder)

    # ---- writing -----------------------------------------------------------------------------------------------

    def log(self, *, step: int, **metrics: Any) -> None:
        """Append one row of metrics.

        Args:
            step: steps done so far; never smaller than in the row before.
            metrics: numbers, 0-d tensors, or lists of numbers. Log before `save`, so that both are of one moment.

        Raises:
            ValueError: `step` went back, or a reserved name.
            TypeError: a value that is not numbers.
            OSError: the row could not be written (full disk); the record stays whole and later rows may succeed.

        Example:
            >>> import tempfile
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.log(step=1, loss=0.5, rates=[0.1, 0.2])
        """
        step = integer("step", step, minimum=0)
        if step < self._last_step:
            raise ValueError(f"step must not go back: got {step} after {self._last_step}")
        if not metrics:
            raise ValueError("metrics must not be empty; write log(step=..., loss=...)")
        for key in metrics:
            if key in _RESERVED:
                raise ValueError(f"{key!r} cannot be a metric, the record uses that name; reserved: {_RESERVED}")
        row = {"kind": "metrics", "step": step, "time": self._seconds()}
        row.update({key: _number(key, value) for key, value in metrics.items()})
        self._append(row)
        self._last_step = step

    def note(self, text: str, **data: Any) -> None:
        """Append an event that is not a metric, such as a fallback that was taken.

        Args:
            text: what happened.
            data: anything that the configuration could hold.

        Raises:
            TypeError: data that JSON cannot hold.
            OSError: the row could not be written.

        Example:
            >>> import tempfile
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.note("loss rose, back to the base rate", step=12)
        """
        tree, tensors = pack(data)
        if not isinstance(text, str) or tensors:
            raise TypeError("note takes a text and plain data; save tensors by save()")
        self._append({"kind": "note", "step": self._last_step, "time": self._seconds(), "text": text, "data": tree})

    def save(
        self,
        step: int,
        model: Any = None,
        optimizer: Any = None,
        *,
        extras: Mapping[str, Any] | None = None,
        **stateful: Any,
    ) -> None:
        """Write a checkpoint: states, random states of Python, NumPy, torch and CUDA, and `extras`.

        Args:
            step: steps done.
            model: an object with `state_dict()` and `load_state_dict()`.
            optimizer: the same.
            extras: further values (numbers, strings, tensors, arrays, nested as you like).
            stateful: further objects with `state_dict()`, such as a scheduler or `metafast.data.Batches`; also
                `torch.Generator` and `numpy.random.Generator`.

        Raises:
            CheckpointError: (an OSError) it could not be written; earlier ones are untouched, training can go on.
            TypeError: something in a state that only pickle could store.

        Example:
            >>> import tempfile, torch
            >>> model = torch.nn.Linear(2, 1)
            >>> opt = torch.optim.AdamW(model.parameters())
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.save(1, model, opt, extras={"epoch": 0})
            >>> run.checkpoints()
            [1]
        """
        step = integer("step", step, minimum=0)
        self._check_writable()
        objects = named_objects(model, optimizer, stateful)
        state = {
            "objects": {name: capture(name, value) for name, value in objects.items()},
            "rng": rng_state(),
            "extras": dict(extras or {}),
            "seconds": self._seconds(),
        }
        if self._fd is not None:
            with contextlib.suppress(OSError):  # rows of before reach the disk before the checkpoint does
                os.fsync(self._fd)
        size = _checkpoint.write(self._folder, step, state, keep=self._keep)
        self._last_step = max(self._last_step, step)
        self._append({"kind": "checkpoint", "step": step, "time": self._seconds(), "bytes": size})

    def restore(
        self, model: Any = None, optimizer: Any = None, *, rng: bool = True, **stateful: Any
    ) -> Restored | None:
        """Load the newest good checkpoint into the given objects and cut the record back to it.

        Model and optimizer are checked before anything changes, and the record is cut once all is loaded.
        On a run opened with `Run.open` it only loads.

        Args:
            model: as given to `save`.
            optimizer: as given to `save`.
            rng: whether to restore the random states too.
            stateful: as given to `save`, by the same names.

        Returns:
            `Restored(step, extras)`; None where the run has no good checkpoint and starts again.

        Raises:
            ValueError: the objects are not those of the checkpoint.

        Example:
            >>> import tempfile, torch
            >>> model = torch.nn.Linear(2, 1)
            >>> with Run.create(tempfile.mkdtemp()) as run:
            ...     run.save(5, model, extras={"epoch": 1})
            >>> Run.open(run.path).restore(model)
            Restored(step=5, extras={'epoch': 1})
        """
        if self._fd is not None:
            raise RuntimeError("restore comes right after Run.resume or Run.open; this run is already being written")
        objects = named_objects(model, optimizer, stateful)
        found: tuple[int, dict[str, Any]] | None = None
        damaged = []
        for step, state, problem in _checkpoint.valid(self._folder):
            if state is not None:
                found = step, state
                break
            damaged.append((step, problem))
        if found is not None:
            check_objects(found[0], found[1]["objects"], objects)
        if found is not None:
            for name in reversed(objects):  # the rest before the model: what can refuse a state does so first
                apply(objects[name], found[1]["objects"][name])
            if rng:
                set_rng_state(found[1]["rng"])
        for step, problem in damaged:
            back = f"the one of step {found[0]}" if found else "the start"
            warnings.warn(f"{problem}; falling back to {back}", RuntimeWarning, stacklevel=2)
            if self._must_restore:
                _checkpoint.set_aside(self._folder, step)
        if self._must_restore:
            self._cut_back(found, [problem for _, problem in damaged])
        return None if found is None else Restored(found[0], found[1]["extras"])

    def finish(self) -> None:
        """Record that the run ended well, and close it; the context manager calls it."""
        self._end("finished")

    def fail(self, error: BaseException | str) -> None:
        """Record that the run ended by an error, and close it.

        Args:
            error: the exception, or words.
        """
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._end("failed", error=text)

    def close(self) -> None:
        """Close without a final word; the run counts as killed and can be resumed."""
        self._release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is None and self._lock is None:
            return
        if error is None:
            self.finish()
            return
        try:
            if isinstance(error, Exception):
                self.fail(error)
            else:  # Ctrl-C, SystemExit, GeneratorExit
                self._end("killed", error=type(error).__name__)
        except OSError as second:  # the error of the training matters more than that of its record
            warnings.warn(f"the end of run {self._path} could not be recorded: {second}", RuntimeWarning, stacklevel=2)
        finally:
            self._release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._release()

    def __repr__(self) -> str:
        return f"Run({str(self._path)!r})"

    # ---- inside ------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self._path / "checkpoints"

    def _header(self) -> dict[str, Any]:
        rows = self.rows()
        if not rows or rows[0].get("kind") != "header":
            raise ValueError(
                f"{self._path / LOG} does not begin with a header row; it is not a run record or was edited"
            )
        if rows[0]["format"] > FORMAT:
            raise ValueError(
                f"{self._path} has format {rows[0]['format']}, this metafast reads up to {FORMAT}: update metafast"
            )
        return rows[0]

    def _seconds(self) -> float:
        return round(self._seconds_before + time.perf_counter() - self._started, 6)

    def _check_writable(self) -> None:
        if self._fd is not None:
            return
        if self._must_restore:
            raise RuntimeError(
                "call restore(model, optimizer, ...) first: it brings the state back and cuts the record to it"
            )
        if self._writable:
            raise RuntimeError(f"run {self._path} is closed; go on with Run.resume({str(self._path)!r})")
        raise RuntimeError(
            f"run {self._path} was opened for reading; use Run.resume({str(self._path)!r}) to go on with it"
        )

    def _append(self, row: dict[str, Any]) -> None:
        self._check_writable()
        assert self._fd is not None
        data = (dumps(row) + "\n").encode()
        start = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)  # a half row would swallow the next one
            raise OSError(
                error.errno,
                f"cannot append to {self._path / LOG}: {error.strerror}; the record up to here is intact. "
                "Free some space, then log again",
            ) from error

    def _end(self, status: str, **more: Any) -> None:
        self._check_writable()
        assert self._fd is not None
        try:
            self._append(
                {
                    "kind": "status",
                    "status": status,
                    "step": self._last_step,
                    "time": self._seconds(),
                    "ended": _now(),
                    **more,
                }
            )
            os.fsync(self._fd)
        finally:
            self._release()

    def _open_log(self) -> None:
        self._fd = os.open(self._path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._started = time.perf_counter()

    def _cut_back(self, found: tuple[int, dict[str, Any]] | None, problems: list[str]) -> None:
        last, seconds = (found[0], found[1]["seconds"]) if found else (-1, 0.0)
        rows = [
            row
            for row in self.rows()
            if row["kind"] != "status" and not (row["kind"] in ("metrics", "note", "checkpoint") and row["step"] > last)
        ]
        self._last_step = max(last, 0)
        self._seconds_before = seconds
        rows.append(
            {
                "kind": "resume",
                "step": self._last_step,
                "time": self._seconds_before,
                "resumed": _now(),
                "versions": versions(),
                "damaged": problems,
                **_process(),
            }
        )
        text = "".join(dumps(row) + "\n" for row in rows)
        _checkpoint.remove_temporaries(self._path)
        _checkpoint.replace_file(self._path / LOG, lambda file: file.write_text(text, encoding="utf-8"))
        self._must_restore = False
        self._open_log()

    def _take_lock(self) -> None:
        try:
            self._lock = take_lock(self._path / ".lock")
            _locked.add(self)
        except BlockingIOError:
            self._release()
            raise RuntimeError(
                f"run {self._path} is being written by another process; wait for it or end it first"
            ) from None

    def _release(self) -> None:
        for fd in (self._fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._lock = None
        self._must_restore = False

    def _is_held(self, owner: dict[str, Any]) -> bool:
        if self._lock is not None:
            return True
        if owner.get("host") == socket.gethostname() and not _alive(owner.get("pid", -1)):
            return False
        try:
            fd = os.open(self._path / ".lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False


def list_runs(
    root: str | os.PathLike[str], *, status: str | None = None, tags: Iterable[str] = (), **config: Any
) -> list[Run]:
    """The runs in a folder, oldest first.

    Args:
        root: folder of runs; one that does not exist holds none.
        status: only those that are "running", "finished", "failed" or "killed".
        tags: only those with all of these tags.
        config: only those whose configuration has these values; `seed` stands for the run's seed.

    Returns:
        The runs, open for reading; a folder whose record is unreadable is left out with a warning.

    Raises:
        ValueError: an unknown status.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> for lr in (0.1, 0.2):
        ...     Run.create(root, config={"lr": lr}, seed=0).finish()
        >>> [run.config["lr"] for run in list_runs(root, lr=0.2, seed=0, status="finished")]
        [0.2]
    """
    if status is not None and status not in STATUSES:
        raise ValueError(f"status must be one of {STATUSES}, got {status!r}")
    if isinstance(tags, str):
        raise TypeError(f"tags must be a list of strings, got the string {tags!r}; write [{tags!r}]")
    wanted_tags = set(tags)
    found = []
    for log in sorted(Path(root).glob(f"*/{LOG}")):
        try:
            run = Run.open(log.parent)
            facts = {**run.config, **({"seed": run.seed} if "seed" in config and "seed" not in run.config else {})}
            ok = wanted_tags <= set(run.tags) and all(
                key in facts and facts[key] == value for key, value in config.items()
            )
            if ok and (status is None or run.status == status):
                found.append(run)
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"left out {log.parent}: {error}", RuntimeWarning, stacklevel=2)
    return sorted(found, key=lambda run: (run._header()["created"], run.name))


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CUDA included).

    Args:
        seed: 0 to 2**32 - 1 (NumPy's range).

    Raises:
        ValueError: outside that range.

    Example:
        >>> seed_all(0)
        >>> random.random()
        0.8444218515250481
    """
    seed = integer("seed", seed, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - others draw from the global one
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and every CUDA device's global generator.

    Returns:
        A dict that `set_rng_state` takes and `Run.save` can hold.

    Example:
        >>> state = rng_state()
        >>> a = random.random()
        >>> set_rng_state(state)
        >>> a == random.random()
        True
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - others draw from the global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned.

    Args:
        state: from `rng_state`. CUDA states are used as far as there are devices.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - others draw from the global one
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, index)


# ---- helpers ---------------------------------------------------------------------------------------------------


def _leave_to_parent() -> None:
    """A forked child, such as a data loader's worker, would hold the lock after its parent died."""
    for run in list(_locked):
        run._release()


os.register_at_fork(after_in_child=_leave_to_parent)


def _parse(path: Path, data: bytes) -> list[dict[str, Any]]:
    *lines, _torn = data.split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "kind" not in row:
                raise ValueError("not a row")
            rows.append(row)
        except ValueError:
            warnings.warn(f"line {number} of {path} is damaged and left out", RuntimeWarning, stacklevel=4)
    return rows


def _number(name: str, value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if isinstance(value, Tensor):
            value = value.detach().to("cpu")
        if value.ndim > 1:
            raise TypeError(f"metric {name!r} has shape {tuple(value.shape)}, expected a number or a list of numbers")
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_number(name, x) for x in value]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else pack(number)[0]
    if value is None or isinstance(value, str):
        raise TypeError(f"metric {name!r} is {value!r}, expected a number or a list of numbers; words go into note()")
    raise TypeError(f"metric {name!r} is a {type(value).__name__}, expected a number or a list of numbers")


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")


__all__ = ["CheckpointError", "Curve", "Restored", "Run", "list_runs", "rng_state", "seed_all", "set_rng_state"]
