"""A results file of meta-trainings that several processes may add to."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import torch

from metafast.runs import versions

Row = dict[str, Any]


class Results:
    """Rows by method and seed, each with the settings that it came from; rewritten whole or not at all.

    Args:
        path: of the JSON file.
        name: of the recipe.
        recipe: kept beside the rows.
    """

    def __init__(self, path: Path, name: str, recipe: Row) -> None:
        self.path, self._name, self._recipe = path, name, recipe
        self.content: Row = self._read()

    def has(self, method: str, seed: int, settings: Row) -> bool:
        """Whether the row is there.

        Raises:
            SystemExit: it is, but came from other settings.
        """
        row = self.content["rows"].get(key(method, seed))
        if row is not None and row["settings"] != settings:
            raise SystemExit(f"{self.path}: {key(method, seed)} came from other settings; remove it, or give --output")
        return row is not None

    def add(self, method: str, seed: int, row: Row) -> None:
        """Adds a row to what the file has by now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.content = self._read()
            self.content["rows"][key(method, seed)] = row
            part = self.path.with_suffix(".part")
            part.write_text(_one_row_per_line(self.content), encoding="utf-8")
            os.replace(part, self.path)
        finally:
            os.close(folder)

    def _read(self) -> Row:
        rows = json.loads(self.path.read_text(encoding="utf-8"))["rows"] if self.path.exists() else {}
        return {"name": self._name, "recipe": self._recipe, "rows": rows}


def made_by() -> Row:
    """Commit, threads and machine of a row."""
    facts = versions()
    machine = {"cores": os.cpu_count(), **{name: facts[name] for name in ("cpu", "torch", "python", "metafast")}}
    return {"commit": facts["commit"], "threads": torch.get_num_threads(), "machine": machine}


def key(method: str, seed: int) -> str:
    """Name of a row."""
    return f"{method} | {seed}"


def _one_row_per_line(content: Row) -> str:
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(row)}" for k, row in content["rows"].items())
    parts = [f" {json.dumps(k)}: {json.dumps(value)}" for k, value in content.items() if k != "rows"]
    return "{\n" + ",\n".join([*parts, f' "rows": {{\n{rows}\n }}']) + "\n}\n"
