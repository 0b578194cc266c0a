"""Trainings side by side, one thread each, with progress; an interrupted one leaves records that go on."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from metafast._worker import begin_worker

T = TypeVar("T")
Train = Callable[[T, Path, Callable[[int], None], Callable[[], bool]], None]

_shared: dict[str, Any] = {}


class StoppedError(Exception):
    """The whole was interrupted; a training saved its state and left."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(tasks: Sequence[T], train: Train[T], root: Path, jobs: int, progress: Callable[[T, int], None]) -> None:
    """Run every task to its end on `jobs` processes; `progress(task, step)` is called as they advance.

    Args:
        tasks: what `train` takes; pickled.
        train: `train(task, root, progress, stop)`, at the top of a module: trains in `root`, calls `progress(step)`,
            and when `stop()` is true saves its state and raises `StoppedError`.
        root: the folder of the records.
        jobs: processes; 1: this one.
        progress: called in this process.

    Raises:
        KeyboardInterrupt: after the trainings in progress saved their states.
    """
    if not tasks:
        return
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                train(task, root, lambda step, task=task: progress(task, step), lambda: False)  # type: ignore[misc]
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=_begin, initargs=(messages, stop)
    ) as pool:
        futures = [pool.submit(_work, train, task, root, index) for index, task in enumerate(tasks)]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, timeout=0.1)
                while True:
                    try:
                        index, step = messages.get_nowait()
                    except queue.Empty:
                        break
                    progress(tasks[index], step)
                for future in done:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin(messages: Any, stop: Any) -> None:
    begin_worker()
    _shared.update(messages=messages, stop=stop)


def _work(train: Train[T], task: T, root: Path, index: int) -> None:
    stop = _shared["stop"].is_set
    if stop():
        return
    try:
        train(task, root, lambda step: _shared["messages"].put((index, step)), stop)
    except StoppedError:
        return
