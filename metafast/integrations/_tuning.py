"""What the callbacks for tuning share: a tuner that is made when training begins."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from metafast.tune import Forward, OnlineTuner


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
