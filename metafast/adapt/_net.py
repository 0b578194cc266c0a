"""The meta-network: which parts it has, and how they make an update of a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metafast.adapt._coordinate import Coordinate
from metafast.adapt._factors import MIXERS, Factors
from metafast.adapt._feedback import feedback
from metafast.adapt._initial import Initial
from metafast.adapt._rates import Rates, state_of
from metafast.adapt._sites import Site, Tap, Values

PARTS = ("alfa", *MIXERS, "init", "coordinate")


def parse(net: str | None) -> tuple[str, ...]:
    """`"alfa+mend"` as the names of its parts.

    Raises:
        TypeError: no text.
        ValueError: an unknown part, or one twice.
    """
    if net is None:
        return ()
    if not isinstance(net, str):
        raise TypeError(f'net must be a text such as "alfa+mend", or None, got {net!r}')
    parts = tuple(net.split("+"))
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"net must be parts out of {', '.join(PARTS)} joined by +, got {net!r}")
    if len(set(parts)) < len(parts):
        raise ValueError(f"net={net!r} has a part twice")
    return parts


class Memory:
    """What an adaptation remembers from step to step."""

    signals: Tensor  # of the last step noted, `[T, 3]`, see `feedback`

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.updates: list[Tensor] | None = None
        self.means: list[Tensor] | None = None

    def note(self, losses: Tensor, share: float) -> None:
        """The support losses `[T]` at a step, before which that share of the steps was done."""
        self.losses.append(losses)
        self.signals = feedback(self.losses, share)


class MetaNetwork(nn.Module):
    """Makes updates of gradients.

    Args:
        parts: names out of `PARTS`.
        sites: those that adapt; the head comes after them.
        width: of the backbone's features.
        steps: of adaptation.
        inner_lr: the rate of plain gradient descent, and where learned rates start.
        dropout: of hidden layers.
        hidden: width of the layers between features, or factors of gradients, and what is made of them.
    """

    def __init__(
        self, parts: Sequence[str], sites: Sequence[Site], width: int, steps: int, inner_lr: float, dropout: float,
        hidden: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inner_lr = inner_lr
        self.steps = steps
        tensors = sum(len(site.shapes) for site in sites) + 2  # the head has a weight and a bias
        self.rates = Rates(tensors, steps, inner_lr, dropout=dropout) if "alfa" in parts else None
        self.factors = nn.ModuleList(Factors(sites, part, hidden, dropout) for part in parts if part in MIXERS)
        self.initial = Initial(width, sites, hidden, dropout) if "init" in parts else None
        self.coordinate = Coordinate() if "coordinate" in parts else None

    def gradient(self, number: int, site: Site, tap: Tap, delta: Tensor, values: Values, signals: Tensor) -> Values:
        """The gradients of a site's numbers from one of its calls, with the factors edited.

        Args:
            number: of the site.
            site: the site.
            tap: the call.
            delta: the gradient of its output.
            values: the numbers, `[T, *shape]`.
            signals: `[T, 3]`, see `feedback`.
        """
        left = tap.left
        part: Any
        for part in self.factors:
            if number in part.member:
                left, delta = part(number, left, delta, signals, site.channels_last)
        return site.gradient(left, delta, values)

    def step(self, values: list[Tensor], grads: list[Tensor], number: int, memory: Memory) -> list[Tensor]:
        """The numbers after a step.

        Args:
            values: of each tensor, `[T, ...]`.
            grads: likewise.
            number: of the step, from 0.
            memory: of the adaptation, which has noted this step.
        """
        updates = grads
        if self.coordinate is not None:
            means = memory.means or [torch.zeros_like(grad) for grad in grads]
            pairs = [self.coordinate(v, g, m, memory.signals) for v, g, m in zip(values, grads, means, strict=True)]
            updates, memory.means = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if self.rates is None:
            return [value - self.inner_lr * update for value, update in zip(values, updates, strict=True)]
        state = state_of(values, grads, memory.updates, memory.signals)
        rates, decays = self.rates(state, number)
        moved, taken = [], []
        for i, (value, update) in enumerate(zip(values, updates, strict=True)):
            shape = (-1, *[1] * (value.dim() - 1))
            move = rates[:, i].view(shape) * update
            moved.append(value * (1 - decays[:, i].view(shape)) - move)
            taken.append(move.detach())
        memory.updates = taken
        return moved
