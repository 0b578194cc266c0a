"""Fills the measured part of docs/hpo.md from benchmarks/results/hp_prediction.json: python -m benchmarks.hpo_page"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "hp_prediction.json"
PAGE = ROOT / "docs" / "hpo.md"
PLACE = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- end of results -->)", re.DOTALL)
LOOKS = ("0", "1", "3", "5", "10", "25")


def measured(found: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    about = (
        f"The `{found['recipe']}` recipe, {found['date'][:10]}, commit {found['commit'][:10]}, "
        f"{found['machine'].get('cpu', 'a CPU')}."
    )
    parts = [about, _aims(found)]
    for name in found["suites"]:
        parts.append(_suite(found, name))
    left = [f"{found['methods'].get(name, name)} was left out: {why}" for name, why in found["missing"].items()]
    return "\n\n".join([*parts, *left]) + "\n"


def _aims(found: dict[str, Any]) -> str:
    words = {True: "reached", False: "**missed**", None: "not judged"}
    rows = [f"| {each['aim']} | {words[each['reached']]} | {each['text']} |" for each in found["verdicts"]]
    return "\n".join(["| aim | | |", "|---|---|---|", *rows])


def _suite(found: dict[str, Any], name: str) -> str:
    facts = found["suites"][name]
    mine = [each for each in found["summaries"] if each["suite"] == name]
    looks = [look for look in LOOKS if look in mine[0]["found"]]
    title = facts["title"][0].upper() + facts["title"][1:]
    head = (
        f"**{title}**: {facts['tasks']} tasks of {facts['datasets']} data sets; "
        f"{100 * facts['near']:.1f} % of the configurations are within 5 % of the best. Mean regret of the best run "
        "after so many runs (before the first: of what would be run first), and the share of tasks within 5 % of the "
        "grid's best before the first run, after 3 and after 5."
    )
    titles = ["method", *(f"{look} runs" if look != "1" else "1 run" for look in looks), "within 5 %: 0, 3, 5"]
    lines = [f"| {' | '.join(titles)} |", f"|---{'|---:' * (len(titles) - 1)}|"]
    for each in mine:
        near = ", ".join(f"{100 * each['near'][k]:.0f}" for k in ("0", "3", "5") if k in each["near"])
        cells = [found["methods"][each["method"]], *(f"{each['found'][k]:.3f}" for k in looks), near]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{head}\n\n" + "\n".join(lines)


def filled(page: str, found: dict[str, Any]) -> str:
    """The page with the measured part made anew."""
    text = measured(found)
    made, count = PLACE.subn(lambda match: match[1] + text + match[2], page)
    if count != 1:
        raise ValueError(f"the page must have one place for results, found {count}")
    return made


def main() -> None:
    """Writes the page."""
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RESULTS.read_text())))
    print(PAGE)


if __name__ == "__main__":
    main()
