"""Controllers on disk: safetensors, with sizes and record beside the tensors, checked as a whole before use."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metafast.runs._checkpoint import replace_file
from metafast.schedule._features import NAMES
from metafast.schedule._policy import Shape

FORMAT = "metafast.schedule.LRController"
VERSION = 1
SHIPPED = Path(__file__).parent


@dataclass
class Learned:
    """A meta-learner.

    Args:
        shape: its sizes.
        weights: float32 `[D]`.
        max_change: bound of one change of a log rate.
        interval: steps between two decisions that it learned with.
        shift: what `adapt` has found: added to the size of update that it wants.
        record: how it was made.
    """

    shape: Shape
    weights: Tensor
    max_change: float
    interval: int
    shift: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)


def write(learned: Learned, path: str | os.PathLike[str]) -> None:
    """Writes the file, whole or not at all."""
    tensors = {name: part.contiguous().clone() for name, part in learned.shape.split(learned.weights).items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "inputs": list(NAMES),
        "hidden": learned.shape.hidden,
        "max_change": learned.max_change,
        "interval": learned.interval,
        "shift": learned.shift,
        "record": learned.record,
        "checksum": checksum(learned.weights),
    }
    metadata = {"metafast": json.dumps(about)}
    replace_file(Path(path), lambda file: save_file(tensors, file, metadata=metadata))


def read(path: str | os.PathLike[str]) -> Learned:
    """Reads and checks a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another version, with other inputs, or with missing tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no controller at {file}; the shipped one is LRController.load('default')")
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("metafast", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{file} holds no controller; one is made by LRController.save")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{file} has version {about.get('version')!r} of the format, this metafast reads {VERSION}: train it anew "
            "with `metafast schedule meta-train`, or install the metafast that made it"
        )
    if about.get("inputs") != list(NAMES):
        raise ValueError(f"{file} was made for other inputs: {about.get('inputs')}, not {list(NAMES)}")
    shape = Shape(len(NAMES), int(about["hidden"]))
    for name, size in shape.parts.items():
        if name not in tensors:
            raise ValueError(f"{file} lacks the tensor {name!r}")
        if tuple(tensors[name].shape) != size or tensors[name].dtype != torch.float32:
            got = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise ValueError(f"tensor {name!r} of {file} must be float32 {list(size)}, got {got}")
    weights = torch.cat([tensors[name].reshape(-1) for name in shape.parts])
    if about.get("checksum") != checksum(weights) or not bool(weights.isfinite().all()):
        raise ValueError(f"{file} is damaged: its tensors do not have the checksum that was written with them")
    return Learned(
        shape, weights, float(about["max_change"]), int(about["interval"]), float(about["shift"]), about["record"]
    )


def checksum(weights: Tensor) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()
