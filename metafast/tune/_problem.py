"""Losses and their gradients at any weights, without a trace left in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metafast.runs import rng_state, set_rng_state
from metafast.tune._dynamics import THETA, Dynamics, Grads, Options, State
from metafast.tune._knobs import Knob
from metafast.tune._parallel import Parallel


@dataclass
class Gradient:
    """A loss, and its derivatives; None where there is none.

    `params` is what the optimizer gets of each parameter, `tensors` belongs to the tuned tensors: of the unscaled loss,
    averaged over processes, `params` clipped too. `sources` are the derivatives as they came, of this process's scaled
    loss, with a graph where one was asked for: parameters first, then tensors.
    """

    loss: Tensor
    params: list[Tensor | None]
    tensors: list[Tensor | None]
    sources: list[Tensor | None]
    scale: float = 1.0
    clip: Clip | None = None


@dataclass
class Clip:
    """Clipping by the global norm where it is in effect: g becomes c g / (norm + 1e-6), as in `clip_grad_norm_`."""

    grads: Grads  # before it
    norm: Tensor
    limit: float

    def clipped(self) -> list[Tensor | None]:
        """The gradients after it."""
        factor = self.limit / (self.norm + 1e-6)
        return [None if g is None else g.detach() * factor.to(g) for g in self.grads]

    def derivative(self, given: Grads) -> list[Tensor | None]:
        """The Jacobian, which is symmetric, times a tangent or a covector."""
        factor = self.limit / (self.norm + 1e-6)
        along = torch.zeros_like(self.norm)
        for grad, tangent in zip(self.grads, given, strict=True):
            if grad is not None and tangent is not None:
                along += (grad.detach().to(along) * tangent.to(along)).sum()
        along = along / (self.norm * (self.norm + 1e-6))
        found: list[Tensor | None] = []
        for grad, tangent in zip(self.grads, given, strict=True):
            if grad is not None:
                moved = -along.to(grad) * grad.detach()
                tangent = factor.to(grad) * (moved if tangent is None else moved + tangent)
            found.append(tangent)
        return found


@dataclass
class Call:
    """One training step before the optimizer has moved: all that is needed to make it again."""

    loss_fn: Callable[..., Any] | None
    batch: tuple[Any, ...]
    rng: dict[str, Any]
    options: Options
    state: State | None
    gradient: Gradient | None = None
    scale: float = 1.0  # of the loss, against underflow in half precision


class Problem:
    """A model, its training as a map, and the tensors that are tuned."""

    def __init__(
        self, parallel: Parallel, dynamics: Dynamics, knobs: Sequence[Knob], max_grad_norm: float | None = None
    ) -> None:
        self.parallel = parallel
        self.model = parallel.model
        self.dynamics = dynamics
        self.max_grad_norm = max_grad_norm
        self.knobs = list(knobs)
        self.tensor_knobs = [knob for knob in knobs if knob.tensor is not None]
        self.tensors = [knob.tensor for knob in knobs if knob.tensor is not None]

    def gradient(self, loss: Any, *, graph: bool, scale: float = 1.0) -> Gradient:
        """The derivatives of a training loss that has just been computed; with a graph of their own if asked for."""
        return self._clipped(self._averaged(self._derivatives(loss, graph, scale, "the training loss")))

    def validation(self, losses: Iterable[Any], scale: float) -> Gradient:
        """The mean of validation losses, over processes too, and its derivatives; each loss is computed in its turn."""
        found = [self._derivatives(loss, False, scale, "the validation loss") for loss in losses]
        result = self._averaged(mean(found))
        (value,) = self.parallel.mean([result.loss], [result.loss])
        assert value is not None
        result.loss = value
        return result

    @torch.enable_grad()
    def _derivatives(self, loss: Any, graph: bool, scale: float, what: str) -> Gradient:
        """Of the scaled loss of this process."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"{what} must be a tensor of one element, got {came}; loss_fn has to return it")
        loss = loss.reshape(())
        known = [*self.dynamics.params, *self.tensors]
        inputs = [x for x in known if x.requires_grad]
        found: dict[int, Tensor | None] = {}
        if loss.requires_grad:
            grads = torch.autograd.grad(
                loss if scale == 1 else loss * scale, inputs, create_graph=graph, allow_unused=True
            )
            found = {id(x): g for x, g in zip(inputs, grads, strict=True)}
        count = len(self.dynamics.params)
        sources = [found.get(id(x)) for x in known]
        if all(g is None for g in sources[:count]):
            raise ValueError(
                f"{what} does not depend on any parameter of the optimizer, so nothing can be learned from it; "
                "compute it from the model inside loss_fn, without detach(), .item() or no_grad()"
            )
        for position, grad in enumerate(sources[:count]):
            if grad is not None and (grad.layout is not torch.strided or grad.is_complex()):
                raise TypeError(
                    f"the gradient of parameter {position} is {grad.layout} of {grad.dtype}; "
                    "dense real gradients are accepted: use sparse=False in the embedding"
                )
        return Gradient(loss.detach(), sources[:count], sources[count:], sources, scale)

    def _averaged(self, gradient: Gradient) -> Gradient:
        count, known = len(gradient.params), [*self.dynamics.params, *self.tensors]
        plain = self._reduced([*gradient.params, *gradient.tensors], known, gradient.scale)
        return replace(gradient, params=plain[:count], tensors=plain[count:])

    def given(self) -> Gradient:
        """The gradients that somebody else's backward pass has left in `.grad`; those are reduced and unscaled."""
        params = [p.grad for p in self.dynamics.params]
        if all(g is None for g in params):
            raise ValueError("no parameter of the optimizer has a gradient; call loss.backward() first")
        nothing: list[Tensor | None] = [None] * (len(params) + len(self.tensors))
        return self._clipped(Gradient(torch.zeros(()), params, [t.grad for t in self.tensors], nothing))

    @torch.no_grad()
    def _clipped(self, gradient: Gradient) -> Gradient:
        if self.max_grad_norm is not None:
            there = [g.detach() for g in gradient.params if g is not None]
            clip = Clip(gradient.params, torch.nn.utils.get_total_norm(there), self.max_grad_norm)
            if clip.norm + 1e-6 > clip.limit:
                gradient.clip, gradient.params = clip, clip.clipped()
        return gradient

    def _reduced(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor], scale: float) -> list[Tensor | None]:
        """Averaged over processes, of the loss without its scale."""
        found = self.parallel.mean(tensors, like)
        return found if scale == 1 else [None if g is None else g.detach() / scale for g in found]

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
            with self.parallel.local():
                loss = call.loss_fn(*call.batch)
            yield self.gradient(loss, graph=graph, scale=call.scale)

    def second(
        self,
        call: Call,
        gradient: Gradient,
        weights: Sequence[Tensor | None],
        *,
        params: bool = True,
        radius: float | None = None,
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Σ weights · gradient, differentiated: Hessian product, and mixed products in each tensor's space.

        Args:
            call, gradient: of a step; the gradient has a graph, unless there is a `radius`.
            weights: a vector on the parameters.
            params: whether the Hessian product is wanted.
            radius: None: exact. Else the difference of two gradients of the call, this far on either side.
        """
        if radius is None:
            return self._second_exact(gradient, weights, params)
        return self._second_difference(call, weights, radius)

    def _second_exact(
        self, gradient: Gradient, weights: Sequence[Tensor | None], params: bool
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        outputs, given = [], []
        for grad, weight in zip(gradient.sources, weights, strict=False):  # of the parameters
            if grad is not None and weight is not None and grad.requires_grad:
                outputs.append(grad)
                given.append(weight.to(grad.dtype))
        found = self.differentiated(
            gradient, outputs, given, [*(self.dynamics.params if params else ()), *self.tensors]
        )
        count = len(self.dynamics.params)
        hessian: list[Tensor | None] = found[:count] if params else [None] * count
        return hessian, self.in_space(found[len(found) - len(self.tensors) :])

    def _second_difference(
        self, call: Call, weights: Sequence[Tensor | None], radius: float
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        assert call.state is not None
        norm = sum(float(w.double().square().sum()) for w in weights if w is not None) ** 0.5
        hessian: list[Tensor | None] = [None] * len(weights)
        mixed = self.in_space([None] * len(self.tensors))
        if norm == 0:
            return hessian, mixed
        length = radius / norm
        with self.untouched():
            for sign in (1.0, -1.0):
                with self.replay(call, _moved(call.state, weights, sign * length), graph=False) as gradient:
                    tensors = self.in_space(gradient.tensors)
                for name, part in tensors.items():
                    mixed[name] = mixed[name] + part * (sign / (2 * length))
                for i, grad in enumerate(gradient.params if gradient.clip is None else gradient.clip.grads):
                    if grad is not None:
                        part = grad.detach() * (sign / (2 * length))
                        before = hessian[i]
                        hessian[i] = part if before is None else before + part
        return hessian, mixed

    def differentiated(
        self, gradient: Gradient, outputs: list[Tensor], given: list[Tensor], by: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Σ given · outputs, which are among the gradient's sources, differentiated by some tensors."""
        wanted = [x for x in by if x.requires_grad]
        found: dict[int, Tensor | None] = {}
        if outputs and wanted:
            grads = torch.autograd.grad(outputs, wanted, given, retain_graph=True, allow_unused=True)
            found = {id(x): g for x, g in zip(wanted, grads, strict=True)}
        return self._reduced([found.get(id(x)) for x in by], by, gradient.scale)

    def in_space(self, tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Derivatives with respect to tuned tensors, in the space where each is learned; 0 for options."""
        by_name = {knob.name: torch.zeros_like(knob.raw) for knob in self.knobs}
        for knob, grad in zip(self.tensor_knobs, tensors, strict=True):
            if grad is not None:
                by_name[knob.name] = grad.detach() * knob.slope()
        return by_name


@torch.no_grad()
def _moved(state: State, direction: Sequence[Tensor | None], length: float) -> State:
    slots = [
        slot if d is None else {**slot, THETA: slot[THETA] + length * d}
        for slot, d in zip(state.slots, direction, strict=True)
    ]
    return State(slots, state.steps)


def mean(gradients: Sequence[Gradient]) -> Gradient:
    """The gradient of the mean of some losses."""
    count = len(gradients)
    if count == 1:
        return gradients[0]

    def average(rows: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
        columns = ([g for g in column if g is not None] for column in zip(*rows, strict=True))
        return [torch.stack(column).sum(0) / count if column else None for column in columns]

    return Gradient(
        torch.stack([g.loss for g in gradients]).mean(),
        average([g.params for g in gradients]),
        average([g.tensors for g in gradients]),
        [],
        gradients[0].scale,
    )
