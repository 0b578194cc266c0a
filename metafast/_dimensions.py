"""Searched hyperparameters: choices, ranges of integers and of floats, each mapped to the unit interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metafast._checks import integer
from metafast.runs._state import pack

FACTORS = (0.8, 1.2)  # of PBT's perturbation


class Dimension(ABC):
    """One searched hyperparameter.

    `fixed` says whether the value stays with its training.
    """

    fixed: bool

    @property
    @abstractmethod
    def ordered(self) -> bool:
        """Whether values next to each other are alike."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many values there are; None: a continuum."""

    @abstractmethod
    def decode(self, unit: float) -> Any:
        """The value at a place in [0, 1]; places drawn uniformly give values drawn from the prior."""

    @abstractmethod
    def encode(self, value: Any) -> float:
        """Where a value lies in [0, 1], or the number of an unordered one."""

    @abstractmethod
    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """A value near this one."""

    @abstractmethod
    def values(self) -> list[Any]:
        """All values, where `count` is not None."""


@dataclass(frozen=True)
class Choice(Dimension):
    """One of a few values, such as batch sizes or names of activations.

    Values that are numbers in ascending order count as ordered: neighbours are alike, and equally far apart.

    Args:
        choices: at least one value; numbers, strings, None, and lists of them (anything that a record can hold).
        fixed: for `PB2`: the value cannot change in the middle of a training (a number of layers). It is drawn at the
            start, and a member that takes over weights takes it over too. Default False.

    Raises:
        TypeError: no sequence, or a value that a record cannot hold.
        ValueError: no values, or one twice.

    Example:
        >>> Choice([32, 64, 128]).ordered, Choice(["relu", "gelu"]).ordered
        (True, False)
    """

    choices: Sequence[Any]
    fixed: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.choices, str | bytes | Mapping) or not isinstance(self.choices, Sequence):
            raise TypeError(f"choices must be a list of values, got {self.choices!r}")
        if not self.choices:
            raise ValueError("choices must have at least one value, got none")
        object.__setattr__(self, "choices", tuple(self.choices))
        for position, value in enumerate(self.choices):
            tensors: dict[str, Any] = {}
            try:
                _, tensors = pack(value)
            except TypeError as error:
                raise TypeError(f"choices[{position}]: {_unstorable(value)}") from error
            if tensors:
                raise TypeError(f"choices[{position}]: {_unstorable(value)}")
            if value in self.choices[:position]:
                raise ValueError(f"choices must differ from each other, got {value!r} twice in {list(self.choices)!r}")
        _check_flag("fixed", self.fixed)

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in ascending order."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.choices)
        return numbers and list(self.choices) == sorted(self.choices)

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.choices)

    def decode(self, unit: float) -> Any:
        """The value at a place in [0, 1]."""
        return self.choices[min(int(unit * self.count), self.count - 1)]

    def encode(self, value: Any) -> float:
        """Its place in [0, 1]; the number of an unordered value."""
        index = self.choices.index(value)
        return index / max(1, self.count - 1) if self.ordered else float(index)

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """A neighbour; any value where they have no order."""
        if not self.ordered:
            return self.decode(rng.random())
        index = self.choices.index(value) + (1 if rng.random() < 0.5 else -1)
        return self.choices[min(max(index, 0), self.count - 1)]

    def values(self) -> list[Any]:
        """All choices."""
        return list(self.choices)


