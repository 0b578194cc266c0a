"""Reverse mode through the last steps, one step at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer
from metafast.tune._dynamics import THETA, Grads, Options, Slots, State
from metafast.tune._methods import Method, Validate
from metafast.tune._problem import Call, Gradient, Problem


class Reverse(Method):
    r"""Goes back through the last K training steps, making each of them again.

    A covector \(\lambda\) on the state begins as the validation gradient; each step back adds \(\lambda \Phi_h\) to
    the hypergradient and makes \(\lambda \leftarrow \lambda \Phi_s + (\lambda \Phi_g) H\). Exact over the window, at
    one Hessian-vector product per step for any number of hyperparameters. No graph is longer than a step: memory
    is the stored states and the activations of one step. Steps are made again with their own random numbers, so
    `tuner.step(loss_fn, *batch)` needs the batch as arguments, and must not write into it afterwards.

    Args:
        window: steps K, at most the tuner's `every`. Default: `every`.
        memory_budget: bytes for stored states; what is not stored is made again from the last stored state before
            it, at the cost of one more gradient per step. "sqrt": about \(2\sqrt K\) states. Default None: all K.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or a budget below the least that works.

    Example:
        >>> Reverse(window=100, memory_budget="sqrt").memory_budget
        'sqrt'

    Source:
        D. Maclaurin, D. Duvenaud, R. Adams, Gradient-based Hyperparameter Optimization through Reversible Learning,
        ICML 2015; one step at a time: I. Kemaev et al., Scalable Meta-Learning via Mixed-Mode Differentiation
        (MixFlow-MG), 2025; storage of O(√K) states: A. Griewank, 1992.
    """

    keeps = True

    def __init__(self, window: int | None = None, memory_budget: int | str | None = None) -> None:
        self.window = None if window is None else integer("window", window, minimum=1)
        if isinstance(memory_budget, str):
            if memory_budget != "sqrt":
                raise ValueError(f'memory_budget must be bytes, "sqrt" or None, got {memory_budget!r}')
        elif memory_budget is not None:
            memory_budget = integer("memory_budget", memory_budget, minimum=1)
        self.memory_budget = memory_budget
        self._calls: list[Call] = []
        self._seen = 0  # calls since the last hypergradient
        self.stride = 0  # steps between two stored states; 0: not chosen yet

    def bind(self, problem: Problem, knobs: Any, every: int) -> None:
        """Takes what it works on."""
        super().bind(problem, knobs, every)
        if self.window is not None and self.window > every:
            raise ValueError(
                f"window must be at most every={every}, because hyperparameters are the same in all of it; "
                f"got {self.window}"
            )

    def observe(self, call: Call) -> None:
        """Keeps a step, and the state before it where one is to be stored."""
        length = self.window or self.every
        self._seen += 1
        if self._seen <= self.every - length:
            return
        assert call.state is not None
        if not self.stride:
            self.stride = choose_stride(length, call.state.nbytes(), self.memory_budget)
        stored = call.state.clone() if len(self._calls) % self.stride == 0 else None
        self._calls.append(Call(call.loss_fn, call.batch, call.rng, call.options, stored, scale=call.scale))

    def hypergradient(self, call: Call, validate: Validate) -> dict[str, Tensor]:
        """The way back over the window."""
        assert call.state is not None and call.gradient is not None
        problem, dynamics = self.problem, self.problem.dynamics
        for kept in self._calls:  # after a resume the function is that of the present call
            kept.loss_fn = kept.loss_fn or call.loss_fn
        value = validate(dynamics.step(call.state, call.gradient.params, call.options))
        covector = gradient_covector(dynamics.zeros(call.state), value.params)
        total = problem.in_space(value.tensors)
        with problem.untouched():
            for start in reversed(range(0, len(self._calls), self.stride)):
                segment = self._calls[start : start + self.stride]
                for step, state in zip(reversed(segment), reversed(self._states(segment)), strict=True):
                    with problem.replay(step, state, graph=True) as gradient:
                        covector = pull_back(problem, state, gradient, step, covector, total)
        self.reset()
        return total

    def reset(self) -> None:
        """Begins a window."""
        self._calls = []
        self._seen = 0

    def mark(self) -> Any:
        """The window so far."""
        return list(self._calls), self._seen

    def restore(self, mark: Any) -> None:
        """Goes back to a mark."""
        self._calls, self._seen = list(mark[0]), mark[1]

    def state_dict(self) -> dict[str, Any]:
        """The steps of the window so far, with their batches."""
        calls = [
            {
                "batch": call.batch,
                "rng": call.rng,
                "numbers": call.options.numbers,
                "flags": call.options.flags,
                "factors": call.options.factors,
                "scale": call.scale,
                "slots": call.state and call.state.slots,
                "steps": call.state and call.state.steps,
            }
            for call in self._calls
        ]
        return {"calls": calls, "seen": self._seen, "stride": self.stride}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the window back."""
        devices = [p.device for p in self.problem.dynamics.params]
        self._seen, self.stride = state["seen"], state["stride"]
        self._calls = []
        for kept in state["calls"]:
            slots = kept["slots"] and [
                {k: v.to(d, copy=True) for k, v in slot.items()} for slot, d in zip(kept["slots"], devices, strict=True)
            ]
            stored = None if slots is None else State(slots, list(kept["steps"]))
            options = Options(kept["numbers"], kept["flags"], kept["factors"])
            batch, rng, scale = tuple(kept["batch"]), kept["rng"], kept["scale"]
            self._calls.append(Call(None, batch, rng, options, stored, scale=scale))

    def _states(self, segment: list[Call]) -> list[State]:
        """The state before each step of a segment, from the stored one on."""
        state = segment[0].state
        assert state is not None
        states = [state]
        for step in segment[:-1]:
            with self.problem.replay(step, state, graph=False) as gradient:
                state = self.problem.dynamics.step(state, gradient.params, step.options)
            states.append(state)
        return states


