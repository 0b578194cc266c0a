"""What the callbacks for tuning share: a tuner that is made when training begins, and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from metafast.runs._checkpoint import dumps, replace_file
from metafast.runs._state import pack, unpack
from metafast.tune import Forward, OnlineTuner

FILES = ("tuner.json", "tuner.safetensors")


class TunerOptions:
    """Arguments of `OnlineTuner` until there is a model; then the tuner.

    Args:
        tune, val_loader, method, every, options: as in `OnlineTuner`.
    """

    def __init__(self, tune: Any, val_loader: Any, method: Any, every: int, options: dict[str, Any]) -> None:
        for name in ("scaler", "scheduler", "train_loader", "process_group"):
            if name in options:
                raise ValueError(f"{name} is the trainer's here, got {name}={options[name]!r}; leave it out")
        self.method = Forward(hvp=False, decay=0.9) if method is None else method
        self.arguments = {"tune": tune, "val_loader": val_loader, "every": every, **options}

    def make(self, model: Any, optimizer: Any, scheduler: Any, **options: Any) -> OnlineTuner:
        """The tuner of a training; the trainer averages training gradients over processes, the tuner the others."""
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        arguments = {**self.arguments, **options, "scheduler": scheduler, "process_group": group}
        return OnlineTuner(model, optimizer, method=self.method, **arguments)


def logged(tuner: OnlineTuner) -> dict[str, float]:
    """What goes into a trainer's log: hyperparameters that have one value."""
    return {
        f"tuned/{name}": next(iter(tuned.values.values()))
        for name, tuned in tuner.state.items()
        if len(tuned.values) == 1
    }


def save_tuner(tuner: OnlineTuner, folder: Path) -> None:
    """Writes the tuner's state beside a trainer's checkpoint, without pickle; the JSON last."""
    tree, tensors = pack(tuner.state_dict())
    replace_file(folder / FILES[1], lambda path: save_file(tensors, path))
    replace_file(folder / FILES[0], lambda path: path.write_text(dumps(tree), encoding="utf-8"))


def load_tuner(tuner: OnlineTuner, folder: Path) -> None:
    """Takes back what `save_tuner` wrote.

    Raises:
        ValueError: the checkpoint has no tuner, or that of another training.
    """
    if not (folder / FILES[0]).exists():
        raise ValueError(
            f"{folder} has no {FILES[0]}: it was saved without this callback; train anew, or resume without"
        )
    tree = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    tuner.load_state_dict(unpack(tree, load_file(folder / FILES[1])))
