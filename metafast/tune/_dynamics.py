"""The training as a map from one state to the next, and the products with its derivatives that the methods need.

The state of a parameter is its weights and what the optimizer keeps of it. One step maps states, gradients and
hyperparameters to new states, elementwise, by the rules of `_updates`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metafast.tune._knobs import Knob, read_option
from metafast.tune._updates import rule_of

THETA = "theta"
Slots = list[dict[str, Tensor]]  # for each parameter, tensors of its shape: "theta", and the rule's states
Grads = Sequence[Tensor | None]


@dataclass
class State:
    """Weights and optimizer states of all parameters, and the steps that each has had."""

    slots: Slots
    steps: list[int]

    def clone(self) -> State:
        """A copy with memory of its own."""
        return State([{k: v.clone() for k, v in slot.items()} for slot in self.slots], list(self.steps))

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for slot in self.slots for tensor in slot.values())


@dataclass
class Options:
    """What the parameter groups say at one step: numbers, and the switches of the formula."""

    numbers: list[dict[str, float]]
    flags: list[dict[str, bool]]
    factors: list[float]  # of the tuned learning rate, by a scheduler


@dataclass
class Pulled:
    """A covector on the state after a step, pulled back to what the step was made of."""

    slots: Slots
    grads: list[Tensor | None]
    knobs: dict[str, Tensor] = field(default_factory=dict)  # in the space where each knob is learned


@dataclass
class _Block:
    """Parameters that one call of the rule takes, as flat vectors."""

    members: list[int]
    group: int
    step: int
    names: list[str]

    def flat(self, slots: Slots) -> dict[str, Tensor]:
        return {name: _join([slots[i][name] for i in self.members]) for name in self.names}

    def split(self, flat: Tensor, like: Slots) -> list[Tensor]:
        shapes = [like[i][THETA].shape for i in self.members]
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class Dynamics:
    """The optimizer of a tuner, seen as such a map."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, groups: Sequence[dict[str, Any]], knobs: Sequence[Knob]
    ) -> None:
        self.optimizer = optimizer
        self.rule = rule_of(optimizer)
        self.knobs = [knob for knob in knobs if knob.tensor is None]
        self.params: list[Tensor] = []
        self.group_of: list[int] = []
        for index, group in enumerate(groups):
            for param in group["params"]:
                if param.requires_grad:
                    self.params.append(param)
                    self.group_of.append(index)

    # ---- reading

    def options(self) -> Options:
        """The options of the parameter groups now."""
        groups = self.optimizer.param_groups
        return Options(
            [{name: read_option(group, name) for name in self.rule.options} for group in groups],
            [self.rule.flags(group) for group in groups],
            [self._factor(index, group) for index, group in enumerate(groups)],
        )

    def state(self) -> State:
        """The state now; tensors are those of the model and the optimizer where these have the right dtype."""
        slots, steps = [], []
        for param, index in zip(self.params, self.group_of, strict=True):
            kept = self.optimizer.state.get(param, {})
            theta = param.detach()
            dtype = compute_dtype(theta.dtype)
            slot = {THETA: theta.to(dtype)}
            for name in self.rule.state_names(self.optimizer.param_groups[index]):
                value = kept.get(name)
                slot[name] = torch.zeros_like(slot[THETA]) if value is None else value.detach().to(dtype)
            made = "step" in kept or kept.get("momentum_buffer") is not None
            slots.append(slot)
            steps.append(int(kept.get("step", 1)) if made else 0)
        return State(slots, steps)

    def zeros(self, state: State) -> Slots:
        """A tangent or a covector that is zero everywhere."""
        return [{name: torch.zeros_like(value) for name, value in slot.items()} for slot in state.slots]

    # ---- the map, and its derivatives

    @torch.no_grad()
    def step(self, state: State, grads: Grads, options: Options) -> State:
        """The state after one step; parameters without a gradient stay."""
        slots, steps = list(state.slots), list(state.steps)
        for block in self._blocks(state, grads):
            hyper = self._hyper(block.group, options, {knob.name: knob.raw for knob in self.knobs})
            new = self._update(block, block.flat(state.slots), _gathered(block, state, grads), hyper, options)
            self._scatter(block, new, state, slots)
            for i in block.members:
                steps[i] += 1
        return State(slots, steps)

    @torch.no_grad()
    def push(
        self,
        state: State,
        grads: Grads,
        options: Options,
        tangent: Slots,
        grad_tangent: Grads,
        knob: Knob | None,
        unit: int,
    ) -> Slots:
        """The tangent of the state after a step, where one value of a knob moves at unit speed (None: no knob)."""
        _load_forward_mode()
        out = list(tangent)
        for block in self._blocks(state, grads):
            with forward_ad.dual_level():
                raws = {}
                for other in self.knobs:
                    raws[other.name] = other.raw
                    if other is knob:
                        speed = torch.zeros_like(other.raw)
                        speed[unit] = 1.0
                        raws[other.name] = forward_ad.make_dual(other.raw, speed)
                primal, moving = block.flat(state.slots), block.flat(tangent)
                duals = {name: forward_ad.make_dual(primal[name], moving[name]) for name in primal}
                grad = forward_ad.make_dual(_gathered(block, state, grads), _gathered(block, state, grad_tangent))
                new = self._update(block, duals, grad, self._hyper(block.group, options, raws), options)
                moved = {}
                for name, value in new.items():
                    found = forward_ad.unpack_dual(value).tangent
                    moved[name] = torch.zeros_like(value) if found is None else found
                self._scatter(block, moved, state, out)
        return out

    @torch.enable_grad()
    def pull(
        self, state: State, grads: Grads, options: Options, covector: Slots, *, options_only: bool = False
    ) -> Pulled:
        """What a covector on the state after a step says of knobs, and of state and gradients before it."""
        slots: Slots = [dict(slot) for slot in covector]
        grad_out: list[Tensor | None] = [None] * len(slots)
        raws = {knob.name: knob.raw.detach().clone().requires_grad_() for knob in self.knobs}
        totals = {knob.name: torch.zeros_like(knob.raw) for knob in self.knobs}
        for block in self._blocks(state, grads):
            start, grad = block.flat(state.slots), _gathered(block, state, grads)
            inputs = list(raws.values())
            if not options_only:
                start = {name: value.detach().requires_grad_() for name, value in start.items()}
                grad = grad.detach().requires_grad_()
                inputs += [*start.values(), grad]
            new = self._update(block, start, grad, self._hyper(block.group, options, raws), options)
            given = block.flat(covector)
            moved = [name for name in block.names if new[name].requires_grad]
            if not moved:
                continue
            found = torch.autograd.grad(
                [new[name] for name in moved], inputs, [given[name] for name in moved], allow_unused=True
            )
            back = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
            for name, part in zip(raws, back, strict=False):
                totals[name] += part
            if not options_only:
                self._scatter(block, dict(zip(start, back[len(raws) : -1], strict=True)), state, slots)
                for i, part in zip(block.members, block.split(back[-1], state.slots), strict=True):
                    grad_out[i] = part
        return Pulled(slots, grad_out, totals)

    # ---- inside

    def _blocks(self, state: State, grads: Grads) -> Iterator[_Block]:
        """Parameters with a gradient, by group, dtype, device and step."""
        found: dict[Any, _Block] = {}
        for i, (slot, grad) in enumerate(zip(state.slots, grads, strict=True)):
            if grad is None:
                continue
            theta = slot[THETA]
            key = (self.group_of[i], theta.dtype, theta.device, state.steps[i])
            if key not in found:
                found[key] = _Block([], self.group_of[i], state.steps[i], list(slot))
            found[key].members.append(i)
        yield from found.values()

    def _hyper(self, group: int, options: Options, raws: Mapping[str, Tensor]) -> dict[str, Any]:
        hyper: dict[str, Any] = dict(options.numbers[group])
        for knob in self.knobs:
            value = knob.value(raws[knob.name])[knob.units[group]]
            factor = options.factors[group]
            hyper[knob.name] = value if knob.name != "lr" or factor == 1 else value * factor
        return hyper

    def _factor(self, index: int, group: Mapping[str, Any]) -> float:
        for knob in self.knobs:
            if knob.name == "lr" and knob.schedule is not None:
                return read_option(group, "lr") / float(knob.written[knob.units[index]])
        return 1.0

    def _update(
        self, block: _Block, start: dict[str, Tensor], grad: Tensor, hyper: dict[str, Any], options: Options
    ) -> dict[str, Tensor]:
        kept = {name: value for name, value in start.items() if name != THETA}
        theta, new = self.rule.update(start[THETA], grad, kept, hyper, block.step, options.flags[block.group])
        return {THETA: theta, **new}

    @staticmethod
    def _scatter(block: _Block, flat: dict[str, Tensor], like: State, out: Slots) -> None:
        parts = {name: block.split(value, like.slots) for name, value in flat.items()}
        for position, i in enumerate(block.members):
            out[i] = {name: values[position] for name, values in parts.items()}


@functools.cache
def _load_forward_mode() -> None:
    """The first dual tensor makes torch import modules of its own, which warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32."""
    return torch.promote_types(dtype, torch.float32)


def dot(a: Slots, b: Grads) -> Tensor:
    """Σ of the products of weights' tangents and gradients: of each parameter in its dtype, over them in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for slot, grad in zip(a, b, strict=True):
        if grad is not None:
            tangent = slot[THETA].reshape(-1)
            total += torch.dot(tangent, grad.reshape(-1).to(tangent.dtype)).cpu()
    return total


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)


def _gathered(block: _Block, state: State, grads: Grads) -> Tensor:
    parts = []
    for i in block.members:
        theta, grad = state.slots[i][THETA], grads[i]
        parts.append(torch.zeros_like(theta) if grad is None else grad.detach().to(theta.dtype))
    return _join(parts)