@dataclass(frozen=True)
class IntRange(Dimension):
    """An integer from `low` to `high`, both included.

    Args:
        low: smallest value.
        high: largest value, above `low`.
        log: whether ratios count rather than differences; `low` is at least 1 then. Default False.
        fixed: as in `Choice`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or an empty range.

    Example:
        >>> IntRange(1, 4).values()
        [1, 2, 3, 4]
    """

    low: int
    high: int
    log: bool = False
    fixed: bool = False
    ordered = True

    def __post_init__(self) -> None:
        low, high = integer("low", self.low), integer("high", self.high)
        _check_range(low, high, self.log, self.fixed)

    @property
    def count(self) -> int:
        """The number of values."""
        return self.high - self.low + 1

    def decode(self, unit: float) -> int:
        """The value at a place in [0, 1]; each has half a unit on either side."""
        value = round(_between(self.low - 0.5, self.high + 0.5, unit, self.log))
        return min(max(value, self.low), self.high)

    def encode(self, value: int) -> float:
        """Its place in [0, 1]."""
        return _place(self.low, self.high, value, self.log)

    def perturb(self, value: int, rng: np.random.Generator) -> int:
        """0.8 or 1.2 times the value, and at least one away from it where there is room."""
        up = rng.random() < 0.5
        near = round(value * FACTORS[up])
        if near == value:
            near += 1 if up else -1
        return min(max(near, self.low), self.high)

    def values(self) -> list[int]:
        """All integers of the range."""
        return list(range(self.low, self.high + 1))


@dataclass(frozen=True)
class FloatRange(Dimension):
    """A float from `low` to `high`.

    Args:
        low: smallest value.
        high: largest value, above `low`.
        log: whether ratios count rather than differences; `low` is above 0 then. Default False.
        fixed: as in `Choice`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or an empty range.

    Example:
        >>> round(FloatRange(1e-4, 1.0, log=True).decode(0.5), 6)
        0.01
    """

    low: float
    high: float
    log: bool = False
    fixed: bool = False
    ordered = True
    count = None

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        _check_range(self.low, self.high, self.log, self.fixed)

    def decode(self, unit: float) -> float:
        """The value at a place in [0, 1]."""
        return min(max(_between(self.low, self.high, unit, self.log), float(self.low)), float(self.high))

    def encode(self, value: float) -> float:
        """Its place in [0, 1]."""
        return _place(self.low, self.high, value, self.log)

    def perturb(self, value: float, rng: np.random.Generator) -> float:
        """0.8 or 1.2 times the value, inside the range."""
        near = value * FACTORS[rng.random() < 0.5]
        return min(max(near, float(self.low)), float(self.high))

    def values(self) -> list[float]:
        """A continuum has no list."""
        raise TypeError("a range of floats has no list of values")


def as_dimension(name: Any, spec: Any) -> Dimension:
    """What a space says about one hyperparameter, as a dimension, or an error that names it."""
    if not isinstance(name, str):
        raise TypeError(f"names in space must be strings, got {name!r} ({type(name).__name__})")
    if isinstance(spec, Dimension):
        return spec
    if isinstance(spec, list):
        try:
            return Choice(spec)
        except (TypeError, ValueError) as error:
            raise type(error)(f"space[{name!r}]: {error}") from None
    raise TypeError(
        f"space[{name!r}] must be a list of choices, Choice, IntRange or FloatRange, got {spec!r}; "
        "a range is written IntRange(low, high) or FloatRange(low, high, log=True)"
    )


def ray_domain(dimension: Dimension, tune: Any) -> Any:
    """Ray's words for a dimension; its ranges of integers leave the upper end out."""
    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.choices))
    assert isinstance(dimension, IntRange | FloatRange)
    low, high = dimension.low, dimension.high
    if isinstance(dimension, IntRange):
        return (tune.lograndint if dimension.log else tune.randint)(low, high + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(low, high)


def _between(low: float, high: float, unit: float, log: bool) -> float:
    if log:
        return math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
    return low + unit * (high - low)


def _place(low: float, high: float, value: float, log: bool) -> float:
    if log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _check_range(low: float, high: float, log: bool, fixed: bool) -> None:
    if not low < high:
        raise ValueError(f"low must be below high, got low={low!r}, high={high!r}")
    _check_flag("log", log)
    _check_flag("fixed", fixed)
    if log and low <= 0:
        raise ValueError(f"low must be above 0 with log=True, got {low!r}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _unstorable(value: Any) -> str:
    return (
        f"must be a number, a string or another value that a record can hold, got a {type(value).__name__}; "
        "search over names, and look the thing up inside train"
    )
