"""What the tangent ops share: an optimizer's step that also moves, in one pass, how its result depends on options.

A call has `values` hyperparameter values h. `tangents` `[values, 1 + states, row]` holds d theta / dh and d state / dh
of all tensors for each of them (`items` says where in a row), and moves them by the derivative of the step:

    Z' = Phi_s Z + Phi_g dg/dh + Phi_h

`options` float64 `[tensors, options]` has the options of each tensor, `seeds` float64 `[values, tensors, options]`
their derivatives by each value; `grad_tangents` has dg/dh of all tensors, value after value, or nothing where the
gradient stands. theta's tangent is multiplied by `decay` on the way in; with `fresh` all tangents are zero on the way
in, whatever memory holds. `step` float64 `[tensors]` counts from 1, and is not written.

1. Franceschi, Donini, Frasconi & Pontil, Forward and reverse gradient-based hyperparameter optimization, ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _bucket

TAIL = (
    "Tensor(z!) tangents, Tensor[] grad_tangents, Tensor items, Tensor chunks, Tensor step, Tensor options, "
    "Tensor seeds, int values, float decay, bool fresh"
)

Rows = list[Tensor]  # flat: of the parameter, then of its states
Push = Callable[[Rows, Tensor, list[float]], Rows]  # (tangents, the gradient's, the options') -> tangents
Step = Callable[[Rows, Tensor, list[float], float], tuple[Rows, Push]]  # (values, gradient, options, step)


@dataclass(frozen=True)
class Tangents:
    """The arguments that both ops have behind their states."""

    tangents: Tensor
    grad_tangents: list[Tensor]
    items: Tensor
    chunks: Tensor
    step: Tensor
    options: Tensor
    seeds: Tensor
    values: int
    decay: float
    fresh: bool

    def run(self, params: list[Tensor], grads: list[Tensor], states: Sequence[list[Tensor]], step: Step) -> None:
        """The reference of both ops: `step` knows the rule."""
        self._check(params, grads, states)
        for i, (_, offset, numel) in enumerate(self.items.tolist()):
            primal = [_bucket.flat(x) for x in (params[i], *(state[i] for state in states))]
            new, push = step(primal, _bucket.flat(grads[i]), self.options[i].tolist(), float(self.step[i]))
            for k in range(self.values):
                rows = [row[offset : offset + numel] for row in self.tangents[k]]
                before = [torch.zeros_like(row) if self.fresh else row.clone() for row in rows]
                before[0] *= self.decay
                moving = torch.zeros_like(new[0])
                if self.grad_tangents:
                    moving = _bucket.flat(self.grad_tangents[k * len(params) + i])
                for row, value in zip(rows, push(before, moving, self.seeds[k, i].tolist()), strict=True):
                    row.copy_(value)
            for tensor, value in zip(primal, new, strict=True):
                tensor.copy_(value)

    def _check(self, params: list[Tensor], grads: list[Tensor], states: Sequence[list[Tensor]]) -> None:
        for alike in (grads, *states):
            _bucket.check(params, alike, self.items)
        count, there = len(params), len(self.grad_tangents)
        if there not in (0, self.values * count):
            raise ValueError(f"grad_tangents has {there} tensors, needs none or {self.values * count}")
        for start in range(0, there, count or 1):
            _bucket.check(params, self.grad_tangents[start : start + count], self.items)
        for index, (_, offset, numel) in enumerate(self.items.tolist()):
            if self.values and not 0 <= offset <= self.tangents.shape[-1] - numel:
                raise ValueError(f"a row of tangents has {self.tangents.shape[-1]} elements, too few for items {index}")


def sample_inputs(
    states: int, options: list[float], flags: Sequence[tuple[bool, bool]], device: str, seed: int
) -> list[tuple[Any, ...]]:
    """Argument tuples, float32 whatever is asked: two values, none, one that begins, and six with moving gradients."""
    numels, samples = (0, 1, 63, 4097), []
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    for (values, fresh, moving), switches in zip(
        ((2, False, False), (0, False, False), (1, True, False), (6, False, True)), flags, strict=True
    ):
        params, grads, _, layout = _bucket.sample_bucket(numels, 0, seed=seed, device=device)
        kept = [[draw(n) if j == 0 else draw(n).square() for n in numels] for j in range(states)]
        rows = torch.tensor([options] * len(numels), dtype=torch.float64, device=device)
        samples.append(
            (params, grads, *kept, draw(values, 1 + states, layout.arena_size))
            + ([draw(n) for _ in range(values) for n in numels] if moving else [], layout.items, layout.chunks)
            + (torch.tensor([1.0, 2.0, 7.0, 1000.0], dtype=torch.float64, device=device), rows)
            + (draw(values, len(numels), len(options)).double() * rows, values, 0.9 if moving else 1.0, fresh)
            + switches
        )
    return samples
