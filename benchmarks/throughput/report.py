"""Markdown tables from a results file: `python -m benchmarks.throughput.report benchmarks/results/x.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .sizes import TITLES

FUSED_HD, PLAIN_HD = "metafast AdamW hypergrad=global", "AdamHD, plain PyTorch"


def table(run: dict[str, Any]) -> str:
    """The table of one size and thread count, in the order of the file; nobody's row is left out."""
    lines = [
        "| step | ns per parameter | GB/s | of the stream limit | speed against the baseline |",
        "|---|---|---|---|---|",
    ]
    for row in run["rows"]:
        name = f"**{row['name']}**" if row["is_ours"] else row["name"]
        if row["name"] == row["baseline"]:
            name += f" (baseline of {row['family']})"
        fraction = "-" if row["stream_fraction"] is None else f"{row['stream_fraction']:.2f}"
        s = row["speedup"]
        speed = f"{s['median']:.2f}× ({s['min']:.2f} to {s['max']:.2f})"
        lines.append(f"| {name} | {row['ns_per_param']:.3f} | {row['gb_per_s']:.1f} | {fraction} | {speed} |")
    return "\n".join(lines)


def overview(results: dict[str, Any]) -> str:
    """One table for each thread count: speed of every step against its baseline, sizes as columns."""
    parts = []
    for threads in sorted({run["threads"] for run in results["runs"]}):
        runs = [run for run in results["runs"] if run["threads"] == threads]
        cells: dict[tuple[str, str], dict[str, float]] = {}
        for run in runs:
            for row in run["rows"]:
                cells.setdefault((row["family"], row["name"]), {})[run["size"]] = row["speedup"]["median"]
        sizes = [run["size"] for run in runs]
        lines = [
            "| step | compared with | " + " | ".join(TITLES[size] for size in sizes) + " |",
            "|---|---|" + "---|" * len(sizes),
        ]
        ours = {row["name"] for run in runs for row in run["rows"] if row["is_ours"]}
        baselines = {row["family"]: row["baseline"] for run in runs for row in run["rows"]}
        for (family, name), values in cells.items():
            if name == baselines[family]:
                continue
            shown = [f"{values[size]:.2f}×" if size in values else "-" for size in sizes]
            title = f"**{name}**" if name in ours else name
            lines.append(f"| {title} | {baselines[family]} | " + " | ".join(shown) + " |")
        # The same maths, fused and plain: both rows are against the same baseline, so their quotient is a speed-up.
        fused, plain = cells.get(("AdamW", FUSED_HD), {}), cells.get(("AdamW", PLAIN_HD), {})
        if fused and plain:
            both = [f"{fused[size] / plain[size]:.1f}×" if size in plain and size in fused else "-" for size in sizes]
            lines.append(f"| **{FUSED_HD}** | {PLAIN_HD} | " + " | ".join(both) + " |")
        parts.append(f"{threads} thread{'s' if threads > 1 else ''}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """Everything in a results file: where and when, the overview, and a table for each size."""
    m, v, first = results["machine"], results["versions"], results["runs"][0]
    head = (
        f"{m['cpu']} ({m['cpu_level']}, {m['cores']} cores), torch {v['torch']}, Python {v['python']}, "
        f"commit {results['commit']}, {results['date']}; medians of {first['rounds']} interleaved rounds of "
        f"{'processor' if first['clock'] == 'cpu' else 'wall'} time, at a load of {m['load'][0]:.1f}."
    )
    parts = [head, overview(results)]
    for run in results["runs"]:
        threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        parts += [f"### {TITLES[run['size']]}, {threads}", table(run)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.report", description=__doc__)
    parser.add_argument("file", type=Path, nargs="+")
    for path in parser.parse_args().file:
        print(markdown(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
