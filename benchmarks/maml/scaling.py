"""Time against tasks (to 256) and inner steps (to 50), memory against inner steps (to 100), on Omniglot's Conv4.

python -m benchmarks.maml.scaling --output benchmarks/results/maml_scaling.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.convergence.study import RESULTS
from benchmarks.provenance import provenance

from .__main__ import PEERS
from .contenders import BY_NAME
from .measure import Results
from .worker import Worker, WorkerError
from .workloads import WORKLOADS

NAMES = ("metafast", "metafast, recomputing", "learn2learn", "JAX scan")
TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = (1, 2, 5, 10, 20, 35, 50)
UNROLL = 100
STEP_TASKS = 4  # of the sweeps over steps
COLOURS = {
    "metafast": "#d62728", "metafast, recomputing": "#ff9d6f", "learn2learn": "#777777", "JAX scan": "#1f77b4",
}  # fmt: skip
# XLA compiles an unrolled loop of 50 steps for minutes.
MOST_STEPS = {"JAX scan": 10}


def points(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(tasks, steps) of both sweeps; the last one is for memory."""
    sweep = [(tasks, 5) for tasks in args.tasks] + [(STEP_TASKS, steps) for steps in (*args.steps, args.unroll)]
    return list(dict.fromkeys(sweep))


def run(args: argparse.Namespace, results: Results) -> None:
    """Measures what the file lacks; a point is the median of interleaved rounds."""
    for tasks, steps in points(args):
        group = results.groups.setdefault(
            f"tasks {tasks} | steps {steps}", {"tasks": tasks, "steps": steps, "rows": {}}
        )
        names = [n for n in args.only if BY_NAME[n].missing() is None and steps <= MOST_STEPS.get(n, steps)]
        names = [n for n in names if len(group["rows"].get(n, {}).get("cpu", [])) < args.rounds]
        workers: dict[str, Worker] = {}
        try:
            for name in names:
                worker = Worker(name, args.workload, steps, 2, 1, tasks=tasks)
                try:
                    worker.ask("build")
                    peak = worker.ask("first")["peak_mb"]
                except WorkerError as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    worker.close()
                    continue
                workers[name] = worker
                group["rows"][name] = {"peak_mb": peak, "wall": [], "cpu": []}
            for number in range(args.rounds):
                print(f"tasks {tasks}, steps {steps}, round {number + 1}", file=sys.stderr, flush=True)
                for name, worker in workers.items():
                    turn = worker.ask("turn")
                    for clock in ("wall", "cpu"):
                        group["rows"][name][clock].append(turn[clock])
        finally:
            for worker in workers.values():
                worker.close()
        results.save()


def series(results: dict[str, Any], name: str, along: str, value: str) -> list[tuple[int, float]]:
    """(tasks or steps, milliseconds or MB) of a contender, ascending."""
    groups = [g for g in results["groups"].values() if name in g["rows"]]
    if along == "tasks":
        groups = [g for g in groups if g["steps"] == 5]
    else:
        groups = [g for g in groups if g["tasks"] == STEP_TASKS]
    found = {}
    for g in groups:
        row = g["rows"][name]
        found[g[along]] = row["peak_mb"] if value == "peak_mb" else 1e3 * statistics.median(row[value])
    return sorted(found.items())


def summarize(results: dict[str, Any], clock: str) -> dict[str, Any]:
    """Whether cost is linear and memory flat: least and most time per task and per added step, MB per added step."""
    weights_mb = 4e-6 * sum(p.numel() for p in WORKLOADS[results["workload"]].model().parameters())
    summary: dict[str, Any] = {"weights_mb": weights_mb}
    for name in NAMES:
        tasks = [ms / n for n, ms in series(results, name, "tasks", clock)]
        steps, memory = series(results, name, "steps", clock), series(results, name, "steps", "peak_mb")
        if not tasks or len(steps) < 2:
            continue
        per_step = [(b - a) / (m - n) for (n, a), (m, b) in pairwise(steps)]
        summary[name] = {
            "ms_per_task": [min(tasks), max(tasks)],
            "ms_per_added_step": [min(per_step), max(per_step)],
            "mb_per_added_step": (memory[-1][1] - memory[0][1]) / (memory[-1][0] - memory[0][0]),
            "mb_at_most_steps": list(memory[-1]),
        }
    return summary


def sentences(results: dict[str, Any]) -> list[str]:
    """The summary in words, a line for each contender."""
    summary = results["summary"]
    lines = []
    for name in NAMES:
        if name in summary:
            row = summary[name]
            tasks, added = row["ms_per_task"], row["ms_per_added_step"]
            steps, most = row["mb_at_most_steps"]
            lines.append(
                f"{name}: {tasks[0]:.3g} to {tasks[1]:.3g} ms per task, {added[0]:.3g} to {added[1]:.3g} ms and "
                f"{row['mb_per_added_step']:.2f} MB per added step (one copy of the weights: "
                f"{summary['weights_mb']:.2f} MB), {most:.0f} MB at {steps} steps"
            )
    return lines


def plot(results: dict[str, Any], path: Path, clock: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    kinds = (
        ("tasks", clock, "tasks (5 steps)", "ms per meta-gradient"),
        ("steps", clock, f"inner steps ({STEP_TASKS} tasks)", "ms per meta-gradient"),
        ("steps", "peak_mb", f"inner steps ({STEP_TASKS} tasks)", "peak MB above start"),
    )
    for axis, (along, value, xlabel, ylabel) in zip(axes, kinds, strict=True):
        for name in NAMES:
            line = series(results, name, along, value)
            if line:
                axis.plot(*zip(*line, strict=True), marker="o", ms=4, label=name, color=COLOURS[name])
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    weights_mb = results["summary"]["weights_mb"]
    copies = [n for n, _ in series(results, NAMES[0], "steps", "peak_mb")]
    axes[2].plot(copies, [weights_mb * n for n in copies], ls=":", color="black", label="one weight copy per step")
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="omniglot", choices=list(WORKLOADS))
    parser.add_argument("--tasks", type=int, nargs="+", default=list(TASKS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--unroll", type=int, default=UNROLL, help="steps of the longest unroll (default 100)")
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu", help="of summary and plot; both are kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "maml_scaling.json", help="the plot goes beside it")
    args = parser.parse_args(argv)
    results = Results(args.output, {**provenance("maml scaling", *PEERS), "workload": args.workload})
    run(args, results)
    results.content["summary"] = summarize(results.content, args.clock)
    results.save()
    plot(results.content, args.output.with_suffix(".png"), args.clock)
    print("\n".join(sentences(results.content)))
    return results.content


if __name__ == "__main__":
    main()
