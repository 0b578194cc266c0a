"""Spaces as Ray Tune's domains, and back. Ray is read by its words, so that it need not be there to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metafast._dimensions import Choice, Dimension, FloatRange, IntRange, ray_domain
from metafast.hpo._space import Space
from metafast.hpo._space_optuna import MOST_STEPS


def from_ray(domains: Mapping[str, Any]) -> Space:
    """The space of a `param_space`; `Space.from_ray` calls it."""
    if not isinstance(domains, Mapping):
        raise TypeError(f"a param_space of Ray Tune must be a mapping, got {type(domains).__name__}")
    return Space(_flat(domains, ""))


def to_ray(space: Space) -> dict[str, Any]:
    """The domains of a space; `Space.to_ray` calls it."""
    try:
        from ray import tune
    except ImportError as error:
        raise ImportError("to_ray needs Ray Tune: pip install 'ray[tune]'") from error
    if space.conditions:
        raise ValueError(
            "Ray Tune's domains have no conditions, and this space has "
            f"{[child for c in space.conditions for child in c.children]} under them; use PredictorSearcher, which "
            "honours them, or leave them out"
        )
    return {name: ray_domain(dimension, tune) for name, dimension in space.dimensions.items()}


def _flat(domains: Mapping[str, Any], above: str) -> dict[str, Dimension]:
    found: dict[str, Dimension] = {}
    for key, spec in domains.items():
        name = f"{above}{key}"
        if isinstance(spec, Mapping) and set(spec) != {"grid_search"}:
            found.update(_flat(spec, f"{name}/"))
        else:
            try:
                found[name] = _dimension(spec)
            except (TypeError, ValueError) as error:
                raise type(error)(f"param_space[{name!r}]: {error}") from None
    return found


def _dimension(spec: Any) -> Dimension:
    if isinstance(spec, Mapping):
        return Choice(list(spec["grid_search"]))
    if hasattr(spec, "categories"):
        return Choice(list(spec.categories))
    if callable(spec) or hasattr(spec, "func"):
        raise TypeError("a function that samples has no range that could be searched; give choices or a range")
    if not hasattr(spec, "get_sampler"):
        return Choice([spec])
    sampler = spec.get_sampler()
    step: float | None = getattr(sampler, "q", None)
    kind = type(sampler if step is None else sampler.get_sampler()).__name__.lower()
    if "normal" in kind:
        raise TypeError("a normal distribution has no ends; give a uniform or log-uniform range")
    low, high, log = spec.lower, spec.upper, "log" in kind
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a range must have ends, got [{low}, {high}]")
    if type(spec).__name__ == "Integer":
        if step is None:
            low, high, step = int(low), int(high) - 1, 1  # Ray's upper end is left out, unless values are quantized
        return _stepped(low, high, int(step), log)
    if step is None:
        return FloatRange(float(low), float(high), log=log)
    count = round((high - low) / step) + 1
    if count > MOST_STEPS:
        return FloatRange(float(low), float(high), log=log)
    return Choice([*(float(low + index * step) for index in range(count - 1)), float(high)])


def _stepped(low: int, high: int, step: int, log: bool) -> Dimension:
    if low == high:
        return Choice([low])
    if step > 1 and (high - low) // step < MOST_STEPS:
        return Choice(list(range(low, high + 1, step)))
    return IntRange(low, high, log=log)


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with names joined by slashes, as Ray nests it."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        *above, last = name.split("/")
        inner = found
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return found


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested configuration with names joined by slashes."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found.update(flat(value, f"{above}{key}/") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return found
