"""One contender in a process of its own, so that its allocator, its threads and its memory are nobody else's.

It reads commands and answers them, one JSON object a line: `build`, `first` (the first meta-gradient, with the memory
that it takes), `check` (a gradient to compare), `turn` (timed). `Worker` is the other end of the pipe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TURN_SECONDS = 0.15  # a turn repeats short meta-gradients for at least this long


class WorkerError(RuntimeError):
    """What a contender's process could not do."""


class Worker:
    """Starts a contender's process and talks to it.

    Args:
        name: of the contender.
        workload: name of the workload.
        steps, order: of the inner loop.
        threads: of the whole process.
        overrides: fields of the workload that are replaced, such as `tasks`.
    """

    def __init__(self, name: str, workload: str, steps: int, order: int, threads: int, **overrides: Any) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        spec = {"name": name, "workload": workload, "steps": steps, "order": order, "threads": threads, **overrides}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Raises:
            WorkerError: the contender failed, or its process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError("its process ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _Contender:
    """The commands, in the contender's own process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from dataclasses import replace

        import torch

        from .contenders import BY_NAME
        from .workloads import WORKLOADS

        names = ("name", "workload", "steps", "order", "threads")
        self.name, self.workload_name, self.steps, self.order, self.threads = (spec[n] for n in names)
        torch.set_num_threads(self.threads)
        overrides = {key: value for key, value in spec.items() if key not in names}
        self.workload = replace(WORKLOADS[self.workload_name], **overrides)
        self.contender = BY_NAME[self.name]
        self.run: Any = None
        self.repeats = 1

    def build(self, warm: bool = False) -> dict[str, Any]:
        """Everything up to the first call. `warm` solves a small problem first, so that libraries do not count."""
        from . import memory
        from .workloads import small

        if self.contender.kind == "jax" and hasattr(os, "sched_setaffinity"):
            # XLA sizes its pool by the cores that it may use; flags for it come and go.
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        build = self.contender.load()
        problem = self.workload.problem(self.steps, self.order)
        if warm:
            build(small(self.workload).problem(1, self.order))()
        memory.reset_peak()
        self.start_mb = memory.resident_mb()
        start = time.perf_counter()
        self.run = build(problem)
        return {"seconds": time.perf_counter() - start}

    def first(self) -> dict[str, Any]:
        """Two meta-gradients (one, where it takes long), and the most memory since the start."""
        from . import memory

        seconds = self._time()
        if seconds < 2.0:
            seconds = min(seconds, self._time())
        self.repeats = max(1, min(1000, round(TURN_SECONDS / max(seconds, 1e-6))))
        return {"peak_mb": memory.peak_mb() - self.start_mb}

    def _time(self) -> float:
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def check(self, output: str) -> dict[str, Any]:
        """Writes the gradients of the checked problem."""
        import torch

        from . import check

        torch.save(self.contender.build(check.problem(self.workload_name, self.steps, self.order))(), output)
        return {}

    def turn(self) -> dict[str, Any]:
        """Seconds of one meta-gradient."""
        if self.repeats > 1:
            self.run()  # its weights and code are in cache, as they are in a loop of its own
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.repeats):
            self.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall / self.repeats, "cpu": cpu / self.repeats}


def serve(spec: dict[str, Any]) -> None:
    """Answers commands until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    contender: _Contender | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            contender = contender or _Contender(spec)
            answer = getattr(contender, request.pop("command"))(**request)
        except Exception as error:  # a contender that cannot do a workload is a result
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    serve(json.loads(parser.parse_args().spec))
