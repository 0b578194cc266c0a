"""Forward accumulation: how the weights would move if a hyperparameter had been another one, carried along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metafast._checks import fraction
from metafast.tune._dynamics import THETA, Slots, dot
from metafast.tune._fused import FusedStep
from metafast.tune._knobs import Knob
from metafast.tune._methods import Method, Validate
from metafast.tune._problem import Call, Gradient, Problem


class Forward(Method):
    r"""Carries \(Z = \partial s / \partial h\), the tangents of weights and optimizer states, through every step.

    With the step's map \(s' = \Phi(s, g(\theta, h), h)\), each training step makes
    \(Z' = \Phi_s Z + \Phi_g (H Z_\theta + \partial g / \partial h) + \Phi_h\), and the hypergradient is
    \(\nabla V^\top Z_\theta\). Exact, with one Hessian-vector product per value and step, and memory of one state
    per value; for few values and any horizon.

    Args:
        hvp: False leaves \(H Z_\theta\) out, which costs no second derivative; the hypergradient is then biased, the
            more the longer the horizon. Default True.
        decay: share of \(Z_\theta\) that is kept at each step, in (0, 1]; below 1 it forgets, which bounds the bias.
            Default 1.
        carry: keep the tangents when the hyperparameters have moved (True), or begin anew (default): the horizon is
            then the tuner's `every`. Tangents that are kept for long grow without bound where training is at its edge
            of stability.

    Raises:
        TypeError, ValueError: `decay` is not in (0, 1], or a switch is no bool.

    Example:
        >>> Forward(hvp=False, decay=0.9).decay
        0.9

    Source:
        L. Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter Optimization, ICML 2017, equation 12;
        without the Hessian: A. Baydin et al., ICLR 2018, over more than one step.
    """

    def __init__(self, hvp: bool = True, decay: float = 1.0, carry: bool = False) -> None:
        for name, value in (("hvp", hvp), ("carry", carry)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        self.hvp = hvp
        self.decay = 1.0 if decay == 1 and not isinstance(decay, bool) else fraction("decay", decay)
        self.carry = carry
        self._tangents: list[Slots] | None = None

    def needs_graph(self, due: bool) -> bool:
        """Where a gradient is differentiated in every step."""
        return self.hvp or any(knob.tensor is not None for knob in self.knobs)

    def bind(self, problem: Problem, knobs: Sequence[Knob], every: int) -> None:
        """Takes what it works on."""
        super().bind(problem, knobs, every)
        self._fused = FusedStep(problem.dynamics, self._units())

    def takes_step(self, call: Call) -> bool:
        """Where a fused op moves weights, states and tangents in one pass."""
        return self._fused.fits(call)

    def step(self, call: Call, validate: Validate | None) -> dict[str, Tensor]:
        """The optimizer's step and that of the tangents; the validation loss, which may fail, comes before."""
        moving = self._gradient_tangents(call)
        value = None if validate is None else validate(self._fused.after(call))
        self._tangents = self._fused.step(call, self._tangents, moving, self.decay)
        return {} if value is None else self._along_tangents(value)

    def observe(self, call: Call) -> None:
        """Moves the tangents over a step."""
        assert call.state is not None and call.gradient is not None
        dynamics = self.problem.dynamics
        gradients = self._gradient_tangents(call)
        tangents = self._tangents or [dynamics.zeros(call.state) for _ in self._units()]
        new: list[Slots] = []
        for (knob, unit), tangent, moving in zip(self._units(), tangents, gradients, strict=True):
            if self.decay < 1:
                tangent = [{k: v * self.decay if k == THETA else v for k, v in slot.items()} for slot in tangent]
            own = None if knob.tensor is not None else knob
            new.append(dynamics.push(call.state, call.gradient.params, call.options, tangent, moving, own, unit))
        self._tangents = new

    def hypergradient(self, call: Call, validate: Validate) -> dict[str, Tensor]:
        """The validation gradient along each tangent."""
        assert call.state is not None and call.gradient is not None
        after = self.problem.dynamics.step(call.state, call.gradient.params, call.options)
        return self._along_tangents(validate(after))

    def _along_tangents(self, value: Gradient) -> dict[str, Tensor]:
        """A validation gradient along each tangent, in the space of its hyperparameter."""
        assert self._tangents is not None
        result = self.problem.in_space(value.tensors)
        for (knob, unit), tangent in zip(self._units(), self._tangents, strict=True):
            flat = result[knob.name].view(-1)
            flat[unit] += dot(tangent, value.params).to(flat)
        if not self.carry:
            self.reset()
        return result

    def reset(self) -> None:
        """Begins with tangents of zero."""
        self._tangents = None

    def mark(self) -> Any:
        """The present tangents. `observe` writes to none, and `step` only when nothing can fail any more."""
        return self._tangents

    def restore(self, mark: Any) -> None:
        """Goes back to a mark."""
        self._tangents = mark

    def state_dict(self) -> dict[str, Any]:
        """The tangents, in memory of their own."""
        return {"tangents": self._tangents and [[_copied(slot) for slot in slots] for slots in self._tangents]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the tangents back."""
        device = [p.device for p in self.problem.dynamics.params]
        tangents = state["tangents"]
        self._tangents = tangents and [
            [{k: v.to(d, copy=True) for k, v in slot.items()} for slot, d in zip(tangent, device, strict=True)]
            for tangent in tangents
        ]

    def _units(self) -> list[tuple[Knob, int]]:
        return [(knob, unit) for knob in self.knobs for unit in range(knob.size)]

    def _gradient_tangents(self, call: Call) -> list[list[Tensor | None]]:
        """How the gradient moves, for each unit."""
        known = self._tangents if self.hvp and self._tangents is not None else [None] * len(self._units())
        return [
            self._gradient_tangent(call, knob, unit, tangent)
            for (knob, unit), tangent in zip(self._units(), known, strict=True)
        ]

    def _gradient_tangent(self, call: Call, knob: Knob, unit: int, tangent: Slots | None) -> list[Tensor | None]:
        """How the gradient moves: by the weights' tangent, and by the loss's own dependence on a tensor.

        Both are one backward pass: the derivative of <gradient, tangent> + dL/dh with respect to the weights.
        """
        gradient, params = call.gradient, self.problem.dynamics.params
        assert gradient is not None
        outputs, given = [], []
        if tangent is not None:
            for grad, slot in zip(gradient.sources[: len(params)], tangent, strict=True):
                if grad is not None and grad.requires_grad:
                    outputs.append(grad)
                    given.append(slot[THETA].to(grad.dtype))
        if knob.tensor is not None:
            direct = gradient.sources[len(params) + [k is knob for k in self.problem.tensor_knobs].index(True)]
            if direct is not None and direct.requires_grad:
                speed = torch.zeros_like(direct)
                speed.view(-1)[unit] = knob.slope().reshape(-1)[unit]
                outputs.append(direct)
                given.append(speed)
        if not outputs:
            return [None] * len(params)
        found = self.problem.differentiated(gradient, outputs, given, params)
        return found if gradient.clip is None else gradient.clip.derivative(found)


def _copied(slot: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in slot.items()}
