"""The optimizer's step and the tangents of some hyperparameters in one pass over memory, by the ops `*_tangents`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from metafast import ops
from metafast.ops._bucket import is_dense
from metafast.optim._buckets import filled
from metafast.optim._fused import FusedOptimizer
from metafast.tune._dynamics import THETA, Dynamics, Grads, Options, Slots, State
from metafast.tune._knobs import Knob
from metafast.tune._problem import Call
from metafast.tune._updates import sgd

_DTYPES = (torch.float32, torch.float64)  # the latter by the reference


@dataclass(frozen=True)
class _Kind:
    """What is alike in all parameters of one call of the op."""

    switch: bool  # "nesterov" or "decoupled"
    maximize: bool
    states: tuple[str, ...]
    dtype: torch.dtype


@dataclass
class _Bucket:
    """The parameters of a kind, by their positions in the tuner's list, and the arena of their tangents."""

    kind: _Kind
    members: list[int]
    layout: ops.Layout
    tangents: Tensor  # [values, 1 + states, row]
    subsets: dict[tuple[int, ...], ops.Layout] = field(default_factory=dict)

    def view(self, value: int, stream: int, position: int, like: Tensor) -> Tensor:
        """The tangent of one parameter (stream 0) or state, shaped as the parameter."""
        _, streams, row = self.tangents.shape
        start = (value * streams + stream) * row + int(self.layout.items[position, 1])
        return self.tangents.as_strided(like.shape, like.stride(), start)

    def active(self, positions: Sequence[int]) -> ops.Layout:
        """The layout of a call for some members; kept, because the same ones come again."""
        key = tuple(positions)
        if len(key) == len(self.members):
            return self.layout
        if key not in self.subsets:
            if len(self.subsets) > 64:
                self.subsets.clear()
            self.subsets[key] = self.layout.subset(positions)
        return self.subsets[key]


@dataclass(frozen=True)
class _Moved:
    """What a call needs to move tangents: whether they begin at zero, the gradient's, and the share that is kept."""

    fresh: bool
    gradients: Sequence[Grads]
    decay: float


