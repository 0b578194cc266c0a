"""Hyperparameters while they are tuned: their values in the space where they are learned, and where these go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metafast.tune._schedule import Schedule
from metafast.tune._spaces import DEFAULTS, SPACES
from metafast.tune._tune import Tune
from metafast.tune._updates import Rule

_BETAS = {"beta1": 0, "beta2": 1}


class Knob:
    """One hyperparameter: `raw` holds its learned values, `[units]` in float64 for an option, else as the tensor."""

    def __init__(self, name: str, spec: Tune, start: Tensor, labels: list[str]) -> None:
        self.name = name
        self.spec = spec
        self.tensor = spec.what if isinstance(spec.what, Tensor) else None
        self.labels = labels
        self.units: list[int] = []  # of an option: the unit of each parameter group
        self.schedule: Schedule | None = None  # of a learning rate: what multiplies it
        default = DEFAULTS.get(name, ("linear", None, None)) if self.tensor is None else ("linear", None, None)
        self.space = SPACES[spec.space or default[0]]
        bounds = spec.bounds or (default[1:] if default[1] is not None else None)
        _check_start(name, start, self.space, bounds)
        self.raw = self.space.raw(start.detach().clone())
        self.low, self.high = self._raw_bounds(bounds)
        self.written = start.detach().clone()  # the values as the optimizer or the loss has them, to the bit

    @property
    def size(self) -> int:
        """How many values it has."""
        return self.raw.numel()

    def value(self, raw: Tensor | None = None) -> Tensor:
        """The values, as the optimizer or the loss sees them."""
        return self.space.value(self.raw if raw is None else raw)

    def slope(self) -> Tensor:
        """d value / d raw, elementwise."""
        return self.space.slope(self.value())

    @torch.no_grad()
    def clamp(self, before: Tensor) -> None:
        """Holds the values inside their bounds, and within `max_step` of where they were."""
        reach = self.spec.max_step
        self.raw.copy_(torch.minimum(torch.maximum(self.raw, before - reach), before + reach))
        if self.low is not None:
            self.raw.clamp_(self.low, self.high)

    @torch.no_grad()
    def write(self, groups: Sequence[dict[str, Any]], value: Tensor | None = None) -> None:
        """Puts the values where they act; `value`: those of a resumed run instead, to the bit."""
        restored = value is not None
        value = self.value() if value is None else value.to(self.raw)
        self.written = value.clone()
        if self.tensor is not None:
            self.tensor.copy_(value)
            return
        for index, (group, unit) in enumerate(zip(groups, self.units, strict=True)):
            number = float(value[unit])
            if self.schedule is not None:
                self.schedule.rebase(index, group, number, rate=not restored)
            elif self.name in _BETAS:
                betas = list(group["betas"])
                betas[_BETAS[self.name]] = number
                group["betas"] = tuple(betas)
            elif isinstance(group[self.name], Tensor):
                group[self.name].fill_(number)
            else:
                group[self.name] = number

    def check_untouched(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raises where somebody else, such as a scheduler, has changed a value since it was written."""
        if self.tensor is not None:
            if not torch.equal(self.tensor.detach(), self.written):
                raise ValueError(
                    f"the tensor {self.name!r} is tuned and was changed by something else; "
                    "only the tuner may write to it"
                )
            return
        for index, (group, unit) in enumerate(zip(groups, self.units, strict=True)):
            now = read_option(group, self.name) if self.schedule is None else self.schedule.base(group)
            written = float(self.written[unit])
            if abs(now - written) > 1e-6 * max(abs(written), 1e-30):
                raise ValueError(
                    f"{self.name} of parameter group {index} is tuned and was changed by something else from "
                    f"{written:g} to {now:g}; give a scheduler of lr to the tuner (scheduler=...), "
                    f"or leave {self.name!r} out of `tune`"
                )

    def _raw_bounds(self, bounds: Any) -> tuple[float | None, float | None]:
        if bounds is None:
            return None, None
        ends = self.space.raw(torch.tensor(bounds, dtype=torch.float64)).tolist()
        return min(ends), max(ends)


def read_option(group: Mapping[str, Any], name: str) -> float:
    """A group's option as a number; the betas have names of their own."""
    return float(group["betas"][_BETAS[name]] if name in _BETAS else group[name])


def expand(tune: Any, rule: Rule, method: Any) -> list[Tune]:
    """The hyperparameters that `tune` means, one each; strings and tensors become `Tune`."""
    if isinstance(tune, str | Tensor | Tune):
        tune = [tune]
    specs: list[Tune] = []
    for item in tune:
        if not isinstance(item, str | Tensor | Tune):
            raise TypeError(
                f"tune must be a list of names, tensors and Tune(...), got an element of type {type(item).__name__}"
            )
        spec = item if isinstance(item, Tune) else Tune(item)
        if isinstance(spec.what, str):
            names = ("beta1", "beta2") if spec.what == "betas" and "beta1" in rule.options else (spec.what,)
            for name in names:
                if name not in rule.options:
                    accepted = [*rule.options, *(["betas"] if "beta1" in rule.options else [])]
                    raise ValueError(
                        f"tune has {name!r}, which this optimizer cannot be tuned by; it has {', '.join(accepted)}. "
                        "Anything else can be a tensor that the loss depends on"
                    )
                specs.append(replace(spec, what=name, method=spec.method or method))
        else:
            specs.append(replace(spec, method=spec.method or method))
    if not specs:
        raise ValueError("tune must name at least one hyperparameter, got none")
    return specs


