"""Checkpoints in PyTorch's layout, and the arenas that they fill: nothing is lost or rounded on the way."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from ._buckets import Bucket, filled, partition
from ._rates import LearnedRates


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


class Checkpoints(LearnedRates):
    """The saving and loading side of an optimizer."""

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

    def _next_index(self) -> int:
        return 1 + max((b.index for buckets in self._buckets.values() for b in buckets), default=-1)

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
        if slot == 0:
            bucket.first = views
        extra = {name: _unwrap(value) for name, value in old.items() if name not in views}
        self.state[param] = {**extra, **views}

    # ---- users change groups and states by hand

    def _synchronize(self) -> None:
        """Makes the buckets anew where users have pruned or replaced parameters, or reset, moved or set states."""
        if self._in_sync():
            return
        buckets = [bucket for of_group in self._buckets.values() for bucket in of_group]
        arrangement = []
        for group in self.param_groups:
            there = set(map(id, group["params"]))
            arrangement.append([(b.index, [p for p in b.params if id(p) in there]) for b in buckets])
        self._lay_out(arrangement)

    def _in_sync(self) -> bool:
        """Whether groups and states are those that the buckets were made for: a look at one state of each bucket."""
        bucketed = 0
        for index, group in enumerate(self.param_groups):
            params = group["params"]
            members = self._members.setdefault(index, list(params))
            if len(members) != len(params) or not all(map(is_, members, params)):
                return False
            for bucket in self._buckets.get(index, ()):
                bucketed += len(bucket)
                state = self.state.get(bucket.params[0], {})
                if any(state.get(name) is not view for name, view in bucket.first.items()):
                    return False
        return len(self._members) == len(self.param_groups) and len(self.state) >= bucketed

    def _lay_out(self, arrangement: list[list[tuple[int, list[Tensor]]]]) -> None:
        """Makes buckets for all parameters with a state: (number, parameters) as arranged, and others in order."""
        self._buckets, self._bucketed, self._members, self._global_rate = {}, {}, {}, None
        free = 1 + max((number for buckets in arrangement for number, _ in buckets), default=-1)
        for index, group in enumerate(self.param_groups):
            stateful = {id(p): p for p in group["params"] if self.state.get(p)}
            self._members[index] = list(group["params"])
            self._bucketed[index] = set(stateful)
            self._buckets[index] = []
            arranged: list[tuple[int | None, list[Tensor]]] = [
                (number, [p for p in params if stateful.pop(id(p), None) is not None])
                for number, params in arrangement[index]
            ]
            for wanted, params in (*arranged, (None, list(stateful.values()))):
                number = wanted
                for members in partition(params):
                    if number is None:
                        number, free = free, free + 1
                    self._buckets[index].append(self._make_bucket(group, members, number))
                    number = None

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
        self._lay_out(
            [
                [(number, [group["params"][at] for at in positions]) for number, positions in group.pop("_buckets", [])]
                for group in self.param_groups
            ]
        )
        self._steps = max((int(s["step"]) for s in self.state.values() if "step" in s), default=0)

    def __getstate__(self) -> dict[str, Any]:
        self._synchronize()
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
        self._synchronize()
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
