"""One step back without second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from metafast.tune._dynamics import THETA, State
from metafast.tune._methods import Method, Validate
from metafast.tune._problem import Call
from metafast.tune._reverse import gradient_covector
from metafast.tune._tune import positive


class SAMA(Method):
    r"""`OneStep` with a central difference instead of the mixed second derivative.

    The validation gradient passes through the optimizer's update, \(v = \nabla V\, \Phi_g\) (Adam's preconditioner
    included), and a tensor h of the loss gets
    \((\nabla_h L(\theta + \epsilon v) - \nabla_h L(\theta - \epsilon v)) / 2\epsilon\) with
    \(\epsilon = \text{radius} / \lVert v \rVert\): two more first-order gradients of the call's batch, only on the
    calls that are due. Options of the optimizer need none and get the same as by `OneStep`.

    Args:
        radius: length of the perturbation. Default 0.01.

    Raises:
        TypeError, ValueError: `radius` is not a number above 0.

    Example:
        >>> SAMA(radius=0.1).radius
        0.1

    Source:
        S. K. Choe et al., Making Scalable Meta Learning Practical, NeurIPS 2023, equation 5; the difference: H. Liu,
        K. Simonyan, Y. Yang, DARTS, ICLR 2019, equation 8.
    """

    replays = True

    def __init__(self, radius: float = 0.01) -> None:
        self.radius = positive("radius", radius)

    def hypergradient(self, call: Call, validate: Validate) -> dict[str, Tensor]:
        """The pulled-back validation gradient, and the difference along it."""
        assert call.state is not None and call.gradient is not None
        problem, dynamics = self.problem, self.problem.dynamics
        value = validate(dynamics.step(call.state, call.gradient.params, call.options))
        covector = gradient_covector(dynamics.zeros(call.state), value.params)
        pulled = dynamics.pull(call.state, call.gradient.params, call.options, covector)
        total = {name: part + pulled.knobs.get(name, 0) for name, part in problem.in_space(value.tensors).items()}
        if not any(knob.tensor is not None for knob in self.knobs):
            return total
        clip = call.gradient.clip
        direction = pulled.grads if clip is None else clip.derivative(pulled.grads)
        norm = sum(float(g.double().square().sum()) for g in direction if g is not None) ** 0.5
        if norm == 0:
            return total
        epsilon = self.radius / norm
        with problem.untouched():
            for sign in (1.0, -1.0):
                with problem.replay(call, _moved(call.state, direction, sign * epsilon), graph=False) as gradient:
                    found = problem.in_space(gradient.tensors)
                for knob in problem.tensor_knobs:
                    total[knob.name] = total[knob.name] + sign / (2 * epsilon) * found[knob.name]
        return total


@torch.no_grad()
def _moved(state: State, direction: list[Tensor | None], length: float) -> State:
    slots = [
        slot if d is None else {**slot, THETA: slot[THETA] + length * d}
        for slot, d in zip(state.slots, direction, strict=True)
    ]
    return State(slots, state.steps)
