"""Seven starting rates from 1e-6 to 1: how many end within 1 point of the best fixed rate?

The best fixed rate of each pair is chosen on validation data; accuracies are those of the test split.
The hypergradient runs with its defaults, which were chosen by defaults.py on validation data.

python -m benchmarks.convergence.robustness --seeds 3
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metafast.optim import AdamW

from .pairs import PAIRS, ROBUSTNESS
from .study import RATES, Results, Row, mean, parser, rounded, spread, train, work_off

METHODS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "cosine": {"cosine": True},
    "hypergradient": {"hypergrad": "global"},
    "hypergradient, no safe start": {"hypergrad": "global", "safe_start": None},
    "hypergradient x cosine": {"hypergrad": "global", "cosine": True},
}
TOLERANCE = 1.0  # points of accuracy


def key(pair: str, method: str, rate: float, seed: int) -> str:
    return f"{pair} | {method} | {rate:g} | {seed}"


def run(pair: str, method: str, rate: float, seed: int, max_steps: int | None) -> Row:
    options = dict(METHODS[method])
    cosine = options.pop("cosine", False)
    return train(
        PAIRS[pair], lambda params: AdamW(params, lr=rate, **options), seed, cosine=cosine, max_steps=max_steps
    )


def summarize(rows: dict[str, Row], pairs: Sequence[str], methods: Sequence[str], seeds: int) -> Row:
    """Test accuracy by method and starting rate, and the count within one point of the best fixed rate."""
    table: Row = {}
    for pair in pairs:

        def scores(method: str, rate: float, column: str, pair: str = pair) -> list[float | None]:
            return [rows[key(pair, method, rate, seed)][column] for seed in range(seeds)]

        best = max(RATES, key=lambda rate: mean(scores("fixed", rate, "val_accuracy")))
        target = mean(scores("fixed", best, "test_accuracy"))
        entry: Row = {"best_fixed_rate": best, "best_fixed_test_accuracy": rounded(target, 4), "methods": {}}
        for method in methods:
            accuracy = {rate: scores(method, rate, "test_accuracy") for rate in RATES}
            by_seed = []
            for seed in range(seeds):
                best_here = max(RATES, key=lambda rate: rows[key(pair, "fixed", rate, seed)]["val_accuracy"] or 0.0)
                goal = rows[key(pair, "fixed", best_here, seed)]["test_accuracy"]
                by_seed.append(sum((accuracy[r][seed] or 0.0) >= goal - TOLERANCE for r in RATES))
            entry["methods"][method] = {
                "test_accuracy": {f"{r:g}": rounded(mean(a), 4) for r, a in accuracy.items()},
                "standard_deviation": {f"{r:g}": rounded(spread(a), 2) for r, a in accuracy.items()},
                "within_1_point": sum(mean(a) >= target - TOLERANCE for a in accuracy.values()),
                "within_1_point_by_seed": by_seed,
            }
        table[pair] = entry
    return table


def show(summary: Row) -> None:
    from rich.console import Console
    from rich.table import Table

    for pair, entry in summary.items():
        table = Table(title=f"{pair}: test accuracy by starting rate; best fixed rate {entry['best_fixed_rate']:g}")
        for name in ("method", *(f"{r:g}" for r in RATES), "within 1 point"):
            table.add_column(name, justify="left" if name == "method" else "right")
        for method, values in entry["methods"].items():
            accuracies = (f"{a:.1f}" for a in values["test_accuracy"].values())
            table.add_row(method, *accuracies, f"{values['within_1_point']} of {len(RATES)}")
        Console().print(table)


COLOURS = {
    "fixed": "#777777",
    "cosine": "#1f77b4",
    "hypergradient": "#d62728",
    "hypergradient, no safe start": "#ff9d6f",
    "hypergradient x cosine": "#9467bd",
}


def plot(rows: dict[str, Row], summary: Row, path: Path) -> None:
    """Above: test accuracy against starting rate. Below: the learned rate over time, one line per starting rate."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(summary), 7.8), layout="constrained")
    axes = figure.subplots(2, len(summary), squeeze=False)
    for column, (pair, entry) in enumerate(summary.items()):
        top, bottom = axes[0][column], axes[1][column]
        top.axhspan(
            entry["best_fixed_test_accuracy"] - TOLERANCE,
            100,
            color="#2ca02c",
            alpha=0.12,
            lw=0,
            label="within 1 point of the best fixed rate",
        )
        for method, values in entry["methods"].items():
            accuracy = [values["test_accuracy"][f"{r:g}"] for r in RATES]
            deviation = [values["standard_deviation"][f"{r:g}"] for r in RATES]
            top.errorbar(
                RATES,
                accuracy,
                yerr=deviation,
                marker="o",
                ms=4,
                lw=2 if method == "hypergradient" else 1.2,
                label=method,
                color=COLOURS[method],
                capsize=2,
            )
        top.set(xscale="log", title=pair, xlabel="starting learning rate")
        goal = entry["best_fixed_test_accuracy"]
        top.set_ylim(max(0.0, goal - 15.0), min(100.0, goal + 5.0))
        for index, rate in enumerate(RATES):
            curve = rows.get(key(pair, "hypergradient", rate, 0), {}).get("lr_curve", [[1, rate]])
            bottom.plot(*zip(*curve, strict=True), color=colormaps["viridis"](index / 6.5), label=f"{rate:g}")
        bottom.set(yscale="log", xlabel="step", title="learned rate (seed 0), by starting rate")
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, percent (mean of seeds)")
    axes[1][0].set_ylabel("learning rate")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[1][-1].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "robustness.json")
    options.add_argument("--pairs", nargs="+", default=list(ROBUSTNESS), choices=list(PAIRS))
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="fixed among them")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = Results(args.output, {"study": "robustness", "optimizer": "AdamW", "max_steps": args.max_steps})
    jobs = [
        (key(p, m, r, s), partial(run, p, m, r, s, args.max_steps))
        for s in range(args.seeds)
        for p in args.pairs
        for m in args.methods
        for r in RATES
    ]
    work_off(results, jobs, "robustness")
    results.content["summary"] = summary = summarize(results.rows, args.pairs, args.methods, args.seeds)
    results.content["seeds"] = args.seeds
    results.save()
    show(summary)
    plot(results.rows, summary, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
