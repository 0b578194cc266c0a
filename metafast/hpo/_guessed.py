"""Conditions that explain why some configurations do not have some hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metafast._dimensions import Choice, Dimension, IntRange
from metafast.hpo._conditions import when
from metafast.hpo._space import Space


def with_conditions(dimensions: Mapping[str, Dimension], configs: Sequence[Mapping[str, Any]]) -> Space | None:
    """A space with the simplest conditions that fit; None: nothing is left.

    What some configurations do not have depends on the first choice or range of integers, among those that all have,
    whose values tell them apart from the others. What nothing explains is left out.

    Args:
        dimensions: of all hyperparameters.
        configs: that were tried.

    Example:
        >>> with_conditions(
        ...     {"layers": IntRange(1, 3), "width_2": IntRange(8, 64)},
        ...     [{"layers": 1}, {"layers": 2, "width_2": 16}, {"layers": 3, "width_2": 8}],
        ... ).conditions
        (Condition(parent='layers', values=(2, 3), children=('width_2',)),)
    """
    always = {name for name in dimensions if all(name in config for config in configs)}
    parents = [name for name in always if isinstance(dimensions[name], Choice | IntRange)]
    kept: dict[str, Dimension] = {}
    conditions = []
    for name, dimension in dimensions.items():
        if name in always:
            kept[name] = dimension
            continue
        for parent in sorted(parents, key=list(dimensions).index):
            values = _values(dimensions[parent], [config[parent] for config in configs if name in config])
            if values and not any(config[parent] in values for config in configs if name not in config):
                conditions.append(when(parent, values, name))
                kept[name] = dimension
                break
    return Space(kept, conditions=conditions) if kept else None


def _values(dimension: Dimension, seen: Sequence[Any]) -> list[Any]:
    """The different values, in order."""
    if isinstance(dimension, IntRange):
        return sorted(set(seen))
    assert isinstance(dimension, Choice)
    return [choice for choice in dimension.choices if choice in seen]
