"""Times all contenders of one workload in turns, each in its own process, with the core's peak among them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import write_results

from . import check
from .contenders import Contender
from .peak import fma_probe
from .worker import Worker, WorkerError
from .workloads import WORKLOADS

Group = dict[str, Any]
Log = Callable[[str], None]
WARM = ("metafast", "metafast, recomputing", "learn2learn")  # whose memory is measured with warm libraries, too
RETRIED = (None, "missing", "failed", "wrong gradient")  # states of rows that are tried again in a file that exists


def key(workload: str, steps: int, order: int, threads: int) -> str:
    """Name of a group in a results file."""
    return f"{workload} | steps {steps} | order {order} | threads {threads}"


class Results:
    """A JSON file that is rewritten, whole or not at all, after each round; a second start goes on from there."""

    def __init__(self, path: Path | None, provenance: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {**provenance, "groups": {}}
        if path is not None and path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["machine"]["cpu"] != provenance["machine"]["cpu"]:
                raise SystemExit(f"{path} was measured on {old['machine']['cpu']}: give another --output")
            self.content = old

    @property
    def groups(self) -> dict[str, Group]:
        """Groups by name."""
        groups: dict[str, Group] = self.content["groups"]
        return groups

    def save(self) -> None:
        """Writes the file."""
        if self.path is not None:
            write_results(self.path, self.content)


def measure(
    results: Results,
    contenders: Sequence[Contender],
    workload: str,
    *,
    steps: int,
    order: int,
    threads: int,
    rounds: int,
    commit: str,
    log: Log = lambda _: None,
) -> Group:
    """Measures one group, or what a results file still lacks of it.

    Args:
        results: where rounds are kept.
        contenders: who takes part; those of a file's group stay in it.
        workload: name of the workload.
        steps, order: of the inner loop.
        threads: of each process.
        rounds: turns of each contender.
        commit: of metafast, kept with the group.
        log: is told what happens.

    Returns:
        The group: per contender its state, error, memory, and a time for each round.
    """
    name = key(workload, steps, order, threads)
    group = results.groups.setdefault(
        name,
        {
            "workload": workload, "steps": steps, "order": order, "threads": threads, "commit": commit,
            "gflop": WORKLOADS[workload].flops(steps, order) / 1e9, "load": [], "peak_gflops": [], "rows": {},
        },
    )  # fmt: skip
    rows = group["rows"]
    wanted = [c for c in contenders if c.workloads is None or workload in c.workloads]
    new = [c for c in wanted if rows.get(c.name, {}).get("state") in RETRIED]
    done = len(group["peak_gflops"])
    workers: dict[str, Worker] = {}

    def start(contender: Contender) -> None:
        row, worker = _start(contender, workload, steps, order, threads)
        log(f"{name}: {contender.name}: {row['state']} {row.get('reason', '')}")
        rows[contender.name] = {**row, **{k: rows.get(contender.name, {}).get(k, []) for k in ("wall", "cpu")}}
        if worker is not None:
            workers[contender.name] = worker
        results.save()

    try:
        for contender in new:
            start(contender)
        if done and workers:  # a newcomer's rounds must be beside everybody's: the group starts again
            done = 0
            group.update(load=[], peak_gflops=[], commit=commit)
            for row in rows.values():
                row["wall"], row["cpu"] = [], []
        if done >= rounds:
            return group
        for contender in wanted:
            if contender.name not in workers and rows[contender.name]["state"] == "timed":
                start(contender)
        probe = fma_probe()
        for number in range(done, rounds if workers else done):
            log(f"{name}: round {number + 1} of {rounds}")
            _round(group, workers, number, probe, threads)
            results.save()
    finally:
        for worker in workers.values():
            worker.close()
    return group


def _start(
    contender: Contender, workload: str, steps: int, order: int, threads: int
) -> tuple[dict[str, Any], Worker | None]:
    """A contender's row up to its first turn, and its process where it can be timed."""
    row: dict[str, Any] = {"kind": contender.kind, "state": "missing"}
    if order not in contender.orders:
        return {**row, "state": "not offered", "reason": f"has no order {order}"}, None
    reason = contender.missing()
    if reason is not None:
        return {**row, "reason": reason}, None
    worker = Worker(contender.name, workload, steps, order, threads)
    try:
        if contender.name in WARM:
            row["warm_mb"] = _warm_memory(contender.name, workload, steps, order, threads)
        row["build_seconds"] = worker.ask("build")["seconds"]
        row["peak_mb"] = worker.ask("first")["peak_mb"]
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "grads.pt")
            worker.ask("check", output=file)
            row["error"] = check.error(torch.load(file), check.reference(workload, steps, order))
        if row["error"] > check.tolerance(workload):
            worker.close()
            return {**row, "state": "wrong gradient", "reason": f"{row['error']:.1e} from float64"}, None
    except WorkerError as error:
        worker.close()
        return {**row, "state": "failed", "reason": str(error)}, None
    return {**row, "state": "timed"}, worker


def _warm_memory(name: str, workload: str, steps: int, order: int, threads: int) -> float:
    worker = Worker(name, workload, steps, order, threads)
    try:
        worker.ask("build", warm=True)
        memory: float = worker.ask("first")["peak_mb"]
        return memory
    finally:
        worker.close()


def _round(group: Group, workers: dict[str, Worker], number: int, probe: Any, threads: int) -> None:
    # A new order in each round: nobody always runs after the same neighbour.
    names = list(workers)
    turns: dict[str, dict[str, float]] = {}
    peaks = []
    for offset in range(len(names)):
        name = names[(offset + number) % len(names)]
        if probe is not None and offset % 4 == 0:
            peaks.append(probe(threads))
        turns[name] = workers[name].ask("turn")
    for name, turn in turns.items():
        for clock in ("wall", "cpu"):
            group["rows"][name][clock].append(turn[clock])
    group["load"].append(round(os.getloadavg()[0], 2))
    group["peak_gflops"].append({"wall": _best(p.wall for p in peaks), "cpu": _best(p.cpu for p in peaks)})


def _best(values: Iterable[float]) -> float | None:
    return max(values, default=None)
