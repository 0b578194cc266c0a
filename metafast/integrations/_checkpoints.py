"""States of our own beside a trainer's checkpoint, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from metafast.runs._checkpoint import dumps, replace_file
from metafast.runs._state import pack, unpack


def save_state(stateful: Any, folder: Path, name: str) -> None:
    """Writes `stateful.state_dict()` as `name.safetensors` and `name.json`, the JSON last."""
    tree, tensors = pack(stateful.state_dict())
    replace_file(folder / f"{name}.safetensors", lambda path: save_file(tensors, path))
    replace_file(folder / f"{name}.json", lambda path: path.write_text(dumps(tree), encoding="utf-8"))


def load_state(stateful: Any, folder: Path, name: str) -> None:
    """Gives `stateful` back what `save_state` wrote.

    Raises:
        ValueError: the checkpoint has no such state, or that of another training.
    """
    file = folder / f"{name}.json"
    if not file.exists():
        raise ValueError(
            f"{folder} has no {file.name}: it was saved without this callback; train anew, or resume without"
        )
    tree = json.loads(file.read_text(encoding="utf-8"))
    stateful.load_state_dict(unpack(tree, load_file(folder / f"{name}.safetensors")))