class FusedStep:
    """Stands in the place of `optimizer.step()`, and moves the tangents of `units`, (knob, unit) each, along.

    Weights and states stay those of the optimizer: the op writes to these very tensors. Tangents are in arenas that
    live on where tangents begin anew.
    """

    def __init__(self, dynamics: Dynamics, units: Sequence[tuple[Knob, int]]) -> None:
        self._dynamics = dynamics
        self._values = len(units)
        is_sgd = dynamics.rule.update is sgd
        self._name, self._switch = ("sgd_tangents", "nesterov") if is_sgd else ("adam_tangents", "decoupled")
        self._kinds: list[_Kind] = []  # of each parameter
        self._buckets: list[_Bucket] = []
        self._views: list[Slots] = []  # of the arenas
        self._kernels: dict[torch.dtype, ops.Kernel] = {}
        self._known: tuple[Any, tuple[Tensor, Tensor]] | None = None
        # Where the values act: (value, group, option, knob, unit).
        self._places = [
            (value, group, dynamics.rule.options.index(knob.name), knob, unit)
            for value, (knob, unit) in enumerate(units)
            for group, own in enumerate(knob.units)
            if own == unit
        ]

    def fits(self, call: Call) -> bool:
        """Whether the op can make this step: all states are there, on the CPU, dense, of their parameter's dtype.

        A first step makes the states, in ways that differ between optimizers, and is left to them.
        """
        assert call.state is not None and call.gradient is not None
        optimizer = self._dynamics.optimizer
        if _watched(optimizer) or any(
            group.get("amsgrad") or group.get("differentiable") or group.get("backend") not in (None, "cpu")
            for group in optimizer.param_groups
        ):
            return False
        counts = isinstance(optimizer, FusedOptimizer)
        parts = zip(self._dynamics.params, call.gradient.params, call.state.slots, strict=True)
        return all(g is None or _plain(p, g, slot, optimizer.state.get(p, {}), counts) for p, g, slot in parts)

    @torch.no_grad()
    def after(self, call: Call) -> State:
        """The state after the step, which is not made."""
        assert call.state is not None and call.gradient is not None
        slots = [
            slot if grad is None else {name: value.clone() for name, value in slot.items()}
            for slot, grad in zip(call.state.slots, call.gradient.params, strict=True)
        ]
        self._run(call, slots, None)
        return State(slots, list(call.state.steps))

    @torch.no_grad()
    def step(self, call: Call, tangents: list[Slots] | None, gradients: Sequence[Grads], decay: float) -> list[Slots]:
        """Makes the step.

        Args:
            call: one that `fits`.
            tangents: of each unit before the step; None: zero.
            gradients: how the gradient moves, for each unit.
            decay: the share of the weights' tangents that is kept.

        Returns:
            The tangents after it, in memory that the next step writes to.
        """
        assert call.state is not None and call.gradient is not None
        self._lay_out(call)
        if tangents is not None and tangents is not self._views:
            for mine, given in zip(self._views, tangents, strict=True):
                for slot, values in zip(mine, given, strict=True):
                    for name, view in slot.items():
                        view.copy_(values[name])
        self._run(call, call.state.slots, _Moved(tangents is None, gradients, decay))
        self._count(call.gradient.params)
        return self._views

    # ---- inside

    def _lay_out(self, call: Call) -> None:
        """Makes the arenas; anew where a user has changed a switch of the formula."""
        assert call.state is not None
        slots, flags = call.state.slots, call.options.flags
        kinds = [
            _Kind(
                flags[group][self._switch],
                flags[group]["maximize"],
                tuple(name for name in slot if name != THETA),
                slot[THETA].dtype,
            )
            for group, slot in zip(self._dynamics.group_of, slots, strict=True)
        ]
        if kinds == self._kinds:
            return
        self._kinds, self._buckets = kinds, []
        views: list[list[dict[str, Tensor]]] = [[{} for _ in kinds] for _ in range(self._values)]
        for kind in dict.fromkeys(kinds):
            members = [i for i, own in enumerate(kinds) if own == kind]
            streams = (THETA, *kind.states)
            layout = ops.make_layout([slots[i][THETA].numel() for i in members])
            arena = filled(self._values * len(streams) * layout.arena_size, 0.0, kind.dtype, torch.device("cpu"))
            bucket = _Bucket(kind, members, layout, arena.view(self._values, len(streams), layout.arena_size))
            self._buckets.append(bucket)
            for value, of_value in enumerate(views):
                for position, i in enumerate(members):
                    of_value[i] = {
                        name: bucket.view(value, stream, position, slots[i][THETA])
                        for stream, name in enumerate(streams)
                    }
        self._views = views

    def _run(self, call: Call, slots: Slots, moved: _Moved | None) -> None:
        """The op on some slots; without `moved`, the step alone."""
        assert call.gradient is not None and call.state is not None
        self._lay_out(call)
        grads, group_of = call.gradient.params, self._dynamics.group_of
        options, seeds = self._tables(call.options)
        for bucket in self._buckets:
            positions = [at for at, i in enumerate(bucket.members) if grads[i] is not None]
            chosen = [bucket.members[at] for at in positions]
            if moved is not None:
                self._rest([i for i in bucket.members if grads[i] is None], moved)
            if not chosen:
                continue
            params, layout = [slots[i][THETA] for i in chosen], bucket.active(positions)
            states: list[list[Tensor]] = [[slots[i][name] for i in chosen] for name in bucket.kind.states]
            groups = [group_of[i] for i in chosen]
            self._kernel(bucket.kind.dtype)(
                params,
                [_laid(grads[i], param) for i, param in zip(chosen, params, strict=True)],
                *(states or [[]]),  # SGD without momentum has no buffers
                bucket.tangents,
                [] if moved is None else _moving(moved.gradients, chosen, params),
                layout.items,
                layout.chunks,
                torch.tensor([call.state.steps[i] + 1.0 for i in chosen], dtype=torch.float64),
                options[groups],
                seeds[:, groups],
                0 if moved is None else self._values,
                1.0 if moved is None else moved.decay,
                moved is not None and moved.fresh,
                bucket.kind.switch,
                bucket.kind.maximize,
            )

    def _kernel(self, dtype: torch.dtype) -> ops.Kernel:
        if dtype not in self._kernels:
            self._kernels[dtype] = ops.resolve(self._name, "cpu", "reference" if dtype is torch.float64 else None)
        return self._kernels[dtype]

    def _rest(self, idle: Sequence[int], moved: _Moved) -> None:
        """Tangents of parameters without a gradient, which stay where they are."""
        for slots in self._views:
            for i in idle:
                if moved.fresh:
                    torch._foreach_zero_(list(slots[i].values()))
                elif moved.decay < 1:
                    slots[i][THETA].mul_(moved.decay)

    def _tables(self, options: Options) -> tuple[Tensor, Tensor]:
        """The options, float64 `[groups, options]`, and their derivatives by the values in the spaces where these are
        learned, `[values, groups, options]`; kept while nothing moves."""
        knobs = {knob.name: knob for _, _, _, knob, _ in self._places}
        key = (options.numbers, options.factors, [knob.raw.tolist() for knob in knobs.values()])
        if self._known is None or self._known[0] != key:
            names = self._dynamics.rule.options
            numbers = torch.tensor([[row[name] for name in names] for row in options.numbers], dtype=torch.float64)
            seeds = torch.zeros(self._values, *numbers.shape, dtype=torch.float64)
            slopes = {name: knob.slope().tolist() for name, knob in knobs.items()}
            for value, group, column, knob, unit in self._places:
                factor = options.factors[group] if knob.name == "lr" else 1.0
                seeds[value, group, column] = slopes[knob.name][unit] * factor
            self._known = (key, (numbers, seeds))
        return self._known[1]

    def _count(self, grads: Grads) -> None:
        """What else belongs to a step of the optimizer."""
        optimizer = self._dynamics.optimizer
        moved = [p for p, g in zip(self._dynamics.params, grads, strict=True) if g is not None]
        steps = [optimizer.state[p]["step"] for p in moved if "step" in optimizer.state.get(p, {})]
        if steps:
            torch._foreach_add_(steps, 1)
        torch.autograd.graph.increment_version(moved)
        if isinstance(optimizer, FusedOptimizer):
            optimizer._stepped_outside()
        if _scheduled(optimizer):
            optimizer._opt_called = True  # type: ignore[attr-defined]


