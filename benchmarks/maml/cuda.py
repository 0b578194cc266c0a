"""Times meta-gradients on a CUDA device: `python -m benchmarks.maml.cuda`.

Rows: metafast by a CUDA graph (its calls from the second on), the same launch by launch, the plain loop over tasks that
learn2learn's MAML runs, `vmap`, and `vmap` under `torch.compile` in a process of its own, which has a time limit. A row
is timed after its gradient agrees with a loop in float64, which takes fp32 everywhere: TF32 is off. Device time comes
from CUDA events around a run of calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import maml_func, maml_loop
from benchmarks.peers.maml_problem import MetaGradient, Problem
from benchmarks.provenance import provenance, write_results
from benchmarks.throughput.cuda import repeats_of, turn
from metafast.innerloop import _compiled

from . import check, ours
from .workloads import MAIN, WORKLOADS

TARGET_MS = {("omniglot", 5, 2): 5.0}  # on an H200, by a CUDA graph
COMPILED = "torch.func vmap, torch.compile"


def on_device(problem: Problem) -> Problem:
    """The same problem in device memory, all tasks side by side."""
    data = {name: getattr(problem, name).cuda() for name in ("support_x", "support_y", "query_x", "query_y")}
    return replace(problem, model=problem.model.cuda(), chunk=problem.tasks, **data)


def launch_by_launch(problem: Problem) -> MetaGradient:
    """metafast without graphs."""
    meta_gradient = ours.build(problem)

    def run() -> Any:
        graphs = _compiled.InnerLoopGraphs
        _compiled.InnerLoopGraphs = lambda: torch.ops.metafast.inner_loop  # type: ignore[misc,assignment]
        try:
            return meta_gradient()
        finally:
            _compiled.InnerLoopGraphs = graphs  # type: ignore[misc]

    return run


ROWS: dict[str, Callable[[Problem], MetaGradient]] = {
    "metafast, CUDA graph": ours.build,
    "metafast, launch by launch": launch_by_launch,
    "plain loop, as learn2learn": maml_loop.build,
    "torch.func vmap": maml_func.build,
    COMPILED: maml_func.build_compiled,
}


def peaks() -> dict[str, float]:
    """TFLOP/s of a large matrix product in fp32 and in TF32."""
    a = torch.randn(8192, 8192, device="cuda")
    found = {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, tf32 in (("fp32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        seconds = statistics.median(turn(lambda: torch.mm(a, a), 5)[0] for _ in range(5))
        found[name] = 2e-12 * 8192**3 / seconds
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return found


def measure(name: str, workload: str, steps: int, order: int, rounds: int) -> dict[str, Any]:
    """One row: error, device and host milliseconds, peak memory."""
    build = ROWS[name]
    expected = maml_loop.build(on_device(check.problem(workload, steps, order, torch.float64)))()
    run = build(on_device(check.problem(workload, steps, order)))
    for _ in range(3):  # a graph is there from the second call on
        found = run()
    distance = check.error(found, expected)
    if not distance <= check.tolerance(workload):
        raise AssertionError(f"{name}: {distance:.1e} from the loop in float64")
    run = build(on_device(WORKLOADS[workload].problem(steps, order)))
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    repeats = repeats_of(run)
    turns = [turn(run, repeats) for _ in range(rounds)]
    milliseconds = [1e3 * device for device, _ in turns]
    return {
        "name": name,
        "error": distance,
        "ms": statistics.median(milliseconds),
        "ms_min": min(milliseconds),
        "ms_max": max(milliseconds),
        "host_ms": 1e3 * statistics.median(host for _, host in turns),
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20,
    }


def in_a_process(argv: Sequence[str], seconds: float) -> dict[str, Any]:
    """A row measured by another process, or why not: compiling may take longer than anyone waits."""
    command = [sys.executable, "-m", "benchmarks.maml.cuda", *argv, "--only", COMPILED, "--print-row"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"name": COMPILED, "missing": f"not compiled within {seconds:.0f} s"}
    except (subprocess.CalledProcessError, ValueError, IndexError) as failure:
        text = getattr(failure, "stderr", None) or str(failure)
        return {"name": COMPILED, "missing": text.strip().splitlines()[-1]}
    return row


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| workload | row | ms | host ms | TFLOP/s | of fp32 peak | against the loop | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        if "missing" in r:
            lines.append(f"| {r['workload']} | {r['name']} | {r['missing']} | | | | | |")
            continue
        lines.append(
            f"| {r['workload']}, {r['steps']} steps, order {r['order']} | {r['name']} | {r['ms']:.3f} | "
            f"{r['host_ms']:.3f} | {r['tflops']:.1f} | {r['tflops'] / results['peak_tflops']['fp32']:.2f} | "
            f"{r.get('speedup', 1.0):.0f}× | {r['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures and prints; returns what the results file holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maml.cuda", description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=["omniglot"], choices=MAIN)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--order", type=int, default=2, choices=(1, 2))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row (default 7)")
    parser.add_argument("--only", default="", help="the name of one row")
    parser.add_argument(
        "--compile-seconds", type=float, default=60.0, help="limit of torch.compile's row; 0: leave out"
    )
    parser.add_argument("--print-row", action="store_true", help="print one row as JSON, and nothing else")
    parser.add_argument("--output", type=Path, help="results file (JSON)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device here")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if args.print_row:
        row = measure(args.only, args.workloads[0], args.steps, args.order, args.rounds)
        print(json.dumps(row))
        return row

    results: dict[str, Any] = {
        **provenance("meta-gradients on CUDA"),
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "peak_tflops": peaks(),
        "rows": [],
    }
    for name in args.workloads:
        flops = WORKLOADS[name].flops(args.steps, args.order)
        loop_ms = None
        for row in ROWS if not args.only else [args.only]:
            start = time.perf_counter()
            if row == COMPILED:
                if args.compile_seconds <= 0:
                    continue
                options = ["--workloads", name, "--steps", str(args.steps), "--order", str(args.order)]
                result = in_a_process(options, args.compile_seconds)
            else:
                result = measure(row, name, args.steps, args.order, args.rounds)
            result |= {"workload": name, "steps": args.steps, "order": args.order}
            if "ms" in result:
                result["tflops"] = 1e-9 * flops / result["ms"]
                result["target_ms"] = TARGET_MS.get((name, args.steps, args.order)) if "graph" in row else None
            if row.startswith("plain loop"):
                loop_ms = result["ms"]
            results["rows"].append(result)
            print(f"{name}: {row}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
            for other in results["rows"]:
                if other["workload"] == name and loop_ms is not None and "ms" in other:
                    other["speedup"] = loop_ms / other["ms"]
            if args.output is not None:  # after each row, so that an interrupted run leaves what it has
                write_results(args.output, results)
    print(f"{results['device']}: {results['peak_tflops']}\n\n{table(results)}")
    return results


if __name__ == "__main__":
    main()