def make_knobs(
    specs: Sequence[Tune], rule: Rule, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule | None
) -> tuple[list[Knob], list[dict[str, Any]]]:
    """The knobs, and the optimizer's parameter groups as these need them; neither is in effect yet."""
    names = {id(x): name for name, x in (*model.named_parameters(), *model.named_buffers())}
    split = any(spec.per in ("layer", "tensor") for spec in specs)
    if split and any(len(group["params"]) > 1 for group in optimizer.param_groups):
        if schedule is not None:
            raise ValueError(
                'per="tensor" and per="layer" give every parameter a group of its own, which a scheduler takes only '
                "before it is made; make the optimizer with one group per parameter, then the scheduler"
            )
        if optimizer.state and type(optimizer).__module__.startswith("metafast."):
            raise ValueError(
                'per="tensor" and per="layer" give every parameter a group of its own, which a fused optimizer takes '
                "only before its first step; make the tuner before training"
            )
        groups = [
            {**group, "params": [p], **({"param_names": [n]} if n is not None else {})}
            for group in optimizer.param_groups
            for p, n in zip(group["params"], group.get("param_names", [None] * len(group["params"])), strict=True)
        ]
    else:
        groups = list(optimizer.param_groups)
    origin = [
        index for index, group in enumerate(optimizer.param_groups) for _ in (group["params"] if split else [None])
    ]
    knobs: list[Knob] = []
    for spec in specs:
        if isinstance(spec.what, Tensor):
            knobs.append(_tensor_knob(spec, len(knobs), names, optimizer))
        else:
            knobs.append(_option_knob(spec, spec.what, groups, origin, names, schedule))
    twice = {knob.name for knob in knobs if sum(knob.name == other.name for other in knobs) > 1}
    tensors = [id(knob.tensor) for knob in knobs if knob.tensor is not None]
    if twice or len(set(tensors)) < len(tensors):
        raise ValueError(f"tune has the same hyperparameter twice: {', '.join(sorted(twice)) or 'one tensor'}")
    return knobs, groups


def _option_knob(
    spec: Tune,
    name: str,
    groups: Sequence[dict[str, Any]],
    origin: Sequence[int],
    names: Mapping[int, str],
    schedule: Schedule | None,
) -> Knob:
    scheduled = schedule is not None and name == "lr"

    def label(index: int) -> str:
        if spec.per == "global":
            return "all"
        if spec.per == "group":
            return str(groups[index].get("name", f"group{origin[index]}"))
        params = groups[index]["params"]
        parameter = names.get(id(params[0]), f"parameter{index}") if params else f"group{index}"
        return parameter if spec.per == "tensor" else parameter.rpartition(".")[0] or parameter

    keys = [(origin[i] if spec.per == "group" else None, label(i)) for i in range(len(groups))]
    units = list(dict.fromkeys(keys))
    start: list[float | None] = [None] * len(units)
    for index, group in enumerate(groups):
        unit, value = units.index(keys[index]), Schedule.base(group) if scheduled else read_option(group, name)
        known = start[unit]
        if known is not None and known != value:
            raise ValueError(
                f"tune has one {name} for {keys[index][1]!r}, and the parameter groups have {known:g} and {value:g}; "
                f'use Tune("{name}", per="group")'
            )
        if name == "momentum" and value == 0:
            raise ValueError(
                f"momentum is 0 in parameter group {origin[index]}, where the optimizer keeps no buffer to learn from; "
                "start with momentum=0.1, for example"
            )
        if name == "dampening" and (group["momentum"] == 0 or group["nesterov"]):
            raise ValueError(
                f"dampening has no effect without momentum and must be 0 with nesterov=True (parameter group "
                f"{origin[index]}); leave it out of tune"
            )
        start[unit] = value
    knob = Knob(name, spec, torch.tensor(start, dtype=torch.float64), [key[1] for key in units])
    knob.units = [units.index(key) for key in keys]
    knob.schedule = schedule if scheduled else None
    return knob


def _tensor_knob(spec: Tune, position: int, names: Mapping[int, str], optimizer: torch.optim.Optimizer) -> Knob:
    tensor = spec.what
    assert isinstance(tensor, Tensor)
    name = spec.name or names.get(id(tensor), f"tensor{position}")
    if any(tensor is p for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"the tensor {name!r} to tune is one of the optimizer's parameters; "
            "what the training loss moves cannot be tuned too: leave it out of one of them"
        )
    return Knob(name, spec, tensor.detach(), [str(i) for i in range(tensor.numel())] if tensor.numel() > 1 else ["all"])


def _check_start(name: str, start: Tensor, space: Any, bounds: Any) -> None:
    if not bool((start.isfinite() & space.inside(start)).all()):
        advice = f'; start with a small one, or use Tune({name!r}, space="linear", bounds=(...))'
        raise ValueError(f"{name} starts at {_some(start)}, and its space needs values {space.domain}" + advice)
    if bounds is None:
        return
    ends = torch.tensor(bounds, dtype=torch.float64)
    if not bool(space.inside(ends).all()):
        raise ValueError(f"bounds of {name} must be {space.domain} in its space, got {tuple(bounds)!r}")
    if not bool(((start >= bounds[0]) & (start <= bounds[1])).all()):
        raise ValueError(
            f"{name} starts at {_some(start)}, outside its bounds {tuple(bounds)!r}; widen Tune(bounds=...)"
        )


def _some(values: Tensor) -> str:
    listed = [f"{x:g}" for x in values.flatten()[:4].tolist()]
    return ", ".join(listed) + (", ..." if values.numel() > 4 else "")
