"""Chooses hyper_rule, hyper_lr, granularity and safe_start on validation data, over eight data set and model pairs.

python -m benchmarks.convergence.defaults
python -m benchmarks.convergence.defaults --optimizer sgd
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from metafast.optim import SGD, AdamW

from .pairs import PAIRS
from .study import Results, Row, mean, parser, rounded, train, work_off

RATES = (1e-6, 1e-4, 1e-3, 1.0)  # four of the seven: 0.01 and 0.1 start like 1 under a safe start
FIXED_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CHOSEN = "normalized 0.5 global"
CANDIDATES: dict[str, dict[str, Any]] = {
    f"{rule} {step} global": {"hyper_rule": rule, "hyper_lr": step, "hypergrad": "global"}
    for rule, steps in {
        "normalized": (0.05, 0.2, 0.5, 1.0),
        "multiplicative": (0.5,),
        "sign": (0.02, 0.05),
        "additive": (1e-7,),  # the paper's for Adam
    }.items()
    for step in steps
}
CANDIDATES |= {
    "normalized 0.5 tensor": {"hyper_rule": "normalized", "hyper_lr": 0.5, "hypergrad": "tensor"},
    "normalized 0.05 tensor": {"hyper_rule": "normalized", "hyper_lr": 0.05, "hypergrad": "tensor"},
    "normalized 0.5 global, exact": {
        "hyper_rule": "normalized",
        "hyper_lr": 0.5,
        "hypergrad": "global",
        "hyper_exact": True,
    },
    "normalized 0.5 global, safe start 0.03": {
        "hyper_rule": "normalized",
        "hyper_lr": 0.5,
        "hypergrad": "global",
        "safe_start": 0.03,
    },
    "normalized 0.5 global, safe start 0.3": {
        "hyper_rule": "normalized",
        "hyper_lr": 0.5,
        "hypergrad": "global",
        "safe_start": 0.3,
    },
    "normalized 0.5 global, no safe start": {
        "hyper_rule": "normalized",
        "hyper_lr": 0.5,
        "hypergrad": "global",
        "safe_start": None,
    },
}


SGD_CANDIDATES = {
    f"normalized {step} global": {"hyper_rule": "normalized", "hyper_lr": step, "hypergrad": "global"}
    for step in (0.05, 0.1, 0.2, 0.5)
}
# SGD does not learn the bags of words in so few steps, at any fixed rate: they tell nothing about it.
STUDIES: dict[str, tuple[Any, dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "adamw": (AdamW, CANDIDATES, tuple(PAIRS)),
    "sgd": (partial(SGD, momentum=0.9), SGD_CANDIDATES, ("mnist_mlp", "fashion_mnist_mlp", "digits_cnn")),
}


def key(pair: str, method: str, rate: float, seed: int) -> str:
    return f"{pair} | {method} | {rate:g} | {seed}"


def run(make: Any, pair: str, options: dict[str, Any], rate: float, seed: int, max_steps: int | None) -> Row:
    row = train(PAIRS[pair], lambda params: make(params, lr=rate, **options), seed, max_steps=max_steps)
    kept = ("steps", "val_accuracy", "val_loss", "seconds", "final_lr")  # no test number: nothing here may see it
    return {name: row[name] for name in kept if name in row}


def summarize(results: Results, pairs: Sequence[str], methods: Sequence[str], seeds: int) -> Row:
    """Per method and pair: difference of validation accuracy to the best fixed rate, by starting rate."""
    rows = results.rows
    table: Row = {}
    for pair in pairs:
        fixed = {r: mean(rows[key(pair, "fixed", r, s)]["val_accuracy"] for s in range(seeds)) for r in FIXED_RATES}
        best = max(fixed, key=lambda r: fixed[r])
        table[pair] = {"best_fixed_rate": best, "best_fixed_accuracy": rounded(fixed[best]), "methods": {}}
        table[pair]["methods"]["fixed"] = _entry({r: fixed[r] - fixed[best] for r in RATES})
        for method in methods:
            accuracy = {r: mean(rows[key(pair, method, r, s)]["val_accuracy"] for s in range(seeds)) for r in RATES}
            table[pair]["methods"][method] = _entry({r: accuracy[r] - fixed[best] for r in RATES})
    return table


def _entry(difference: dict[float, float]) -> Row:
    return {
        "difference": {f"{r:g}": rounded(d, 4) for r, d in difference.items()},
        "within_1_point": sum(d >= -1 for d in difference.values()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "defaults.json", seeds=1)
    options.add_argument("--optimizer", default="adamw", choices=list(STUDIES))
    options.add_argument("--pairs", nargs="+", choices=list(PAIRS))
    options.add_argument("--methods", nargs="+", choices=list(CANDIDATES))
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    make, candidates, pairs = STUDIES[args.optimizer]
    pairs, methods = args.pairs or pairs, args.methods or list(candidates)
    results = Results(args.output, {"study": "defaults", "optimizer": args.optimizer, "max_steps": args.max_steps})
    jobs = [
        (key(p, m, r, s), partial(run, make, p, o, r, s, args.max_steps))
        for s in range(args.seeds)
        for p in pairs
        for m, o, rates in (("fixed", {}, FIXED_RATES), *((m, candidates[m], RATES) for m in methods))
        for r in rates
    ]
    work_off(results, jobs, "defaults")
    results.content["summary"] = summarize(results, pairs, methods, args.seeds)
    results.content["seeds"] = args.seeds
    results.save()
    show(results.content["summary"])
    plot(results.content["summary"], args.output.with_suffix(".png"))


def show(summary: Row) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="starts within 1 point of the best fixed rate, of four (validation)")
    table.add_column("method")
    for pair in summary:
        table.add_column(pair, justify="right")
    table.add_column("sum", justify="right")
    for method in next(iter(summary.values()))["methods"]:
        counts = [entry["methods"][method]["within_1_point"] for entry in summary.values()]
        table.add_row(method, *map(str, counts), str(sum(counts)))
    Console().print(table)


def _known(entry: Row, rate: float) -> float:
    difference = entry["difference"][f"{rate:g}"]
    return -100.0 if difference is None else float(difference)


def plot(summary: Row, path: Any) -> None:
    """One line of dots per method: the mean over pairs of the shortfall, at each starting rate."""
    from matplotlib.figure import Figure

    methods = list(next(iter(summary.values()))["methods"])
    figure = Figure(figsize=(8.5, 0.42 * len(methods) + 1.6), layout="constrained")
    axis = figure.subplots()
    grid = [[mean(max(-20.0, _known(e["methods"][m], r)) for e in summary.values()) for r in RATES] for m in methods]
    image = axis.imshow(grid, cmap="RdYlGn", vmin=-5, vmax=1, aspect="auto")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            axis.text(
                column,
                row,
                f"{value:+.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color="black" if value > -4 else "white",
            )
    axis.set_xticks(range(len(RATES)), [f"{r:g}" for r in RATES])
    axis.set_yticks(range(len(methods)), methods)
    axis.set_xlabel("starting learning rate")
    axis.set_title(
        f"validation accuracy against the best fixed rate, points\n(mean of {len(summary)} pairs, each at least -20)"
    )
    figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
