"""The optimizer that all rules share: one op call for each bucket of parameters, and rates that it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.hyper_adam import APPLY, ELEMENT, OBSERVE, RULES
from . import _checks
from ._buckets import Bucket, Call, filled, local, partition
from ._history import RateHistory, flat_rates
from ._safe_start import Start, limit_rates

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

_ELEMENT_HISTORY = 128  # steps between two records of element rates: their mean is a pass over memory
_INFINITY = float("inf")
_CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds the same


class _Loaded:
    """Carries a value through PyTorch's `load_state_dict`, which would cast fp32 states to a parameter's dtype."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _wrap(item) for key, item in value.items()}
    return _Loaded(value)


def _unwrap(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unwrap(item) for key, item in value.items()}
    return value.value if isinstance(value, _Loaded) else value


class FusedOptimizer(torch.optim.Optimizer):
    """Base of `SGD`, `Adam` and `AdamW`: PyTorch's optimizer contract over metafast's multi-tensor ops.

    A subclass names its states (`_state_names`), its ops (`_ops`) and how to call them (`_call`).
    """

    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf, nothing is unscaled before
    _ops: tuple[str, str]  # (one pass, hypergradient passes)
    _exact_applies_moments: bool  # whether OBSERVE has already moved the states
    _hyper_lr: float  # default of the rules that use the cosine
    _additive_hyper_lr: float

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, max_grad_norm: float | None, seed: int) -> None:
        if max_grad_norm is not None:
            _checks.number("max_grad_norm", max_grad_norm, lambda x: x > 0, "above 0")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 31:
            raise ValueError(f"seed must be an integer in [0, 2**31), got {seed!r}")
        self._reset(max_grad_norm, seed)
        super().__init__(params, defaults)

    def _reset(self, max_grad_norm: float | None, seed: int) -> None:
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.last_grad_norm: Tensor | None = None
        self._buckets: dict[int, list[Bucket]] = {}  # by group index
        self._bucketed: dict[int, set[int]] = {}  # ids of the parameters in them
        self._global_rate: Tensor | None = None
        self._history = RateHistory()
        self._steps = 0
        self._kernels: dict[tuple[str, str, str | None], ops.Kernel] = {}

    # ---- what a subclass says

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises for options that this rule does not take."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """The arenas of a group: name and dtype."""
        raise NotImplementedError

    def _states(self, bucket: Bucket) -> tuple[Tensor | None, ...]:
        """The arenas in the order of the op's schema."""
        raise NotImplementedError

    def _options(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The op's options that come after lr_scale."""
        raise NotImplementedError

    def _previous_known(self, group: dict[str, Any]) -> bool:
        """Whether the rule's states tell the previous direction."""
        return True

    def _default_hyper_lr(self, group: dict[str, Any]) -> float:
        """Measured in benchmarks/convergence; for "additive" the papers' own."""
        if group["hyper_rule"] == "additive":
            return self._additive_hyper_lr
        if group["hypergrad"] == "element":
            return 0.02
        if group["hyper_rule"] == "sign" or group["hypergrad"] == "tensor":
            return 0.05
        return self._hyper_lr

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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
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
        self._steps += 1
        element = any(group["hypergrad"] == "element" for group in self.param_groups)
        if self._history.wants(self._steps, _ELEMENT_HISTORY if element else 1):
            self._history.add(self._steps, self._rates())

    def _checked(self) -> list[list[Tensor]]:
        """The parameters of each group whose first gradient this is; raises before anything has changed."""
        fresh: list[list[Tensor]] = []
        for index, group in enumerate(self.param_groups):
            lr = group["lr"]
            if type(lr) is not float or not 0.0 <= lr < _INFINITY:
                _checks.learning_rate(lr, adapted=False)
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

    def _next_index(self) -> int:
        return 1 + max((b.index for buckets in self._buckets.values() for b in buckets), default=-1)

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

    def _kernel(self, name: str, bucket: Bucket, backend: str | None) -> ops.Kernel:
        if bucket.dtype is torch.float64:
            backend = "reference"  # the fused kernels compute in fp32
        key = (name, bucket.device.type, backend)
        if key not in self._kernels:
            self._kernels[key] = ops.resolve(*key)
        return self._kernels[key]

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
        hyper = ()
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
                _on(grad_scale, bucket.device),
                _on(found_inf, bucket.device),
                _on(clip, bucket.device),
                *hyper,
                lr_scale,
                *self._options(group),
                group["maximize"],
                seed,
            )

        _explained(run, call)

    def _effective_rate(self, group: dict[str, Any], bucket: Bucket) -> tuple[Tensor, float]:
        """(rates, factor): learned rates times what a scheduler made of the starting rate, or just the group's lr."""
        lr = group["lr"]
        learned = None if group["hypergrad"] in (None, "element") else bucket.rate
        base = 1.0 if group["hypergrad"] is None else group["_base_lr"]
        if group["hypergrad"] == "global":
            base = self._global_base()
        if not isinstance(lr, Tensor):
            return (bucket.ones if learned is None else learned), float(lr) / base
        factor = lr.to(bucket.device, torch.float64).reshape(1)
        return (factor if learned is None else learned * factor), 1.0 / base

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

    def _squares(self, group: dict[str, Any], call: Call, of: str) -> Tensor:
        """Σ x² (of "grads" or "params") of each slot's tensor, over all shards; 0 for the slots without a gradient."""
        bucket, layout = call.bucket, call.layout
        squares = torch.zeros(len(bucket), dtype=torch.float64, device=bucket.device)
        kernel = self._kernel("grad_squares", bucket, None if group["backend"] == "triton" else group["backend"])
        _explained(lambda: kernel(getattr(call, of), squares, layout.partials, layout.items, layout.chunks), call)
        return _reduced(squares, bucket)

    # ---- learned rates

    def _first_updates(
        self, group: dict[str, Any], call: Call, grad_scale: Tensor | None, clip: Tensor | None
    ) -> Tensor:
        """Squared norms of the directions of a first step, float64 `[slots]`."""
        raise NotImplementedError

    def _start_safely(
        self, starting: list[tuple[dict[str, Any], Call]], grad_scale: Tensor | None, clip: Tensor | None
    ) -> None:
        starts = []
        for group, call in starting:
            ratio = group["_base_lr"] / self._global_base() if group["hypergrad"] == "global" else 1.0
            sizes = self._squares(group, call, "params")
            updates = self._first_updates(group, call, grad_scale, clip)
            starts.append(Start(group, call.bucket, sizes, updates, ratio))
            call.bucket.starting = False
        limit_rates(starts)

    def _learn(self, calls: list[tuple[dict[str, Any], Call]], found_inf: Tensor | None) -> None:
        """Moves the learned rates by the statistics of this step's pass."""
        shared: dict[int, list[tuple[dict[str, Any], Call]]] = {}
        for group, call in calls:
            adapted = group["hypergrad"]
            if adapted == "tensor":
                self._update_rate(call.bucket.rate, [(group, call)], found_inf)
            elif adapted in ("group", "global"):
                shared.setdefault(id(call.bucket.rate), []).append((group, call))
        for members in shared.values():
            self._update_rate(members[0][1].bucket.rate, members, found_inf)

    def _update_rate(
        self, rate: Tensor | None, members: list[tuple[dict[str, Any], Call]], found_inf: Tensor | None
    ) -> None:
        assert rate is not None
        group, first = members[0]
        stats = [_reduced(call.bucket.stats, call.bucket) for _, call in members]
        segments = [_segments(group, call) for group, call in members]
        if group["hypergrad"] == "global" and len({g["_base_lr"] for g, _ in members}) > 1:
            # The step of a group is the shared rate times its ratio: so is its part of the hypergradient.
            for position, (member, _) in enumerate(members):
                ratio = member["_base_lr"] / self._global_base()
                stats[position] = stats[position] * stats[position].new_tensor([1.0, ratio, ratio * ratio, 1.0])
        if len(members) > 1:
            stats = [torch.cat([s.to(rate.device) for s in stats])]
            segments = [torch.cat([s.to(rate.device) for s in segments])]
        kernel = self._kernel("hyper_rate", first.bucket, None)
        kernel(
            rate,
            stats[0],
            segments[0],
            _on(found_inf, rate.device),
            RULES.index(group["hyper_rule"]),
            float(group["hyper_lr"]),
            *map(float, group["lr_bounds"]),
        )

    def _rates(self) -> list[float | Tensor]:
        rates: list[float | Tensor] = []
        seen_global = False
        for index, group in enumerate(self.param_groups):
            buckets = self._buckets.get(index, [])
            adapted = group["hypergrad"]
            if adapted == "global":
                if not seen_global:
                    rates.append(self._global_base() if self._global_rate is None else self._global_rate)
                seen_global = True
            elif adapted is None or not buckets:
                rates.append(group["lr"] if adapted is None else group["_base_lr"])
            elif adapted == "group":
                assert buckets[0].rate is not None
                rates.append(buckets[0].rate)
            else:
                for bucket in buckets:
                    rates += [bucket.rate] if adapted == "tensor" and bucket.rate is not None else _means(group, bucket)
        return rates

    def _global_base(self) -> float:
        """The starting rate of the first group that shares the global rate."""
        return float(next(g["_base_lr"] for g in self.param_groups if g["hypergrad"] == "global"))

    def learned_lr(self) -> list[float]:
        """The learned rates now, before a scheduler's factor.

        Returns:
            One number for `hypergrad="global"`, one per group for `"group"` (and for None: the group's lr), one per
            parameter for `"tensor"`, and each parameter's mean for `"element"`; in the order of first gradients.
            With "element" and sharded parameters every rank has to call it, as for `tensor_stats`.
        """
        return flat_rates(self._rates())

    @property
    def lr_history(self) -> list[tuple[int, list[float]]]:
        """Learned rates over time, `[(step, rates), ...]`: at most 2,048 entries, evenly thinned."""
        return self._history.read()

    def tensor_stats(self) -> Tensor:
        """The sums that the last step computed in its own pass, without a synchronization.

        Returns:
            float64 `[parameters, 4]` on the first parameter's device: columns g·g, g·u, u·u, p·p with the gradient g
            that entered the update, the previous direction u, and the parameter p before the update. Rows are in the
            order of the parameter groups; NaN where a parameter had no step yet, or where u is not known
            (SGD without momentum or with Nesterov momentum, unless a hypergradient keeps u).
        """
        rows = []
        for index, group in enumerate(self.param_groups):
            where = {id(p): (b, slot) for b in self._buckets.get(index, []) for slot, p in enumerate(b.params)}
            reduced = {id(b): _reduced(b.stats, b) for b in self._buckets.get(index, [])}
            for param in group["params"]:
                if id(param) not in where:
                    rows.append(torch.full((4,), float("nan"), dtype=torch.float64, device=local(param).device))
                    continue
                bucket, slot = where[id(param)]
                row = reduced[id(bucket)][slot].clone()
                if not self._previous_known(group):
                    row[1:3] = float("nan")
                rows.append(row)
        device = rows[0].device
        return torch.stack([row.to(device) for row in rows])

    # ---- state

    def _make_bucket(self, group: dict[str, Any], params: list[Tensor], index: int) -> Bucket:
        """Lays out arenas for parameters, taking over what their states already hold."""
        bucket = Bucket(params, index)
        for name, dtype in self._state_names(group).items():
            bucket.arena(name, dtype)
        if group["master_weights"] and bucket.dtype in (torch.bfloat16, torch.float16):
            bucket.master = filled(bucket.layout.arena_size, 0.0, torch.float32, bucket.device)
        self._make_rates(group, bucket)
        for slot, param in enumerate(params):
            self._adopt(group, bucket, slot, param)
        return bucket

    def _make_rates(self, group: dict[str, Any], bucket: Bucket) -> None:
        adapted = group["hypergrad"]
        if adapted is None:
            return
        start = float(group["_base_lr"])

        def rates(count: int) -> Tensor:
            return torch.full((count,), start, dtype=torch.float64, device=bucket.device)

        if adapted == "element":
            bucket.arena("rate", group["rate_dtype"], start)
            bucket.starting = True
            return
        if adapted == "tensor":
            bucket.rate = rates(len(bucket))
            bucket.segments = torch.arange(len(bucket), device=bucket.device)
            bucket.starting = True
            return
        bucket.segments = torch.zeros(len(bucket), dtype=torch.int64, device=bucket.device)
        if adapted == "group":
            position = next(i for i, g in enumerate(self.param_groups) if g is group)
            siblings = self._buckets.get(position, [])
            bucket.rate = siblings[0].rate if siblings else rates(1)
            bucket.starting = siblings[0].starting if siblings else True
            return
        others = [b for buckets in self._buckets.values() for b in buckets if b.rate is self._global_rate]
        if self._global_rate is None:
            self._global_rate = rates(1).fill_(self._global_base())
        bucket.rate = self._global_rate
        bucket.starting = all(other.starting for other in others)

    def _adopt(self, group: dict[str, Any], bucket: Bucket, slot: int, param: Tensor) -> None:
        """Replaces a parameter's state by views of the arenas, with the values that it had."""
        old = self.state.get(param, {})
        bucket.starting = bucket.starting and not old
        views: dict[str, Any] = {"step": bucket.step[slot]}
        for name, arena in bucket.states.items():
            views[name] = bucket.view(arena, slot)
        if bucket.master is not None:
            views["master"] = bucket.view(bucket.master, slot)
            views["master"].copy_(param.detach())
        if bucket.rate is not None:
            views["learned_lr"] = bucket.rate[slot if group["hypergrad"] == "tensor" else 0]
        if old.get("momentum_buffer") is not None and "step" not in old:
            views["step"].fill_(1.0)  # a checkpoint of torch.optim.SGD does not count steps
        for name, view in views.items():
            value = _unwrap(old.get(name))
            if value is None:
                continue
            if not isinstance(value, Tensor):
                view.fill_(float(value))
            elif value.shape != view.shape:
                raise ValueError(
                    f"state {name!r} of a parameter has shape {tuple(value.shape)}, expected {tuple(view.shape)}: "
                    "the checkpoint belongs to another model"
                )
            else:
                view.copy_(value)
        extra = {name: _unwrap(value) for name, value in old.items() if name not in views}
        self.state[param] = {**extra, **views}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this class or of its `torch.optim` namesake, keeping the dtype of every state.

        Raises:
            ValueError: the groups or the shapes of the checkpoint are those of another model.
        """

        def keep_dtypes(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            return {**state, "state": _wrap(state["state"])}

        handle = self.register_load_state_dict_pre_hook(keep_dtypes)
        before = dict(self.__dict__)
        try:
            super().load_state_dict(state_dict)
        except Exception:
            self.__dict__.update(before)  # a refused checkpoint changes nothing
            raise
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults = dict(getattr(self, "defaults", None) or state["defaults"])
        fresh = not hasattr(self, "_buckets")  # unpickled or deep-copied
        self._reset(
            state.pop("max_grad_norm", None) if fresh else self.max_grad_norm,
            state.pop("seed", 0) if fresh else self.seed,
        )
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # PyTorch adds it, and would copy it into new groups
        for group in self.param_groups:
            for name, value in defaults.items():
                group.setdefault(name, value)
            if group["hyper_lr"] is None:
                group["hyper_lr"] = self._default_hyper_lr(group)
            if group["hypergrad"] is not None:
                # A scheduler may have set lr to 0 just now; the rate then is what it multiplies.
                group.setdefault("_base_lr", float(group.get("initial_lr", group["lr"])))
            self._check_group(group)
        for key, values in list(self.state.items()):
            self.state[key] = _unwrap(values)
        for index, group in enumerate(self.param_groups):
            params = group["params"]
            stateful = [p for p in params if self.state.get(p)]
            self._bucketed[index] = set(map(id, stateful))
            self._buckets[index] = []
            for number, positions in group.pop("_buckets", []):
                members = [params[position] for position in positions]
                if len(partition(members)) == 1 and all(self.state.get(p) for p in members):
                    self._buckets[index].append(self._make_bucket(group, members, number))
            done = {id(p) for bucket in self._buckets[index] for p in bucket.params}
            for members in partition(p for p in stateful if id(p) not in done):
                self._buckets[index].append(self._make_bucket(group, members, self._next_index()))
        self._steps = max((int(s["step"]) for s in self.state.values() if "step" in s), default=0)

    def __getstate__(self) -> dict[str, Any]:
        groups = [dict(group) for group in self.param_groups]
        self._arrange(groups)
        return {
            **super().__getstate__(),
            "param_groups": groups,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
        }

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """A checkpoint in the format of PyTorch; its tensors are views of the live states, as there."""
        saved: dict[str, Any] = super().state_dict()
        self._arrange(saved["param_groups"])
        return saved

    def _arrange(self, groups: list[dict[str, Any]]) -> None:
        """Notes the buckets, as (number, positions of parameters), in groups where loading would not find them again.

        They differ where first gradients came at different steps; the bits of stochastic rounding depend on them.
        """
        number, differs, found = 0, False, []
        for index, group in enumerate(self.param_groups):
            position = {id(p): at for at, p in enumerate(group["params"])}
            buckets = self._buckets.get(index, [])
            found.append([(bucket.index, [position[id(p)] for p in bucket.params]) for bucket in buckets])
            for at, members in enumerate(partition(p for p in group["params"] if self.state.get(p))):
                expected = (number, [position[id(p)] for p in members])
                differs = differs or at >= len(found[-1]) or found[-1][at] != expected
                number += 1
        if differs:
            for group, buckets_of_group in zip(groups, found, strict=True):
                group["_buckets"] = buckets_of_group


def _tensors(params: Any) -> list[Tensor]:
    """The tensors of a group's `params`, which may be one tensor, tensors, or (name, tensor) pairs."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, set):
        raise TypeError("params must have an order; a set has none: pass a list")
    listed = [item[1] if isinstance(item, tuple) else item for item in params]
    return [item for item in listed if isinstance(item, Tensor)]


