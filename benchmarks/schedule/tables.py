"""The tables of benchmarks/schedule/README.md, from the committed results.

python -m benchmarks.schedule.tables
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.convergence.study import RESULTS

Results = Mapping[str, Any]
SHORT = {
    "fixed": "fixed 0.001",
    "grid": "best of 7 fixed",
    "cosine": "cosine 0.001",
    "cosine_tuned": "cosine, best rate",
    "hypergradient": "hypergradient",
    "schedule_free": "schedule-free",
    "prodigy": "Prodigy",
    "controller": "**controller**",
    "layers": "**the same, per tensor**",
    "adapted": "**adapted**",
}


def accuracies(results: Results) -> list[str]:
    """A row for each pair, a column for each method; the best of a row in italics."""
    methods = [method for method in SHORT if method not in results["missing"]]
    lines = _head(["test accuracy in %", *(SHORT[method] for method in methods), "half of 95 %"])
    for pair, facts in results["pairs"].items():
        found = {each["method"]: each for each in results["summaries"] if each["pair"] == pair}
        if not found:
            continue
        best = max(found[method]["mean"]["accuracy"] for method in methods)
        cells = []
        for method in methods:
            value = found[method]["mean"]["accuracy"]
            cells.append(f"*{value:.1f}*" if value == best else f"{value:.1f}")
        half = found["controller"]["half"]["accuracy"]
        lines.append(_row([facts["title"], *cells, f"{half:.1f}"]))
    return lines


def steps(results: Results) -> list[str]:
    """Steps to the threshold, mean over the seeds that got there."""
    methods = [method for method in SHORT if method not in results["missing"]]
    lines = _head(["steps to threshold", "threshold %", *(SHORT[method] for method in methods)])
    for pair, facts in results["pairs"].items():
        found = {each["method"]: each for each in results["summaries"] if each["pair"] == pair}
        if not found:
            continue
        cells = []
        for method in methods:
            reached = [step for step in found[method]["to_threshold"] if step is not None]
            few = "" if len(reached) == found[method]["seeds"] else f" ({len(reached)} seeds)"
            cells.append(f"{sum(reached) / len(reached):.0f}{few}" if reached else "never")
        lines.append(_row([facts["title"], f"{100 * facts['threshold']:.1f}", *cells]))
    return lines


def sweeps(results: Results) -> list[str]:
    """Accuracy by starting rate."""
    rates = [rate for rate, _ in results["sweeps"][0]["accuracy"]["fixed"]]
    lines = _head(["test accuracy in %, from rate", "", *(f"{rate:g}" for rate in rates), "within 1 point"])
    for each in results["sweeps"]:
        title = results["pairs"][each["pair"]]["title"]
        for method in ("fixed", "controller"):
            cells = [f"{value:.1f}" for _, value in each["accuracy"][method]]
            lines.append(_row([title, SHORT[method], *cells, f"{each['within'][method]} of {len(rates)}"]))
            title = ""
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    results = json.loads((RESULTS / "lr_adaptation.json").read_text(encoding="utf-8"))
    for part in (accuracies, steps, sweeps):
        print("\n".join(part(results)), end="\n\n")
    for verdict in results["verdicts"]:
        print("- " + verdict["line"])


if __name__ == "__main__":
    main()
