"""One contender in a process of its own, so that its memory and its threads are nobody else's."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

GEMM = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")


class WorkerError(RuntimeError):
    """What a contender's process could not do."""


class Worker:
    """Starts a contender's process and talks to it.

    Args:
        name: of the contender.
        workload: name of the workload.
        threads: of the process.
    """

    def __init__(self, name: str, workload: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, workload, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, command: str) -> Any:
        """Sends a command and waits for the answer.

        Raises:
            WorkerError: the contender failed, or its process ended.
        """
        try:
            self._pipe.send(command)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise WorkerError("its process ended") from None
        if isinstance(answer, Exception):
            raise WorkerError(f"{type(answer).__name__}: {answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, name: str, workload: str, threads: int) -> None:
    import torch

    from .batched import WORKLOADS
    from .contenders import CONTENDERS

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    given = WORKLOADS[workload]
    batch = given.batch()
    run: Any = None
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        try:
            if command == "build":
                run = CONTENDERS[name].build(given)
                run(batch[:1])
                pipe.send(None)
            elif command == "turn":
                pipe.send(_turn(run, batch))
            else:
                pipe.send(_profile(run, batch[:4]))
        except Exception as error:  # the other end says which contender it was
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _turn(run: Any, batch: Any) -> dict[str, Any]:
    """Time, memory above what was resident before, and the logits."""
    from benchmarks.maml import memory

    memory.reset_peak()
    before, wall, cpu = memory.resident_mb(), time.perf_counter(), time.process_time()
    logits = run(batch)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak_mb": memory.peak_mb() - before, "logits": logits.tolist()}


def _profile(run: Any, batch: Any) -> dict[str, float]:
    """Where the time goes, on a few tasks."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        run(batch)
    rows = profiler.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    gemm = sum(row.self_cpu_time_total for row in rows if row.key in GEMM)
    attention = sum(row.self_cpu_time_total for row in rows if "scaled_dot_product" in row.key)
    flops = sum(row.flops for row in rows if row.key in GEMM)
    return {
        "tasks": len(batch),
        "seconds": total / 1e6,
        "gemm_share": gemm / total,
        "attention_share": attention / total,
        "gemm_gflop": flops / 1e9,
    }