def choose_stride(steps: int, nbytes: int, budget: int | str | None) -> int:
    """Steps between two stored states: 1 if all fit, else the fewest replays that the budget allows.

    With stride c there are ceil(K / c) stored states, and c - 1 more while a segment is made again.
    """

    def states(stride: int) -> int:
        return math.ceil(steps / stride) + stride - 1

    if budget is None:
        return 1
    best = min(range(1, steps + 1), key=states)
    if budget == "sqrt":
        return best
    assert isinstance(budget, int)
    for stride in range(1, best + 1):
        if states(stride) * nbytes <= budget:
            return stride
    raise ValueError(
        f"memory_budget must be at least {states(best) * nbytes} bytes for a window of {steps} steps with states of "
        f"{nbytes} bytes, got {budget}; raise it, or shorten the window"
    )


def gradient_covector(zeros: Slots, grads: Grads) -> Slots:
    """A covector on the state that is a gradient on the weights, and zero on the optimizer's states."""
    return [
        slot if grad is None else {**slot, THETA: grad.detach().to(slot[THETA].dtype)}
        for slot, grad in zip(zeros, grads, strict=True)
    ]


def pull_back(
    problem: Problem,
    state: State,
    gradient: Gradient,
    call: Call,
    covector: Slots,
    total: dict[str, Tensor],
    *,
    last: bool = False,
    radius: float | None = None,
) -> Slots:
    """A covector before a step; adds to `total` what the step says of each knob.

    Args:
        problem, state, gradient, call: of the step; its gradient has a graph, unless there is a `radius`.
        covector: on the state after the step.
        total: by knob, in the space where each is learned.
        last: nothing comes before, so that the Hessian's product is not needed, and the covector stays as it is.
        radius: second derivatives are central differences over this distance; None: exact.
    """
    options_only = last and not problem.tensor_knobs
    pulled = problem.dynamics.pull(state, gradient.params, call.options, covector, options_only=options_only)
    for name, part in pulled.knobs.items():
        total[name] = total[name] + part
    if options_only:
        return covector
    weights = pulled.grads if gradient.clip is None else gradient.clip.derivative(pulled.grads)
    hessian, mixed = problem.second(call, gradient, weights, params=not last, radius=radius)
    for name, part in mixed.items():
        total[name] = total[name] + part
    if last:
        return covector
    with torch.no_grad():
        return [
            slot if more is None else {**slot, THETA: slot[THETA] + more.to(slot[THETA].dtype)}
            for slot, more in zip(pulled.slots, hessian, strict=True)
        ]