def _explained(run: Callable[[], None], call: Call) -> None:
    """Runs an op, which checks before it writes. Where it refuses, says what is wrong in the user's words, or gives
    gradients that lie differently in memory their parameters' strides and runs it again."""
    try:
        run()
    except (RuntimeError, ValueError, TypeError):
        call.explain()
        if all(p.stride() == g.stride() for p, g in zip(call.params, call.grads, strict=True)):
            raise
        call.match_strides()
        run()


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return tensor if tensor is None or tensor.device == device else tensor.to(device, non_blocking=True)


def _reduced(rows: Tensor, bucket: Bucket) -> Tensor:
    """Sums over the shards of a DTensor; other tensors are whole already."""
    if not bucket.is_sharded:
        return rows
    mesh, placements = bucket.sharding
    rows = rows.clone()
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            torch.distributed.all_reduce(rows, group=mesh.get_group(dim))
    return rows


def _segments(group: dict[str, Any], call: Call) -> Tensor:
    """The rate of each slot, -1 for one without a gradient in this step."""
    segments = call.bucket.segments
    assert segments is not None
    if call.inactive is None:
        return segments
    return torch.where(call.inactive < 0, call.inactive, segments)


def _means(group: dict[str, Any], bucket: Bucket) -> list[float | Tensor]:
    """The mean rate of each parameter, over all shards; an empty one has the starting rate."""
    rows = bucket.layout.items.tolist()
    sums = [bucket.states["rate"][at : at + numel].sum(dtype=torch.float64) for _, at, numel in rows]
    numels = torch.tensor([p.numel() for p in bucket.params], dtype=torch.float64, device=bucket.device)
    means = _reduced(torch.stack(sums), bucket) / numels
    return [torch.where(numels > 0, means, float(group["_base_lr"]))]
