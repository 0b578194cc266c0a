"""Where legs are trained: in this process one after another, or on worker processes that may die."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from metafast._worker import begin_worker
from metafast.runs import rng_state, set_rng_state
from metafast.tune.population._member import Leg, Member, run_leg

Train = Callable[[Member], Any]
OnReport = Callable[[Leg, int, float], None]
LOOK_AGAIN = 1.0  # seconds; processes that a dead worker has left behind may hold its pipe open


class Pool(Protocol):
    """Takes legs and gives them back when they are done, in any order."""

    slots: int  # legs trained at the same time

    def submit(self, leg: Leg) -> None:
        """Train this leg when there is room."""

    def wait(self) -> list[Leg]:
        """Legs that are done, at least one of those submitted."""

    def close(self) -> None:
        """End the workers; legs not done are lost."""


class InTurn:
    """One leg after another in this process, which keeps its random states and number of threads."""

    slots = 1

    def __init__(self, train: Train, folder: Path, threads: int, on_report: OnReport) -> None:
        self._train, self._folder, self._threads, self._on_report = train, folder, threads, on_report
        self._queue: deque[Leg] = deque()

    def submit(self, leg: Leg) -> None:
        """Train this leg when its turn comes."""
        self._queue.append(leg)

    def wait(self) -> list[Leg]:
        """The next leg, done."""
        leg = self._queue.popleft()
        threads, random = torch.get_num_threads(), rng_state()
        torch.set_num_threads(self._threads)
        try:
            return [run_leg(self._train, leg, self._folder, lambda *report: self._on_report(leg, *report))]
        finally:
            torch.set_num_threads(threads)
            set_rng_state(random)

    def close(self) -> None:
        """Nothing to end."""


class _Worker:
    """A process that trains one leg at a time."""

    def __init__(self, context: Any, train: bytes, folder: Path, threads: int) -> None:
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, train, folder, threads))
        self.process.start()
        theirs.close()
        self.ready = False
        self.leg: Leg | None = None

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


class Workers:
    """Up to `count` processes; one that dies costs its leg, and another takes its place."""

    def __init__(self, train: Train, folder: Path, threads: int, on_report: OnReport, count: int) -> None:
        try:
            self._train = pickle.dumps(train)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"train must be a function at the top of a module, which worker processes can import, got {train!r} "
                f"({error}); move it there, or use workers=0"
            ) from None
        self.slots = count
        self._folder, self._threads, self._on_report = folder, threads, on_report
        self._context = multiprocessing.get_context("spawn")
        self._queue: deque[Leg] = deque()
        self._workers: list[_Worker] = []

    def submit(self, leg: Leg) -> None:
        """Give the leg to a worker that is free, or else to the first that will be."""
        self._queue.append(leg)
        self._assign()

    def wait(self) -> list[Leg]:
        """Legs that are done, at least one of those submitted."""
        done: list[Leg] = []
        while not done:
            busy = [worker for worker in self._workers if worker.leg is not None]
            ready = wait([worker.connection for worker in busy], timeout=LOOK_AGAIN)
            for worker in busy:
                if worker.connection in ready or not worker.process.is_alive():
                    done.extend(self._hear(worker))
            self._assign()
        return done

    def close(self) -> None:
        """End the workers; legs not done are lost."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _assign(self) -> None:
        while self._queue:
            worker = next((w for w in self._workers if w.leg is None), None)
            if worker is None:
                if len(self._workers) == self.slots:
                    return
                worker = _Worker(self._context, self._train, self._folder, self._threads)
                self._workers.append(worker)
            worker.leg = self._queue.popleft()
            try:
                worker.connection.send(worker.leg)
            except OSError:  # it has just died; wait() will hear that
                return

    def _hear(self, worker: _Worker) -> list[Leg]:
        leg = worker.leg
        assert leg is not None
        try:
            while worker.connection.poll():
                kind, *content = worker.connection.recv()
                if kind == "ready":
                    worker.ready = True
                elif kind == "report":
                    self._on_report(leg, *content)
                elif kind == "unusable":
                    raise TypeError(
                        f"train must be a function that worker processes can import: {content[0]}; "
                        "move it to the top of a module, or use workers=0"
                    )
                else:
                    worker.leg = None
                    return content
            if worker.process.is_alive():
                return []
        except (EOFError, ConnectionError):
            pass
        self._workers.remove(worker)
        worker.process.join(LOOK_AGAIN)
        worker.end()
        how = _ending(worker.process.exitcode)
        if not worker.ready:
            raise RuntimeError(
                f"a worker process ended before it began ({how}): a script that starts workers must run its work under "
                'if __name__ == "__main__":, and train must be in a file; or use workers=0'
            )
        return [replace(leg, error=f"the process died ({how})")]


def _serve(connection: Connection, train: bytes, folder: Path, threads: int) -> None:
    begin_worker(threads)
    try:
        function = pickle.loads(train)
    except Exception as error:
        connection.send(("unusable", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready",))
    while True:
        try:
            leg = connection.recv()
        except EOFError:
            return
        done = run_leg(function, leg, folder, lambda *report: connection.send(("report", *report)))
        connection.send(("done", done))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