def _scheduled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a scheduler has wrapped `step`, to see that it is called."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def _watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody has to be told of the optimizer's steps."""
    return bool(
        ("step" in vars(optimizer) and not _scheduled(optimizer))
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def _plain(param: Tensor, grad: Tensor, slot: Mapping[str, Tensor], kept: Mapping[str, Any], counts: bool) -> bool:
    """Whether the op takes a parameter; with `counts` its optimizer counts the steps of all."""
    return (
        param.dtype in _DTYPES
        and param.device.type == "cpu"
        and is_dense(param)
        and grad.dtype is param.dtype
        and grad.layout is torch.strided
        and (isinstance(kept.get("step"), Tensor) if counts or "step" in kept else True)
        and all(
            name == THETA
            or (isinstance(kept.get(name), Tensor) and value.dtype is param.dtype and value.stride() == param.stride())
            for name, value in slot.items()
        )
    )


def _laid(grad: Tensor | None, param: Tensor) -> Tensor:
    """A gradient with its parameter's strides."""
    assert grad is not None
    grad = grad.detach()
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


def _moving(gradients: Sequence[Grads], chosen: Sequence[int], params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients' tangents, value after value; none where no gradient moves."""
    if all(grads[i] is None for grads in gradients for i in chosen):
        return []
    return [
        torch.zeros_like(param) if grads[i] is None else _laid(grads[i], param)
        for grads in gradients
        for i, param in zip(chosen, params, strict=True)
    ]
