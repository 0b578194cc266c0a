"""Writes the tables of README.md from the results, so that no number is typed by hand.

python -m benchmarks.maml.tables
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.convergence.study import RESULTS

from . import learning_report, report, transfer
from .scaling import sentences

README = Path(__file__).with_name("README.md")
RECIPES = (
    "sinusoid", "omniglot_fc", "omniglot_5w1s", "omniglot_5w5s", "omniglot_20w1s", "cifar_fs_5w1s", "cifar_fs_5w5s",
    "few_rel_5w1s", "few_rel_5w5s",
)  # fmt: skip
NONE = "Not measured yet."


def render(text: str, results: Path = RESULTS) -> str:
    """The text with each `<!-- name -->` block filled from its results."""
    blocks: dict[str, Callable[[Path], str]] = {
        "meta-gradient": _meta_gradient, "scaling": _scaling, "learning": _learning, "transfer": _transfer,
    }  # fmt: skip
    for name, make in blocks.items():
        block = f"<!-- {name} -->\n{make(results)}\n<!-- end -->"
        text, found = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"README.md must have one block <!-- {name} --> ... <!-- end -->, has {found}")
    return text


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _meta_gradient(results: Path) -> str:
    content = _read(results / "maml_meta_gradient.json")
    return NONE if content is None else report.markdown(content).strip()


def _scaling(results: Path) -> str:
    content = _read(results / "maml_scaling.json")
    if content is None:
        return NONE
    return "\n".join(f"- {line}" for line in sentences(content)) + "\n\n![scaling](../results/maml_scaling.png)"


def _learning(results: Path) -> str:
    parts = []
    for name in RECIPES:
        content = _read(results / f"maml_{name}.json")
        if content is not None:
            parts.append(f"{learning_report.table(content)}\n\n![{name}](../results/maml_{name}.png)")
    return "\n\n".join(parts) or NONE


def _transfer(results: Path) -> str:
    content = _read(results / "maml_transfer.json")
    return NONE if content is None else f"{transfer.table(content)}\n\n![transfer](../results/maml_transfer.png)"


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
