"""Conditions of a space: a hyperparameter that is there only when another has one of some values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metafast._dimensions import Choice, Dimension, IntRange


@dataclass(frozen=True)
class Condition:
    """Children that are active only when a parent has one of some values; written with `when`.

    Args:
        parent: name of a choice or of a range of integers.
        values: of the parent.
        children: names.
    """

    parent: str
    values: tuple[Any, ...]
    children: tuple[str, ...]


def when(parent: str, values: Any, *children: str) -> Condition:
    """Says that some hyperparameters are there only when another has one of some values.

    Several conditions of one child must all hold. A child whose parent is not active is not active either.

    Args:
        parent: name of a choice or of a range of integers.
        values: one value of it, or a list of them.
        children: names of the hyperparameters that depend on it, at least one.

    Raises:
        TypeError: a name that is no string.
        ValueError: no values or no children.

    Example:
        >>> when("optimizer", "sgd", "momentum", "nesterov")
        Condition(parent='optimizer', values=('sgd',), children=('momentum', 'nesterov'))
    """
    for name in (parent, *children):
        if not isinstance(name, str):
            raise TypeError(f"names in when(...) must be strings, got {name!r} ({type(name).__name__})")
    if not children:
        raise ValueError(f'when({parent!r}, …) needs what depends on it, as in when("optimizer", "sgd", "momentum")')
    several = tuple(values) if isinstance(values, list) else (values,)
    if not several:
        raise ValueError(f"when({parent!r}, …) needs at least one value, got an empty list")
    return Condition(parent, several, children)


def check_conditions(dimensions: Mapping[str, Dimension], conditions: Sequence[Condition]) -> None:
    """Raises where a condition names what is not there, goes in a circle, or can never hold."""
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(
                f'conditions must be made by when("optimizer", "sgd", "momentum"), got {condition!r} '
                f"({type(condition).__name__})"
            )
        for name in (condition.parent, *condition.children):
            if name not in dimensions:
                raise ValueError(f"conditions name {name!r}, which is not in the space: it has {sorted(dimensions)}")
        parent = dimensions[condition.parent]
        if not isinstance(parent, Choice | IntRange):
            raise ValueError(
                f"conditions on {condition.parent!r} need a choice or a range of integers, got {parent!r}; "
                "name the values that matter in a list"
            )
        for value in condition.values:
            if not holds(parent, value):
                raise ValueError(f"conditions: {condition.parent!r} is never {value!r}; it is {parent!r}")
    order = in_order(dimensions, conditions)
    needs: dict[str, dict[str, list[Any]]] = {}
    for name in order:
        merged: dict[str, list[Any]] = {}
        for condition in conditions:
            if name not in condition.children:
                continue
            for parent_name, allowed in (*needs[condition.parent].items(), (condition.parent, list(condition.values))):
                known = merged.get(parent_name)
                merged[parent_name] = allowed if known is None else [value for value in allowed if value in known]
                if not merged[parent_name]:
                    raise ValueError(
                        f"conditions contradict each other: no value of {parent_name!r} makes {name!r} active; "
                        "values of one condition are listed together: when(parent, [a, b], child)"
                    )
        needs[name] = merged


def in_order(dimensions: Mapping[str, Dimension], conditions: Sequence[Condition]) -> list[str]:
    """Names with parents before their children, otherwise as they came; ValueError for a circle."""
    parents: dict[str, set[str]] = {name: set() for name in dimensions}
    for condition in conditions:
        for child in condition.children:
            parents[child].add(condition.parent)
    done: list[str] = []
    while len(done) < len(parents):
        ready = [name for name in parents if name not in done and parents[name] <= set(done)]
        if not ready:
            circle = sorted(set(parents) - set(done))
            raise ValueError(f"conditions go in a circle among {circle}: none of them can be chosen first")
        done.append(ready[0])
    return done


def holds(dimension: Dimension, value: Any) -> bool:
    """Whether a value is one of a dimension's."""
    if isinstance(dimension, Choice):
        return any(same(value, choice) for choice in dimension.choices)
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return False
    low, high = dimension.low, dimension.high  # type: ignore[attr-defined]
    whole = not isinstance(dimension, IntRange) or float(value).is_integer()
    return whole and bool(low <= value <= high)


def same(value: Any, other: Any) -> bool:
    """Equality that tells True from 1."""
    try:
        return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
    except (TypeError, ValueError):  # arrays
        return False
