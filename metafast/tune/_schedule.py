"""A tuned learning rate under a scheduler: the tuner moves the base rate, the scheduler its multiplier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

_ABSOLUTE = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)  # set rates that no base rate scales


class Schedule:
    """A scheduler whose rates are a base rate times something that depends on the step alone.

    Raises:
        TypeError, ValueError: not a scheduler of this optimizer, or one that sets absolute rates.
    """

    def __init__(self, scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
        self._parts = _leaves(scheduler)
        for part in self._parts:
            if not isinstance(part, lr_scheduler.LRScheduler):
                raise TypeError(
                    f"scheduler must be one of torch.optim.lr_scheduler or of transformers, got {type(part).__name__}"
                )
            if isinstance(part, _ABSOLUTE) or getattr(part, "eta_min", 0) != 0:
                raise ValueError(
                    f"scheduler: {type(part).__name__} sets rates that are no multiple of a base rate"
                    f"{' (eta_min is not 0)' if hasattr(part, 'eta_min') else ''}; take one that is, such as LambdaLR, "
                    "or leave lr out of tune"
                )
            owner = part.optimizer
            if getattr(owner, "optimizer", owner) is not optimizer:  # accelerate wraps it
                raise ValueError("scheduler belongs to another optimizer than the tuner's")

    @staticmethod
    def base(group: Mapping[str, Any]) -> float:
        """The base rate of a group."""
        return float(group.get("initial_lr", group["lr"]))

    def rebase(self, index: int, group: dict[str, Any], value: float, *, rate: bool = True) -> None:
        """Gives a group another base rate, and with `rate` scales its present rate along."""
        present, before = float(group["lr"]), self.base(group)
        group["initial_lr"] = value
        for part in self._parts:
            bases = getattr(part, "base_lrs", None)
            if bases is not None:
                bases[index] = value
        if not rate:
            return
        scaled = value * (present / before)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def _leaves(scheduler: Any) -> Sequence[Any]:
    inner = getattr(scheduler, "_schedulers", None)
    own = [] if inner is None else [leaf for part in inner for leaf in _leaves(part)]
    return [scheduler, *own]
