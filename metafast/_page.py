"""A report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metafast.runs._checkpoint import replace_file


def page(title: str, body: str) -> str:
    """The whole file, from `<h1>` on given by `body`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
{body}
</body>
</html>
"""


def picture(file: Path, caption: str) -> str:
    """An SVG file with its caption."""
    data, text = base64.b64encode(file.read_bytes()).decode("ascii"), html.escape(caption)
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values, without those that are empty."""
    rows = (
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
        if value
    )
    return f'<table class="facts">{"".join(rows)}</table>'


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


_CSS = """
:root { --ink: #1c1c1c; --soft: #5c5c5c; --line: #dddddd; --good: #dff3e4; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: #fff;
  max-width: 60rem; margin: 2.5rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.lead { font-size: 1.08rem; }
.note { background: #fff4d6; padding: .6rem .9rem; border-radius: 6px; }
figure { margin: 1.6rem 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption, caption { color: var(--soft); font-size: .92rem; }
caption { caption-side: bottom; text-align: left; padding-top: .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
.results { width: 100%; font-variant-numeric: tabular-nums; }
.results th, .results td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
.results thead tr:first-child th[colspan] { text-align: center; border-left: 1px solid var(--line); }
.results thead tr:last-child th { font-weight: 500; color: var(--soft); font-size: .88rem; }
.results td:nth-child(even) { border-left: 1px solid var(--line); }
.results td:nth-child(odd) { color: var(--soft); }
.results.even td { color: var(--ink); border-left: 0; white-space: nowrap; }
li.good { background: var(--good); }
.results .good { background: var(--good); font-weight: 600; }
.results tfoot td, .results tfoot th { color: var(--soft); font-weight: 500; border-bottom: 0; }
.facts th { text-align: left; padding: .2rem 1.5rem .2rem 0; font-weight: 500; color: var(--soft);
  vertical-align: top; }
.facts td { padding: .2rem 0; }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 4px; font-size: .9em; }
@media (max-width: 40rem) {
  body { font-size: 15px; margin-top: 1.25rem; }
  .results th, .results td { padding: .3rem .4rem; }
}
"""
