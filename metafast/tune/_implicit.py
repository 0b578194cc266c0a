"""Hypergradients from a single step: fixed point of the update, or one step back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer, positive
from metafast.tune._dynamics import Slots
from metafast.tune._knobs import Knob
from metafast.tune._methods import Method, Validate
from metafast.tune._problem import Call, Problem
from metafast.tune._reverse import gradient_covector, pull_back

SOLVERS = ("neumann", "cg")
PRODUCTS = ("exact", "difference")


class Implicit(Method):
    r"""Takes the present state for a fixed point \(s = \Phi(s, h)\) of the training step.

    Then \(ds/dh = (I - \Phi_s)^{-1} \Phi_h\). "neumann" sums the first terms of
    \(\nabla V \sum_{i \ge 0} \Phi_s^i\, \Phi_h\), where the state is weights and optimizer states together: learning
    rates, momentum and decay have a hypergradient as tensors of the loss do. With momentum m, the sum needs several
    times \(1 / (1 - m)\) terms. "cg" solves \((H + \text{damping} \cdot I) x = \nabla V\) by conjugate gradients, which
    assumes that training has converged to a minimum; the optimizer's options do not move that.

    Products with the Hessian and the mixed derivatives are exact, or central differences of two gradients. These are
    cheaper where second derivatives are slow, as those of convolutions and batch norm on a CPU, and dearer for a
    perceptron.

    Args:
        terms: terms after the zeroth one of the series, or steps of conjugate gradients; each is one Hessian-vector
            product on the batch of the call. Default 5.
        solver: "neumann" (default) or "cg".
        damping: added to the Hessian's diagonal by "cg". Default 0.
        hvp: "exact" (default), or "difference", which needs no second derivatives of the model.
        radius: length of the perturbation of a difference. Default 0.01.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> Implicit(terms=10).terms
        10

    Source:
        J. Lorraine, P. Vicol, D. Duvenaud, Optimizing Millions of Hyperparameters by Implicit Differentiation,
        AISTATS 2020, algorithm 3; R. Clarke, E. Oldewage, J. Hernández-Lobato, Scalable One-Pass Optimisation of
        High-Dimensional Weight-Update Hyperparameters by Implicit Differentiation, ICLR 2022, algorithm 1;
        F. Pedregosa, Hyperparameter Optimization with Approximate Gradient, ICML 2016 (conjugate gradients).
    """

    def __init__(
        self,
        terms: int = 5,
        solver: str = "neumann",
        damping: float = 0.0,
        *,
        hvp: str = "exact",
        radius: float = 0.01,
    ) -> None:
        self.terms = integer("terms", terms, minimum=0)
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(map(repr, SOLVERS))}, got {solver!r}")
        if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 <= damping < float("inf"):
            raise ValueError(f"damping must be a finite number of at least 0, got {damping!r}")
        if damping and solver != "cg":
            raise ValueError(f'damping is for solver="cg", got {damping!r} with {solver!r}')
        if hvp not in PRODUCTS:
            raise ValueError(f"hvp must be one of {', '.join(map(repr, PRODUCTS))}, got {hvp!r}")
        radius = positive("radius", radius)
        self.solver, self.damping = solver, float(damping)
        self.radius = radius if hvp == "difference" else None

    def bind(self, problem: Problem, knobs: Sequence[Knob], every: int) -> None:
        """Takes what it works on."""
        super().bind(problem, knobs, every)
        options = [knob.name for knob in knobs if knob.tensor is None]
        if self.solver == "cg" and options:
            raise ValueError(
                f'solver="cg" is for tensors that the loss depends on, and tune has {", ".join(options)}; '
                'use solver="neumann" for these: Tune(..., method="implicit")'
            )

    @property
    def replays(self) -> bool:
        """For differences."""
        return self.radius is not None and self._twice

    def needs_graph(self, due: bool) -> bool:
        """On the calls that are due, for exact products."""
        return due and self.radius is None and self._twice

    @property
    def _twice(self) -> bool:
        """Whether anything has to be differentiated twice."""
        return self.terms > 0 or any(knob.tensor is not None for knob in self.knobs)

    def hypergradient(self, call: Call, validate: Validate) -> dict[str, Tensor]:
        """The series, or the solution, at the present state."""
        assert call.state is not None and call.gradient is not None
        dynamics = self.problem.dynamics
        value = validate(dynamics.step(call.state, call.gradient.params, call.options))
        total = self.problem.in_space(value.tensors)
        if self.solver == "cg":
            solution = self._solve(call, value.params)
            _, mixed = self.problem.second(call, call.gradient, solution, params=False, radius=self.radius)
            return {knob.name: total[knob.name] - mixed[knob.name] for knob in self.knobs}
        covector: Slots = gradient_covector(dynamics.zeros(call.state), value.params)
        for term in range(self.terms + 1):
            last = term == self.terms
            covector = pull_back(
                self.problem, call.state, call.gradient, call, covector, total, last=last, radius=self.radius
            )
        return total

    def _solve(self, call: Call, right: Sequence[Tensor | None]) -> list[Tensor | None]:
        """x of (H + damping) x = right by conjugate gradients; stops where the curvature is not positive."""
        assert call.gradient is not None
        params = self.problem.dynamics.params
        rest = [torch.zeros_like(p) if r is None else r.detach().clone() for p, r in zip(params, right, strict=True)]
        x = [torch.zeros_like(r) for r in rest]
        direction = [r.clone() for r in rest]
        norm = _inner(rest, rest)
        for _ in range(self.terms):
            hessian, _mixed = self.problem.second(call, call.gradient, direction, radius=self.radius)
            curved = [
                self.damping * d if h is None else h + self.damping * d for h, d in zip(hessian, direction, strict=True)
            ]
            curvature = _inner(direction, curved)
            if not curvature > 0:  # NaN stops too
                break
            length = norm / curvature
            x = [a + length * d for a, d in zip(x, direction, strict=True)]
            rest = [r - length * c for r, c in zip(rest, curved, strict=True)]
            before, norm = norm, _inner(rest, rest)
            if norm == 0:
                break
            direction = [r + (norm / before) * d for r, d in zip(rest, direction, strict=True)]
        return list(x)


class OneStep(Implicit):
    r"""The hypergradient through the last step alone: \(\nabla V\, \Phi_h\), the zeroth term of `Implicit`.

    Sees what a value does within one step: right for regularizers that act at once, greedy for learning rates
    (there it is the hypergradient of `metafast.optim`, on validation data).

    Example:
        >>> OneStep().terms
        0

    Source:
        J. Luketina et al., Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters, ICML 2016
        (T1-T2).
    """

    def __init__(self) -> None:
        super().__init__(terms=0)


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Any:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
