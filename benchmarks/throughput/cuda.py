"""Times steps on a CUDA device, each beside `torch.optim`'s fused step: `python -m benchmarks.throughput.cuda`.

Device time is read from CUDA events around a run of steps, host time from the wall clock until the last call returns.
A row is measured after its parameters agree with those of its reference, and says how much of the device's own copy
bandwidth it reaches. The first turn is a warm-up; a baseline's turn stands right before each turn of a row.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import provenance, write_results
from metafast import optim

from .contenders import ADAM, BASELINES, Contender, Pass, Step, contenders
from .contenders import _metafast as build_metafast
from .contenders import _torch as build_torch
from .sizes import SIZES, Shapes

TURN_SECONDS = 0.1
BFLOAT16 = "bf16 parameters"
ALL_BFLOAT16 = (Pass((2, 2, 2), (2,)),)
TARGETS = {  # ms for 1 G parameters on an H200
    "metafast AdamW": 7.0,
    "metafast AdamW hypergrad=tensor": 7.0,
    "metafast AdamW hypergrad=tensor, exact": 9.0,
    "metafast AdamW hypergrad=element": 9.0,
    "metafast AdamW, all bf16": 3.6,
}
HOST_TARGET_US = 60.0


def billion() -> Shapes:
    """1 G elements in one tensor."""
    return [(1_000_000_000,)]


def rows() -> list[Contender]:
    """What is timed: metafast's AdamW in all its forms and torch's, in fp32 and in bf16."""
    found = [row for row in contenders() if row.family == "AdamW" and (row.is_ours or row.name.startswith("torch "))]
    options: dict[str, Any] = {"state_dtype": torch.bfloat16, "stochastic_rounding": True, "hypergrad": "tensor"}
    fused = build_torch(torch.optim.AdamW, fused=True)
    return [
        *found,
        Contender("torch AdamW fused, all bf16", BFLOAT16, ALL_BFLOAT16, fused, None),
        Contender(
            "metafast AdamW, all bf16", BFLOAT16, ALL_BFLOAT16, build_metafast(optim.AdamW, **options),
            build_metafast(optim.AdamW, **options, backend="reference"), 2e-2, is_ours=True,
        ),
        Contender(
            "metafast AdamW (Triton)", "AdamW", ADAM, build_metafast(optim.AdamW, backend="triton"),
            build_metafast(optim.AdamW, backend="reference"), is_ours=True, slow=True,
        ),
    ]  # fmt: skip


def make(shapes: Shapes, family: str) -> list[Tensor]:
    """Parameters with gradients on the device."""
    dtype = torch.bfloat16 if family == BFLOAT16 else torch.float32
    generator = torch.Generator("cuda").manual_seed(0)
    params: list[Tensor] = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, device="cuda", dtype=dtype))
        param.grad = torch.randn(shape, generator=generator, device="cuda", dtype=dtype).mul_(0.01)
        params.append(param)
    return params


def check(row: Contender) -> None:
    """Raises where three small steps do not give the numbers of the row's reference."""
    if row.reference is None:
        return
    results = []
    for build in (row.build, row.reference):
        params = make([(33, 65), (104,), (1,), (40_000,)], row.family)
        before = [p.detach().clone() for p in params]
        step = build(params)
        for _ in range(3):
            step()
        results.append(params)
    for ours, expected, start in zip(*results, before, strict=True):
        distance = float((expected - start).abs().max())
        error = float((expected - ours).abs().max())
        rounding = float(start.abs().max()) * (2.0**-7 if row.family == BFLOAT16 else 2.0**-21)
        if not error <= row.tolerance * distance + rounding:
            raise AssertionError(f"{row.name}: {error:.1e} from its reference, which moved by {distance:.1e}")


def copy_bandwidth() -> float:
    """Bytes read and written each second by a large copy on the device."""
    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    seconds = statistics.median(turn(lambda: target.copy_(source), 10)[0] for _ in range(9))
    return 2 * source.nbytes / seconds


def turn(step: Step, repeats: int) -> tuple[float, float]:
    """(device seconds, host seconds) of one step."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    host = time.perf_counter() - start
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3 / repeats, host / repeats


def repeats_of(step: Step) -> int:
    for _ in range(3):
        seconds, _ = turn(step, 1)
    return max(1, min(100, round(TURN_SECONDS / seconds)))


def launches(step: Step) -> dict[str, int]:
    """How often a step launches each kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {kernel.key[:120]: kernel.count for kernel in kernels}


