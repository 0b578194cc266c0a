"""The optimizer that all rules share: one op call for each bucket of parameters, and rates that it learns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.hyper_adam import APPLY, ELEMENT, OBSERVE, RULES
from . import _checks
from ._base import ParamsT, explained, on
from ._buckets import Bucket, Call, local, partition
from ._checkpoints import Checkpoints

_ELEMENT_HISTORY = 128  # steps between two records of element rates: their mean is a pass over memory
_INFINITY = float("inf")
_CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds the same


class FusedOptimizer(Checkpoints):
    """Base of `SGD`, `Adam` and `AdamW`: PyTorch's optimizer contract over metafast's multi-tensor ops.

    A subclass names its states (`_state_names`) and ops (`_ops`), and gives a rule's options (`_options`).
    """

    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf, nothing is unscaled before

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, max_grad_norm: float | None, seed: int) -> None:
        if max_grad_norm is not None:
            _checks.number("max_grad_norm", max_grad_norm, lambda x: x > 0, "above 0")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 31:
            raise ValueError(f"seed must be an integer in [0, 2**31), got {seed!r}")
        self._reset(max_grad_norm, seed)
        super().__init__(params, defaults)

    # ---- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own; the rest comes from the optimizer's defaults."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        if "params" not in param_group:
            raise TypeError(f"a parameter group must have 'params', got only {', '.join(map(repr, param_group))}")
        _checks.keys(param_group, self.defaults)
        if not isinstance(param_group["params"], (Tensor, set)):
            param_group["params"] = list(param_group["params"])  # a generator can be read only once
        for index, param in enumerate(_tensors(param_group["params"])):
            _checks.parameter(index, param)
        merged = {**self.defaults, **{key: value for key, value in param_group.items() if key != "params"}}
        if merged["hyper_lr"] is None:
            merged["hyper_lr"] = param_group["hyper_lr"] = self._default_hyper_lr(merged)
        self._check_group(merged)
        if merged["backend"] in ("cpu", "cuda", "triton"):
            for device in {local(p).device.type for p in _tensors(param_group["params"])}:
                ops.resolve(self._ops[0], device, merged["backend"])
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["hypergrad"] is not None:
            group["_base_lr"] = float(group["lr"])

    # ---- the step

    @torch.compiler.disable  # one fused kernel: nothing to compile, and a changed lr never recompiles anything
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step.

        Args:
            closure: reevaluates the model and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse or complex.
            ValueError: the learning rate is not a finite number, or a gradient has another shape or device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            self._step()
        return loss

    def _step(self) -> None:
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and bool(found_inf):
            return  # on an accelerator the kernels look, to avoid a synchronization
        self._synchronize()
        fresh = self._checked()
        calls = [
            (group, Call(bucket, grads))
            for index, group in enumerate(self.param_groups)
            for bucket, grads in self._ready(index, group, fresh[index])
        ]
        if len(calls) > 1:  # an op checks before it writes, but not before the op before it has written
            for _, call in calls:
                call.check()
        clip = self._clip(calls, grad_scale) if self.max_grad_norm is not None else None
        starting = [(group, call) for group, call in calls if call.bucket.starting]
        if starting and (found_inf is None or not bool(found_inf)):
            self._start_safely(starting, grad_scale, clip)
        exact = [(g, c) for g, c in calls if g["hyper_exact"] and g["hypergrad"] not in (None, "element")]
        for group, call in calls:
            adapted = group["hypergrad"]
            mode = ELEMENT if adapted == "element" else OBSERVE if adapted and group["hyper_exact"] else None
            self._run(group, call, mode, grad_scale, found_inf, clip)
        self._learn(calls, found_inf)
        for group, call in exact:
            mode = APPLY if self._exact_applies_moments else None
            self._run(group, call, mode, grad_scale, found_inf, clip)
        for _, call in calls:
            call.finish()
        self._note_step()

    def _note_step(self) -> None:
        self._steps += 1
        element = any(group["hypergrad"] == "element" for group in self.param_groups)
        if self._history.wants(self._steps, _ELEMENT_HISTORY if element else 1):
            self._history.add(self._steps, self._rates())

    def _stepped_outside(self) -> None:
        """Takes note of a step that `metafast.tune` has made in the arenas, without statistics."""
        for buckets in self._buckets.values():
            for bucket in buckets:
                bucket.stats.fill_(float("nan"))
        self._note_step()

    def _checked(self) -> list[list[Tensor]]:
        """The parameters of each group whose first gradient this is; raises before anything has changed."""
        fresh: list[list[Tensor]] = []
        for index, group in enumerate(self.param_groups):
            lr = group["lr"]
            if type(lr) is not float or not 0.0 <= lr < _INFINITY:
                _checks.learning_rate(lr, adapted=False)
            if group["hypergrad"] is not None and "_base_lr" not in group:
                _checks.granularity(None, group)
            for bucket in self._buckets.get(index, ()):
                _checks.granularity(bucket.hypergrad, group)
            known = self._bucketed.setdefault(index, set())
            new: list[Tensor] = []
            if len(known) < len(group["params"]):
                for position, param in enumerate(group["params"]):
                    if id(param) not in known and param.grad is not None:
                        _checks.gradient(position, param, param.grad)
                        new.append(param)
            fresh.append(new)
        return fresh

    def _ready(self, index: int, group: dict[str, Any], fresh: list[Tensor]) -> list[tuple[Bucket, list[Any]]]:
        """The buckets of a group that have gradients; `fresh` parameters get one."""
        buckets = self._buckets.setdefault(index, [])
        names = self._state_names(group).keys()
        if any(bucket.moved() or not names <= bucket.states.keys() for bucket in buckets):
            self._buckets[index] = buckets = self._rebuilt(group, buckets)
        ready = []
        for bucket in buckets:
            grads = [p.grad for p in bucket.params]
            if any(grad is not None for grad in grads):
                ready.append((bucket, grads))
        for members in partition(fresh):
            bucket = self._make_bucket(group, members, self._next_index())
            buckets.append(bucket)
            self._bucketed[index].update(map(id, members))
            ready.append((bucket, [p.grad for p in members]))
        return ready

    def _rebuilt(self, group: dict[str, Any], buckets: list[Bucket]) -> list[Bucket]:
        """New arenas where a parameter's data has another memory format, or an option asks for another state."""
        rebuilt = []
        names = self._state_names(group).keys()
        for bucket in buckets:
            if not bucket.moved() and names <= bucket.states.keys():
                rebuilt.append(bucket)
                continue
            for position, members in enumerate(partition(bucket.params)):
                rebuilt.append(
                    self._make_bucket(group, members, bucket.index if position == 0 else self._next_index() + position)
                )
        return rebuilt

    def _run(
        self,
        group: dict[str, Any],
        call: Call,
        mode: int | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        clip: Tensor | None,
    ) -> None:
        """One pass over a bucket."""
        bucket, layout = call.bucket, call.layout
        lr, lr_scale = self._effective_rate(group, bucket)
        seed = (self.seed << 24) + bucket.index if group["stochastic_rounding"] else -1
        hyper: tuple[Any, ...] = ()
        if mode is not None:
            rule = RULES.index(group["hyper_rule"])
            rate = bucket.states.get("rate")
            hyper = (rate, mode, rule, float(group["hyper_lr"]), *map(float, group["lr_bounds"]))
        kernel = self._kernel(self._ops[mode is not None], bucket, group["backend"])

        def run() -> None:
            kernel(
                call.params,
                call.grads,
                *self._states(bucket),
                bucket.master,
                bucket.step,
                bucket.stats,
                layout.partials,
                layout.items,
                layout.chunks,
                lr,
                on(grad_scale, bucket.device),
                on(found_inf, bucket.device),
                on(clip, bucket.device),
                *hyper,
                lr_scale,
                *self._options(group),
                group["maximize"],
                seed,
            )

        explained(run, call)

    def _clip(self, calls: list[tuple[dict[str, Any], Call]], grad_scale: Tensor | None) -> Tensor | None:
        """min(1, max_grad_norm / (norm of all gradients + 1e-6)), on the first device."""
        sums = [self._squares(group, call, "grads") for group, call in calls]
        if not sums:
            return None
        every = torch.cat([s.to(sums[0].device) for s in sums])
        norm = every.sort().values.sum().sqrt()  # sorted: the order of the tensors cannot matter
        if grad_scale is not None:
            norm = norm / grad_scale.to(norm.device)
        assert self.max_grad_norm is not None
        self.last_grad_norm = norm.float()
        return (self.max_grad_norm / (norm + _CLIP_EPS)).clamp(max=1.0).float()


def _tensors(params: Any) -> list[Tensor]:
    """The tensors of a group's `params`, which may be one tensor, tensors, or (name, tensor) pairs."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, set):
        raise TypeError("params must have an order; a set has none: pass a list")
    listed = [item[1] if isinstance(item, tuple) else item for item in params]
    return [item for item in listed if isinstance(item, Tensor)]
