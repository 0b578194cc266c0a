"""When a controller is stopped, and what is brought back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import fraction, integer, positive


@dataclass(frozen=True)
class Watchdog:
    """Falls back to the base schedule when the loss is lost.

    A loss is lost when the mean of an interval (of as many as make 10 steps) is not finite, or above

        best + max(worse * (first - best), margin * |first|)

    with the first loss of all and the best such mean so far (the first loss, until there is one). Then rates that the
    controller has raised above the base schedule go back to it, others (the base schedule is itself too fast) are
    multiplied by `cut`; half of the rate at which it happened becomes a ceiling; the controller forgets what it saw,
    and rests for `hold` intervals.

    Args:
        worse: share of the gain so far that may be lost. Default 0.5.
        margin: share of the first loss that may be lost in any case. Default 0.25.
        cut: in (0, 1). Default 0.1.
        hold: intervals at rest. Default 2.
        limit: how often; after that the rates stay on the base schedule for good. Default 10.
        rewind: whether weights and the optimizer's states go back too. "start" (default): to the start, as long as the
            first `early` intervals since the last loss are not over; the copies are dropped then. True: to the last
            good interval of those that are copied every `early` intervals. False: never; no copies are made.
        early: intervals. Default 20.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> Watchdog().lost(2.4, first=2.3, best=1.0), Watchdog().lost(1.2, first=2.3, best=1.0)
        (True, False)
    """

    worse: float = 0.5
    margin: float = 0.25
    cut: float = 0.1
    hold: int = 2
    limit: int = 10
    rewind: str | bool = "start"
    early: int = 20

    def __post_init__(self) -> None:
        positive("worse", self.worse)
        positive("margin", self.margin)
        fraction("cut", self.cut)
        integer("hold", self.hold, minimum=0)
        integer("limit", self.limit, minimum=0)
        integer("early", self.early, minimum=1)
        if not isinstance(self.rewind, bool) and self.rewind != "start":
            raise ValueError(f'rewind must be "start", True or False, got {self.rewind!r}')

    def lost(self, mean: float, first: float, best: float) -> bool:
        """Whether a mean loss counts as lost."""
        if not math.isfinite(mean):
            return True
        if not math.isfinite(first):
            return False
        best = best if math.isfinite(best) else first
        return mean > best + max(self.worse * (first - best), self.margin * abs(first))


class Copies:
    """Weights, buffers and optimizer states as they were once.

    A state that an optimizer had not made yet is filled with zeros, which is what it begins with.

    Args:
        optimizer: whose parameters and states.
        model: whose buffers; None: none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> None:
        self.kept = [x.detach().clone() for x in _tensors(optimizer, model)]
        self.states = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state.get(p, {}).items()}
            for p in _params(optimizer)
        ]

    @torch.no_grad()
    def restore(self, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> None:
        """Puts everything back where it was, into the same tensors."""
        for tensor, kept in zip(_tensors(optimizer, model), self.kept, strict=True):
            tensor.detach().copy_(kept)
        for param, kept_states in zip(_params(optimizer), self.states, strict=True):
            states = optimizer.state.get(param, {})
            for name, value in states.items():
                before = kept_states.get(name)
                if not isinstance(value, Tensor):
                    states[name] = type(value)() if before is None and isinstance(value, int | float) else before
                elif isinstance(before, Tensor):
                    value.copy_(before)
                else:
                    value.zero_()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kept": dict(enumerate_str(self.kept)), "states": dict(enumerate_str(self.states))}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Copies:
        """From what `state_dict` gave."""
        copies = cls.__new__(cls)
        copies.kept = [state["kept"][str(i)].clone() for i in range(len(state["kept"]))]
        copies.states = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in state["states"][str(i)].items()}
            for i in range(len(state["states"]))
        ]
        return copies


def enumerate_str(items: list[Any]) -> list[tuple[str, Any]]:
    """Items with their numbers as names."""
    return [(str(i), item) for i, item in enumerate(items)]


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _tensors(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> list[Tensor]:
    buffers = [] if model is None else list(model.buffers())
    return [*_params(optimizer), *buffers]
