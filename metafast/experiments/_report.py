"""Pieces of the experiments' reports."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metafast._page import facts_table, page, write_text


def aims(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Each `"line"`, coloured where it was reached."""
    lines = "".join(
        f'<li class="{"good" if each["reached"] else ""}">{html.escape(each["line"])}</li>' for each in verdicts
    )
    return f"<h2>Aims</h2>\n<ul>{lines}</ul>"


def results_table(
    caption: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, pairs: bool = True
) -> str:
    """A table with a caption.

    Args:
        caption: below it.
        heads: names of the columns, the first of the rows' names.
        rows: name and cells of each.
        pairs: whether each second cell only explains the one before.
    """
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    look = "results" if pairs else "results even"
    return (
        f'<div class="wide"><table class="{look}"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def note(results: Mapping[str, Any]) -> str:
    """Which recipe, and what a reader should know about its size."""
    about = html.escape(results["about"])
    return f'<p class="note">Recipe <code>{html.escape(results["recipe"])}</code>: {about}</p>'


def origin(results: Mapping[str, Any], command: str) -> str:
    """How it was made."""
    return f"""<h2>How it was made</h2>
<p>To repeat or to complete it: <code>{html.escape(command)}</code>. Every training is a run record in
<code>runs</code>. Seed {results["seed"]}, {results["seeds"]} seeds.</p>
{facts_table(results["versions"])}"""


def write_report(results: Mapping[str, Any], title: str, body: str, output: Path) -> list[Path]:
    """`report.html` and `results.json`, in which a number that is not finite is null."""
    json_file, report = output / "results.json", output / "report.html"
    write_text(json_file, json.dumps(plain(results), indent=1, allow_nan=False) + "\n")
    write_text(report, page(title, body))
    return [report, json_file]


def plain(value: Any) -> Any:
    """The same without numbers that are not finite, which JSON has no word for: they are None."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
