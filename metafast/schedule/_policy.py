"""The meta-learner: one LSTM step from a unit's features to the change of its rate, with all weights in one vector.

    i, f, o, c~ = W_x x + W_h h + b;   c <- s(f) c + s(i) tanh(c~);   h <- s(o) tanh(c)
    wanted = w_h . h + w_x . x + w_0
    change = max_change tanh(3 (wanted - update) / max_change)

It says how large an update should be against the weights, in the units of the feature "update"; the rate moves there by
at most `max_change`. So a learner that says the same all the time reaches the same size from every starting rate, and
errors do not add up over time, as they do where the output is the change itself (docs/schedule.md). `weights` is `[D]`,
or `[N, D]` for N learners at once, each with units of its own.

1. Hochreiter & Schmidhuber, Long short-term memory, Neural Computation 1997.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metafast.schedule._features import LEFT_UNIT, NAMES, UPDATE_UNIT

_FIRST_OFFSET = 1.0  # of the rules that were tried, among the best on the training suite
_FIRST_ALIGNMENT = 3.0
UPDATE = NAMES.index("update")


@dataclass(frozen=True)
class Shape:
    """Sizes of the meta-learner.

    Args:
        inputs: F, features of a unit.
        hidden: H, size of the LSTM's state.
    """

    inputs: int
    hidden: int

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Tensors by name, in the order in which they lie in the vector."""
        gates = 4 * self.hidden
        return {
            "input": (gates, self.inputs),
            "recurrent": (gates, self.hidden),
            "bias": (gates,),
            "head": (self.hidden,),
            "skip": (self.inputs,),
            "offset": (1,),
        }

    @property
    def numel(self) -> int:
        """D."""
        return sum(math.prod(shape) for shape in self.parts.values())

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of `[..., D]`, each `[..., *shape]`."""
        pieces = weights.split([math.prod(shape) for shape in self.parts.values()], -1)
        return {
            name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.parts.items(), pieces, strict=True)
        }

    def initial(self, seed: int) -> Tensor:
        """Random gates that remember, a head of zeros, and a plain rule on the direct way.

        The rule: updates of `e^(3 offset)` thousandths of the weights, larger while gradients agree from step to step,
        and a linear decay to the end of the training.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(self.numel)
        parts = self.split(weights)
        for name in ("input", "recurrent"):
            part = parts[name]
            part.copy_(torch.randn(part.shape, generator=generator) / math.sqrt(part.shape[-1]))
        parts["bias"][self.hidden : 2 * self.hidden] = 1.0
        parts["offset"].fill_(_FIRST_OFFSET)
        parts["skip"][NAMES.index("alignment of all")] = _FIRST_ALIGNMENT
        parts["skip"][NAMES.index("left")] = LEFT_UNIT / UPDATE_UNIT
        return weights


def first_memory(shape: Shape, units: int, lead: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Tensor:
    """h and c before the first interval, `[2, *lead, U, H]`."""
    return torch.zeros(2, *lead, units, shape.hidden, device=device)


def decide(
    shape: Shape, weights: Tensor, features: Tensor, memory: Tensor, max_change: float, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The change of every unit's log rate.

    Args:
        shape: sizes.
        weights: `[D]` or `[N, D]`.
        features: `[U, F]` or `[N, U, F]`.
        memory: `[2, U, H]` or `[2, N, U, H]`.
        max_change: bound of one change, in units of the natural logarithm.
        keep: mask times 1 / (1 - p) on h before the head, for dropout; broadcast to `[..., U, H]`.

    Returns:
        (changes `[..., U]`, the new memory).
    """
    w = shape.split(weights)
    h, c = memory[0], memory[1]
    gates = features @ w["input"].mT + h @ w["recurrent"].mT + w["bias"].unsqueeze(-2)
    i, f, o, candidate = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * candidate.tanh()
    h = o.sigmoid() * c.tanh()
    seen = h if keep is None else h * keep
    wanted = (seen @ w["head"].unsqueeze(-1) + features @ w["skip"].unsqueeze(-1)).squeeze(-1) + w["offset"]
    missing = UPDATE_UNIT * (wanted - features[..., UPDATE])
    return max_change * (missing / max_change).tanh(), torch.stack([h, c])
