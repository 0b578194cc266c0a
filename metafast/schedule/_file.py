"""Controllers on disk: safetensors, with sizes and record beside the tensors, checked as a whole before use."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metafast._files import Kind
from metafast.schedule._features import NAMES
from metafast.schedule._policy import Shape

KIND = Kind(
    "metafast.schedule.LRController",
    1,
    "controller",
    where="the shipped one is LRController.load('default')",
    maker="LRController.save",
    anew="train it anew with `metafast schedule meta-train`",
)
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
        "inputs": list(NAMES),
        "hidden": learned.shape.hidden,
        "max_change": learned.max_change,
        "interval": learned.interval,
        "shift": learned.shift,
        "record": learned.record,
        "checksum": checksum(learned.weights),
    }
    KIND.write(save_file, tensors, about, path)


def read(path: str | os.PathLike[str]) -> Learned:
    """Reads and checks a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another version, with other inputs, or with missing tensors.
    """
    about, tensors = KIND.read(path, "pt")
    if about.get("inputs") != list(NAMES):
        raise ValueError(f"{path} was made for other inputs: {about.get('inputs')}, not {list(NAMES)}")
    shape = Shape(len(NAMES), int(about["hidden"]))
    for name, size in shape.parts.items():
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name!r}")
        if tuple(tensors[name].shape) != size or tensors[name].dtype != torch.float32:
            got = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise ValueError(f"tensor {name!r} of {path} must be float32 {list(size)}, got {got}")
    weights = torch.cat([tensors[name].reshape(-1) for name in shape.parts])
    if about.get("checksum") != checksum(weights) or not bool(weights.isfinite().all()):
        raise ValueError(f"{path} is damaged: its tensors do not have the checksum that was written with them")
    return Learned(
        shape, weights, float(about["max_change"]), int(about["interval"]), float(about["shift"]), about["record"]
    )


def checksum(weights: Tensor) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()
