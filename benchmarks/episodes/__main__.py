"""Times the making of meta-batches: `python -m benchmarks.episodes --output benchmarks/results/episodes.json`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import provenance, write_results
from metafast.data import ClassSet, TaskBatch, episodes

from .contenders import CONTENDERS, SMOKE, WORKLOADS, Make, Workload


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.episodes", description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=[*WORKLOADS, "smoke"])
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--output", type=Path, help="results file (JSON)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {**provenance("episodes"), "clock": "thread time", "workloads": []}
    for name in args.workloads:
        results["workloads"].append(run(SMOKE if name == "smoke" else WORKLOADS[name], args.rounds))
        if args.output is not None:
            write_results(args.output, results)
    print(markdown(results))
    return results


def run(w: Workload, rounds: int) -> dict[str, Any]:
    """The times of all contenders on one workload, in turns, on the clock of the calling thread."""
    source = w.source()
    makers: dict[str, Make] = {}
    for name, build in CONTENDERS.items():
        try:
            makers[name] = build(source, w)
        except NotImplementedError:
            continue
        check(makers[name](), source, w)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            begin = time.thread_time()
            make()
            times[name].append(time.thread_time() - begin)
    size = w.tasks * w.ways * (w.shots + w.queries) * int(np.prod(w.shape))
    return {
        "name": w.name,
        "megabytes": 4e-6 * size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "all_milliseconds": {name: [1e3 * value for value in values] for name, values in times.items()},
        "caller_milliseconds": 1e3 * ahead(source, w, rounds),
    }


def ahead(source: ClassSet, w: Workload, rounds: int) -> float:
    """Seconds of the calling thread per meta-batch while a C++ thread works ahead and the caller is busy elsewhere."""
    made = iter(
        episodes(
            source, ways=w.ways, shots=w.shots, queries=w.queries, tasks=w.tasks,
            turned_classes=w.turned_classes, augment=w.augment,
        )
    )  # fmt: skip
    spent = []
    for _ in range(rounds + 2):
        begin = time.thread_time()
        next(made)
        spent.append(time.thread_time() - begin)
        time.sleep(0.05)
    return statistics.median(spent[2:])


def check(batch: TaskBatch, source: ClassSet, w: Workload) -> None:
    """A contender that makes something else has no time."""
    batch.validate(w.ways)
    assert batch.support_x.shape == (w.tasks, w.ways * w.shots, *w.shape), batch.support_x.shape
    assert batch.query_x.shape == (w.tasks, w.ways * w.queries, *w.shape), batch.query_x.shape
    for y, each in ((batch.support_y, w.shots), (batch.query_y, w.queries)):
        assert all(torch.bincount(task, minlength=w.ways).eq(each).all() for task in y)
    low, high = (float((value / 255 - 0.5) / 0.25) for value in (source.examples.min(), source.examples.max()))
    assert low - 1e-5 <= float(batch.query_x.min()) < float(batch.query_x.max()) <= high + 1e-5


def markdown(results: dict[str, Any]) -> str:
    """A table of milliseconds per meta-batch."""
    names = list(CONTENDERS)
    lines = [
        "| ms per meta-batch, one core | " + " | ".join(names) + " | caller, made ahead |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in results["workloads"]:
        cells = [f"{row['milliseconds'][name]:.2f}" if name in row["milliseconds"] else "" for name in names]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {row['caller_milliseconds']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
