"""Losses and their gradients at any weights, without a trace left in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.runs import rng_state, set_rng_state
from metafast.tune._dynamics import THETA, Dynamics, Options, State
from metafast.tune._knobs import Knob


@dataclass
class Gradient:
    """A loss, and its derivatives with respect to the parameters and the tuned tensors; None where there is none."""

    loss: Tensor
    params: list[Tensor | None]
    tensors: list[Tensor | None]


@dataclass
class Call:
    """One training step before the optimizer has moved: all that is needed to make it again."""

    loss_fn: Callable[..., Any] | None
    batch: tuple[Any, ...]
    rng: dict[str, Any]
    options: Options
    state: State | None
    gradient: Gradient | None = None


class Problem:
    """A model, its training as a map, and the tensors that are tuned."""

    def __init__(self, model: nn.Module, dynamics: Dynamics, knobs: Sequence[Knob]) -> None:
        self.model = model
        self.dynamics = dynamics
        self.knobs = list(knobs)
        self.tensor_knobs = [knob for knob in knobs if knob.tensor is not None]
        self.tensors = [knob.tensor for knob in knobs if knob.tensor is not None]

    @torch.enable_grad()
    def gradient(self, loss: Any, *, graph: bool, what: str = "the training loss") -> Gradient:
        """The derivatives of a loss that has just been computed; with a graph of their own if asked for."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"{what} must be a tensor of one element, got {came}; loss_fn has to return it")
        loss = loss.reshape(())
        params = self.dynamics.params
        inputs = [x for x in (*params, *self.tensors) if x.requires_grad]
        found: dict[int, Tensor | None] = {}
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, inputs, create_graph=graph, allow_unused=True)
            found = {id(x): g for x, g in zip(inputs, grads, strict=True)}
        result = Gradient(loss.detach(), [found.get(id(p)) for p in params], [found.get(id(t)) for t in self.tensors])
        if all(g is None for g in result.params):
            raise ValueError(
                f"{what} does not depend on any parameter of the optimizer, so nothing can be learned from it; "
                "compute it from the model inside loss_fn, without detach(), .item() or no_grad()"
            )
        for position, grad in enumerate(result.params):
            if grad is not None and (grad.layout is not torch.strided or grad.is_complex()):
                raise TypeError(
                    f"the gradient of parameter {position} is {grad.layout} of {grad.dtype}; "
                    "dense real gradients are accepted: use sparse=False in the embedding"
                )
        return result

    @contextlib.contextmanager
    def at(self, state: State) -> Iterator[None]:
        """The model with other weights. The memory is exchanged, so that no graph of the present weights breaks."""
        params = self.dynamics.params
        present = [p.data for p in params]
        try:
            for param, slot in zip(params, state.slots, strict=True):
                param.data = slot[THETA].to(param.dtype)
            yield
        finally:
            for param, data in zip(params, present, strict=True):
                param.data = data

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Buffers, training flags and random states are afterwards what they were before."""
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        rng = rng_state()
        try:
            yield
        finally:
            set_rng_state(rng)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):  # a needless write would break graphs that have saved it
                        buffer.copy_(value)

    @contextlib.contextmanager
    def replay(self, call: Call, state: State, *, graph: bool) -> Iterator[Gradient]:
        """The gradient of a call at other weights, with its random numbers; the weights stay for the block."""
        assert call.loss_fn is not None
        with self.at(state), torch.enable_grad():
            set_rng_state(call.rng)
            yield self.gradient(call.loss_fn(*call.batch), graph=graph)

    def second_order(
        self, gradient: Gradient, weights: Sequence[Tensor | None], *, params: bool = True
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Σ weights · gradient, differentiated: Hessian product, and mixed products in each tensor's space."""
        outputs, given = [], []
        for grad, weight in zip(gradient.params, weights, strict=True):
            if grad is not None and weight is not None and grad.requires_grad:
                outputs.append(grad)
                given.append(weight.to(grad.dtype))
        wanted = [x for x in (*(self.dynamics.params if params else ()), *self.tensors) if x.requires_grad]
        found: dict[int, Tensor | None] = {}
        if outputs and wanted:
            grads = torch.autograd.grad(outputs, wanted, given, retain_graph=True, allow_unused=True)
            found = {id(x): g for x, g in zip(wanted, grads, strict=True)}
        return [found.get(id(p)) for p in self.dynamics.params], self.in_space([found.get(id(t)) for t in self.tensors])

    def in_space(self, tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Derivatives with respect to tuned tensors, in the space where each is learned; 0 for options."""
        by_name = {knob.name: torch.zeros_like(knob.raw) for knob in self.knobs}
        for knob, grad in zip(self.tensor_knobs, tensors, strict=True):
            if grad is not None:
                by_name[knob.name] = grad.detach() * knob.slope()
        return by_name


def mean(gradients: Sequence[Gradient]) -> Gradient:
    """The gradient of the mean of some losses."""
    count = len(gradients)

    def average(rows: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
        columns = ([g for g in column if g is not None] for column in zip(*rows, strict=True))
        return [torch.stack(column).sum(0) / count if column else None for column in columns]

    return Gradient(
        torch.stack([g.loss for g in gradients]).mean(),
        average([g.params for g in gradients]),
        average([g.tensors for g in gradients]),
    )
