"""Writes the tables of README.md from the results, so that no number is typed by hand.

python -m benchmarks.convergence.tables
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .study import RATES, RESULTS

README = Path(__file__).with_name("README.md")


def robustness(content: dict[str, Any]) -> str:
    """Test accuracy by starting rate; bold within one point of the best fixed rate."""
    lines = [_row("pair", "method", *(f"{r:g}" for r in RATES), "within 1 point", "each seed"), _rule(10)]
    for pair, entry in content["summary"].items():
        goal = entry["best_fixed_test_accuracy"] - 1.0
        for method, values in entry["methods"].items():
            cells = [f"**{a:.1f}**" if a >= goal else f"{a:.1f}" for a in values["test_accuracy"].values()]
            by_seed = " ".join(map(str, values["within_1_point_by_seed"]))
            lines.append(_row(pair, method, *cells, f"{values['within_1_point']} of 7", by_seed))
    return "\n".join(lines) + _origin(content)


def published(content: dict[str, Any]) -> str:
    """Our validation loss beside the published one."""
    lines = [_row("model", "method", "published", "here", "± seeds", "gain published", "gain here"), _rule(7)]
    for model, entry in content["summary"].items():
        for method, v in entry.items():
            gains = [f"{v[name]:+.4f}" if name in v else "" for name in ("published_gain", "our_gain")]
            numbers = [f"{v[name]:.4f}" for name in ("published", "ours", "standard_deviation")]
            lines.append(_row(model, method, *numbers, *gains))
    return "\n".join(lines) + _origin(content)


def defaults(content: dict[str, Any]) -> str:
    """How many of the starts end within a point of the best fixed rate, by pair; mean difference at each start."""
    summary = content["summary"]
    methods = list(next(iter(summary.values()))["methods"])
    rates = list(next(iter(summary.values()))["methods"][methods[0]]["difference"])
    lines = [_row("method", *summary, "sum", *(f"{r}" for r in rates)), _rule(len(summary) + len(rates) + 2)]
    for method in methods:
        counts = [entry["methods"][method]["within_1_point"] for entry in summary.values()]
        means = []
        for rate in rates:
            values = [entry["methods"][method]["difference"][rate] for entry in summary.values()]
            means.append(f"{sum(-20.0 if v is None else max(-20.0, v) for v in values) / len(values):+.1f}")
        lines.append(_row(method, *map(str, counts), f"{sum(counts)} of {len(rates) * len(counts)}", *means))
    return "\n".join(lines) + _origin(content)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _origin(content: dict[str, Any]) -> str:
    machine = content["machine"]
    changed = "-dirty"  # the working tree differed from the commit
    commits = sorted({c[:7] + changed * c.endswith(changed) for c in (r["commit"] for r in content["rows"].values())})
    return (
        f"\n\n{content['seeds']} seed{'s' * (content['seeds'] > 1)}, {len(content['rows'])} runs; {machine['cpu']}, "
        f"{machine['threads']} thread; torch {machine['torch']}, Python {machine['python']}; "
        f"commit {', '.join(commits)}."
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "robustness": ("robustness.json", robustness),
    "published": ("published_hd.json", published),
    "defaults": ("defaults.json", defaults),
    "defaults-sgd": ("defaults_sgd.json", defaults),
}


def render(text: str, results: Path = RESULTS) -> str:
    """The text with each `<!-- name -->` block filled from its results."""
    for name, (file, table) in TABLES.items():
        block = f"<!-- {name} -->\n{table(json.loads((results / file).read_text(encoding='utf-8')))}\n<!-- end -->"
        text, found = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"README.md must have one block <!-- {name} --> ... <!-- end -->, has {found}")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
