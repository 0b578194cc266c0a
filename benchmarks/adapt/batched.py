"""Adapting to many tasks at once against looping over them with peft: time, memory, and where the time goes.

python -m benchmarks.adapt.batched                     writes benchmarks/results/adapt_batched.json; two hours
python -m benchmarks.adapt.batched --workloads fewrel --rounds 5 --threads 2

Every contender has a process of its own and adapts to the same 16 tasks from the same numbers; first the logits of the
query examples are compared. They take turns, in an order that rotates; a speed is that of two turns of one round. A
file that exists is gone on with, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.convergence.study import RESULTS
from benchmarks.maml.peak import fma_probe
from benchmarks.provenance import provenance, write_results

from .contenders import CONTENDERS, PEFT
from .worker import Worker, WorkerError
from .workloads import Workload, bert, few_rel_lengths, lora, texts

TASKS, WAYS, SHOTS, TOKENS = 16, 5, 1, 64
TOLERANCE = 1e-4
WORKLOADS = {
    "64": Workload("64 tokens, LoRA in all layers", bert, lora(), lambda: texts(TASKS, WAYS, SHOTS, TOKENS)),
    "fewrel": Workload(
        "FewRel's lengths, LoRA in all layers",
        bert,
        lora(),
        lambda: texts(TASKS, WAYS, SHOTS, few_rel_lengths(TASKS, 2 * WAYS * SHOTS)),
    ),
    "last-4": Workload(
        "64 tokens, LoRA in the last 4 layers", bert, lora((8, 9, 10, 11)), lambda: texts(TASKS, WAYS, SHOTS, TOKENS)
    ),
    "last-2": Workload(
        "64 tokens, LoRA in the last 2 layers", bert, lora((10, 11)), lambda: texts(TASKS, WAYS, SHOTS, TOKENS)
    ),
    "tiny": Workload("tiny", lambda: bert(1, 64), lora(), lambda: texts(2, WAYS, SHOTS, 8), steps=2),
}
CHOSEN = (PEFT, "metafast, all at once", "metafast, four at once")


def measure(group: dict[str, Any], chosen: Sequence[str], workload: str, threads: int, rounds: int, save: Any) -> None:
    """Rounds of one workload into `group`, after those that it has.

    Raises:
        WorkerError: a contender failed.
        AssertionError: contenders came to different numbers.
    """
    rows = group["rows"]
    workers = {name: Worker(name, workload, threads) for name in chosen}
    probe = fma_probe()
    try:
        for worker in workers.values():
            worker.ask("build")
        for number in range(len(group["load"]), rounds):
            order = [chosen[(offset + number) % len(chosen)] for offset in range(len(chosen))]
            turns = {name: workers[name].ask("turn") for name in order}
            _check({name: torch.tensor(turn["logits"]) for name, turn in turns.items()}, group)
            for name, turn in turns.items():
                row = rows.setdefault(name, {"wall": [], "cpu": [], "peak_mb": []})
                for key in row.keys() & turn.keys():
                    row[key].append(turn[key])
            group["load"].append(round(os.getloadavg()[0], 2))
            save()
        for name, worker in workers.items():
            if "profile" not in rows[name]:
                peaks = [probe(threads) for _ in range(5)] if probe is not None else []
                peak = max((each.cpu for each in peaks), default=None)
                rows[name]["profile"] = {**worker.ask("profile"), "peak_gflops": peak}
                save()
    finally:
        for worker in workers.values():
            worker.close()


def _check(logits: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
    """First the numbers, then the time."""
    reference = next(iter(logits.values()))
    scale = float(reference.abs().max())
    error = max(float((other - reference).abs().max()) / scale for other in logits.values())
    assert error < TOLERANCE, f"the contenders' logits differ by {error:.1e} of the largest"
    group["error"] = max(error, group.get("error", 0.0))


def table(content: dict[str, Any], clock: str = "wall") -> str:
    """Seconds, memory, speed against peft of every contender, and how near its products of matrices are to the peak."""
    heads = ("tasks", "threads", "", "s", "speed", "peak MB", "share of GEMM", "GEMM, of the peak")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for group in content["groups"].values():
        base = group["rows"][PEFT][clock]
        for name, row in group["rows"].items():
            ratios = [other / mine for mine, other in zip(row[clock], base, strict=False)]  # a contender may have left
            speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            about = row.get("profile", {})
            cells = [group["title"], group["threads"], name, f"{statistics.median(row[clock]):.1f}"]
            cells += ["" if name == PEFT else speed, f"{max(row['peak_mb']):,.0f}"]
            cells.append(f"{100 * about['gemm_share']:.0f} %" if about else "")
            cells.append(f"{of_peak(row, about, group['threads']):.2f}" if about.get("peak_gflops") else "")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def of_peak(row: dict[str, Any], about: dict[str, Any], threads: int) -> float:
    """How near the products of matrices are to the fused multiply-adds that the cores can do, by processor time."""
    gflop = about["gemm_gflop"] / about["tasks"] * TASKS
    seconds = statistics.median(row["cpu"]) * about["gemm_share"] / threads
    return float(gflop / seconds / about["peak_gflops"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=[name for name in WORKLOADS if name != "tiny"]
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CHOSEN))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the table; the file has both")
    parser.add_argument("--output", type=Path, default=RESULTS / "adapt_batched.json")
    args = parser.parse_args(argv)
    content: dict[str, Any] = {**provenance("adapt_batched", "peft", "transformers"), "groups": {}}
    if args.output.exists():
        content["groups"] = json.loads(args.output.read_text(encoding="utf-8"))["groups"]
    for threads in args.threads:
        for name in args.workloads:
            workload = WORKLOADS[name]
            group = content["groups"].setdefault(
                f"{name} | threads {threads}",
                {"title": workload.title, "threads": threads, "steps": workload.steps, "load": [], "rows": {}},
            )
            try:
                measure(group, args.contenders, name, threads, args.rounds, lambda: write_results(args.output, content))
            except WorkerError as error:
                raise SystemExit(f"{name}, {threads} threads: {error}") from None
    print(table(content, args.clock))


if __name__ == "__main__":
    main()