def graph_seconds(row: Contender, shapes: Shapes, rounds: int) -> float | str:
    """Device seconds of a step replayed from a CUDA graph, or why it cannot be captured."""
    if not row.is_ours or row.slow:
        return "not tried"
    try:
        params = make(shapes, row.family)
        step = row.build(params)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return statistics.median(turn(graph.replay, 50)[0] for _ in range(rounds))
    except RuntimeError as error:
        torch.cuda.synchronize()
        return str(error).splitlines()[0]


def measure(found: Sequence[Contender], size: str, shapes: Shapes, rounds: int, peak: float) -> list[dict[str, Any]]:
    """The rows of one size."""
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    results = []
    by_name = {row.name: row for row in rows()}
    for row in found:
        print(f"{size}: {row.name}", file=sys.stderr, flush=True)
        check(row)
        params = make(shapes, row.family)
        name = BASELINES["AdamW"] if row.family == "AdamW" else "torch AdamW fused, all bf16"
        step, baseline = row.build(params), by_name[name].build(params)
        repeats, baseline_repeats = repeats_of(step), repeats_of(baseline)
        pairs = [(turn(baseline, baseline_repeats), turn(step, repeats)) for _ in range(rounds)]
        seconds = statistics.median(ours[0] for _, ours in pairs)
        ratios = [base[0] / ours[0] for base, ours in pairs]
        result = {
            "size": size, "tensors": len(shapes), "parameters": numel, "name": row.name, "family": row.family,
            "is_ours": row.is_ours, "bytes_per_param": row.bytes_per_param, "ms": 1e3 * seconds,
            "ms_min": 1e3 * min(ours[0] for _, ours in pairs), "ms_max": 1e3 * max(ours[0] for _, ours in pairs),
            "host_us": 1e6 * statistics.median(ours[1] for _, ours in pairs),
            "gb_per_s": 1e-9 * row.bytes_per_param * numel / seconds,
            "copy_fraction": row.bytes_per_param * numel / seconds / peak,
            "speedup": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            "target_ms": TARGETS.get(row.name) if size == "billion" else None,
            "target_host_us": HOST_TARGET_US if size == "tiny" and row.is_ours and not row.slow else None,
        }  # fmt: skip
        if size == "tiny":
            result["launches"] = launches(step)
        del step, baseline, params
        gc.collect()
        torch.cuda.empty_cache()
        if size == "tiny":
            result["graph_ms"] = graph_seconds(row, shapes, rounds)
        results.append(result)
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| size | row | ms | GB/s | of a copy | against torch fused | host µs |", "|---|---|---|---|---|---|---|"]
    for r in results:
        speedup = "{median:.2f}× ({min:.2f}..{max:.2f})".format(**r["speedup"])
        lines.append(
            f"| {r['size']} | {r['name']} | {r['ms']:.3f} | {r['gb_per_s']:.0f} | {r['copy_fraction']:.2f} | "
            f"{speedup} | {r['host_us']:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.cuda", description=__doc__)
    sizes: dict[str, Callable[[], Shapes]] = {**SIZES, "billion": billion}
    parser.add_argument("--sizes", nargs="+", default=["tiny", "billion", "bert", "resnet18"], choices=list(sizes))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each row (default 9)")
    parser.add_argument("--only", default="", help="regular expression that a row's name must match")
    parser.add_argument("--output", type=Path, help="results file (JSON)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device here")

    found = [row for row in rows() if re.search(args.only, row.name)]
    peak = copy_bandwidth()
    results: dict[str, Any] = {
        **provenance("throughput on CUDA"),
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "copy_gb_per_s": 1e-9 * peak,
        "rows": [],
    }
    for size in args.sizes:
        # The for-loop and Triton launch for each tensor: only where that is the question.
        fitting = [row for row in found if size == "tiny" or not (row.slow or "for-loop" in row.name)]
        results["rows"] += measure(fitting, size, sizes[size](), args.rounds, peak)
        if args.output is not None:  # after each size, so that an interrupted run leaves what it has
            write_results(args.output, results)
    print(f"{results['device']}: a copy moves {results['copy_gb_per_s']:.0f} GB/s\n\n{table(results['rows'])}")
    return results


if __name__ == "__main__":
    main()
