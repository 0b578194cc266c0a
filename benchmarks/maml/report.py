"""Tables from a results file: `python -m benchmarks.maml.report benchmarks/results/maml_meta_gradient.json`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .workloads import WORKLOADS

Group = dict[str, Any]
OURS, LOOP = "metafast", "learn2learn"
JAX = ("JAX vmap", "JAX scan")
PEERS = (LOOP, "plain torch loop", "plain torch loop, tuned malloc", "higher", "torchopt", "parallel-metalearn",
         "torch.func vmap", "torch.func vmap, torch.compile", *JAX)  # fmt: skip

# Speed against someone, by workload: who, at least how much.
TARGETS: dict[str, tuple[tuple[str, tuple[str, ...], float], ...]] = {
    "sinusoid": (("the best JAX", JAX, 1.0), (LOOP, (LOOP,), 45.0)),
    "omniglot": ((LOOP, (LOOP,), 4.0), ("the best JAX", JAX, 2.0)),
    "miniimagenet": ((LOOP, (LOOP,), 6.0), ("the best tuned peer", PEERS, 4.5)),
}
MEMORY_ROWS = {OURS: 0.5, "metafast, recomputing": 0.5}  # of learn2learn's
PEAK_TARGET = 0.75  # of the measured FMA peak, on convolutional workloads


def seconds(group: Group, name: str, clock: str) -> float | None:
    """Median time of a contender; None where it was not timed."""
    times = group["rows"].get(name, {}).get(clock, [])
    return statistics.median(times) if times else None


def speed(group: Group, others: Iterable[str], clock: str) -> tuple[float, str] | None:
    """How much faster metafast is than the fastest of `others`, by the median over rounds, and who that is."""
    ours = group["rows"].get(OURS, {}).get(clock, [])
    found = [(name, s) for name in others if (s := seconds(group, name, clock)) is not None]
    if not ours or not found:
        return None
    name, _ = min(found, key=lambda pair: pair[1])
    theirs = group["rows"][name][clock]
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True)), name


def peak_fraction(group: Group, name: str, clock: str) -> float | None:
    """Useful FLOP/s over the peak that was measured in the same rounds."""
    times = group["rows"].get(name, {}).get(clock, [])
    if not times or None in (p[clock] for p in group["peak_gflops"]):
        return None
    pairs = zip(times, group["peak_gflops"], strict=True)
    return statistics.median(group["gflop"] / t / peak[clock] for t, peak in pairs)


def table(groups: list[Group], clock: str) -> str:
    """Milliseconds and peak memory; contenders by groups that share order and threads."""
    columns = [f"{WORKLOADS[g['workload']].title.split(',')[0]}, {g['steps']} step{'s' * (g['steps'] > 1)}"
               for g in groups]  # fmt: skip
    lines = ["| ms \\| peak MB above start | " + " | ".join(columns) + " |", "|---|" + "---|" * len(groups)]
    lines.append("| useful GFLOP | " + " | ".join(f"{g['gflop']:.3g}" for g in groups) + " |")
    for contender in CONTENDERS:
        rows = [g["rows"].get(contender.name) for g in groups]
        if not any(rows):
            continue
        cells = [_cell(g, contender.name, clock) for g in groups]
        name = f"**{contender.name}**" if contender.kind == "ours" else contender.name
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    floors = []
    for g in groups:
        peaks = [p[clock] for p in g["peak_gflops"] if p[clock] is not None]
        floors.append(f"{1e3 * g['gflop'] / statistics.median(peaks):.3g}" if peaks else "-")
    lines.append("| floor at the measured FMA peak | " + " | ".join(floors) + " |")
    fractions = [peak_fraction(g, OURS, clock) for g in groups]
    lines.append("| **metafast**: fraction of the peak | "
                 + " | ".join("-" if f is None else f"{f:.2f}" for f in fractions) + " |")  # fmt: skip
    return "\n".join(lines)


def _cell(group: Group, name: str, clock: str) -> str:
    row = group["rows"].get(name)
    if row is None:
        return ""
    time = seconds(group, name, clock)
    if time is None:
        return row["state"] if row["state"] != "timed" else "-"
    return f"{1e3 * time:.3g} \\| {row['peak_mb']:.0f}"


def targets(groups: Iterable[Group], clock: str) -> str:
    """Every target beside what was measured; misses are said."""
    lines = ["| row | target | measured | |", "|---|---|---|---|"]

    def add(group: Group, what: str, wanted: str, value: float | None, shown: str, is_met: bool) -> None:
        title = f"{group['workload']}, {group['steps']} step{'s' * (group['steps'] > 1)}, " + (
            "second order" if group["order"] == 2 else "first order"
        )
        verdict = "not measured" if value is None else "reached" if is_met else "**missed**"
        lines.append(f"| {title} | {what} {wanted} | {shown if value is not None else '-'} | {verdict} |")

    for group in groups:
        for who, others, least in TARGETS.get(group["workload"], ()):
            found = speed(group, others, clock)
            value, name = found if found is not None else (None, "")
            shown = "" if value is None else f"{value:.2f}×" + (f" ({name})" if name != who else "")
            add(group, f"speed against {who}", f"≥ {least:g}×", value, shown, (value or 0) >= least)
        for name, least in MEMORY_ROWS.items():
            value, shown = _memory(group, name)
            if name == OURS or value is not None:
                add(group, f"memory of {name}, of learn2learn's", f"≤ {least:g}", value, shown, (value or 9) <= least)
        if group["workload"] in ("omniglot", "miniimagenet"):
            fraction = peak_fraction(group, OURS, clock)
            add(group, "of the FMA peak", f"≥ {PEAK_TARGET:g}", fraction, f"{fraction or 0:.2f}",
                (fraction or 0) >= PEAK_TARGET)  # fmt: skip
    return "\n".join(lines)


def _memory(group: Group, name: str) -> tuple[float | None, str]:
    ours, theirs = group["rows"].get(name, {}), group["rows"].get(LOOP, {})
    if "peak_mb" not in ours or "peak_mb" not in theirs:
        return None, ""
    value = ours["peak_mb"] / max(theirs["peak_mb"], 1e-3)
    shown = f"{value:.2f}"
    if "warm_mb" in ours and "warm_mb" in theirs:
        shown += f" (warm libraries: {ours['warm_mb']:.1f} MB of {theirs['warm_mb']:.1f})"
    return value, shown


def notes(groups: Iterable[Group]) -> str:
    """Who was not timed, and why; the gradient errors of those that were."""
    lines = []
    for group in groups:
        where = f"{group['workload']}, {group['steps']} steps, order {group['order']}"
        for name, row in group["rows"].items():
            if row["state"] != "timed":
                lines.append(f"- {where}: {name}: {row['state']} ({row.get('reason', '')})")
        errors = [f"{name} {row['error']:.0e}" for name, row in group["rows"].items() if "error" in row]
        lines.append(f"- {where}: distance from float64: {', '.join(errors)}")
    return "\n".join(lines)


def markdown(results: dict[str, Any], clock: str = "wall") -> str:
    """Everything in a results file."""
    groups = list(results["groups"].values())
    m, v = results["machine"], results["versions"]
    loads = [load for g in groups for load in g["load"]]
    rounds = sorted({len(g["load"]) for g in groups})
    head = (
        f"{m['cpu']} ({m['cpu_level']}, {m['cores']} cores), torch {v['torch']}, JAX {v.get('jax', 'missing')}, "
        f"Python {v['python']}, commit {', '.join(sorted({g['commit'] for g in groups}))}, {results['date']}; medians "
        f"of {', '.join(map(str, rounds))} interleaved rounds of {'wall' if clock == 'wall' else 'processor'} time, "
        f"at a load of {min(loads, default=0):.1f} to {max(loads, default=0):.1f}."
    )
    parts = [head]
    for threads in sorted({g["threads"] for g in groups}):
        for order in sorted({g["order"] for g in groups}, reverse=True):
            chosen = [g for g in groups if g["threads"] == threads and g["order"] == order]
            chosen.sort(key=lambda g: (list(WORKLOADS).index(g["workload"]), g["steps"]))
            if chosen:
                title = f"### {'Second' if order == 2 else 'First'} order, {threads} thread{'s' * (threads > 1)}"
                parts += [title, table(chosen, clock), targets(chosen, clock), notes(chosen)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    for path in args.file:
        print(markdown(json.loads(path.read_text(encoding="utf-8")), args.clock))


if __name__ == "__main__":
    main()
