"""Families of curves: each task is one function, given by a few points of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from metafast.data._collate import draw, uniform

Array = np.ndarray[Any, Any]


class Family(Protocol):
    """Functions of one number. `parameters` are drawn for each task, uniformly between the bounds."""

    name: ClassVar[str]

    @property
    def x(self) -> tuple[float, float]:
        """Bounds of the inputs."""

    @property
    def noise(self) -> float:
        """Standard deviation of what is added to the targets."""

    def bounds(self) -> list[tuple[float, float]]:
        """Of each parameter of a function."""

    def value(self, x: Array, parameters: list[Array]) -> Array:
        """The functions at `x [T, N]`, parameters `[T, 1]`."""


@dataclass(frozen=True)
class Sinusoid:
    """`y = a sin(x - φ)`.

    Args:
        amplitude: bounds of a.
        phase: bounds of φ.
        x: bounds of the inputs.
        noise: standard deviation of what is added to y.

    Example:
        >>> Sinusoid().value(np.array([[1.0]]), [np.array([[2.0]]), np.array([[1.0]])])
        array([[0.]])

    Source:
        C. Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, section 5.1.
    """

    name: ClassVar[str] = "sinusoid"
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    x: tuple[float, float] = (-5.0, 5.0)
    noise: float = 0.0

    def bounds(self) -> list[tuple[float, float]]:
        """Of a and φ."""
        return [self.amplitude, self.phase]

    def value(self, x: Array, parameters: list[Array]) -> Array:
        """The functions at `x [T, N]`."""
        amplitude, phase = parameters
        y: Array = amplitude * np.sin(x - phase)
        return y


@dataclass(frozen=True)
class Harmonic:
    """`y = a sin(ω x + φ) + b sin(2 ω x + ψ)`: what a learner of sinusoids has not seen.

    Args:
        amplitude: bounds of a and b.
        frequency: bounds of ω.
        phase: bounds of φ and ψ.
        x: bounds of the inputs.
        noise: standard deviation of what is added to y.

    Example:
        >>> len(Harmonic().bounds())
        5
    """

    name: ClassVar[str] = "harmonic"
    amplitude: tuple[float, float] = (0.1, 2.5)
    frequency: tuple[float, float] = (0.5, 1.5)
    phase: tuple[float, float] = (0.0, 2 * math.pi)
    x: tuple[float, float] = (-5.0, 5.0)
    noise: float = 0.0

    def bounds(self) -> list[tuple[float, float]]:
        """Of a, b, ω, φ and ψ."""
        return [self.amplitude, self.amplitude, self.frequency, self.phase, self.phase]

    def value(self, x: Array, parameters: list[Array]) -> Array:
        """The functions at `x [T, N]`."""
        a, b, frequency, phase, other = parameters
        y: Array = a * np.sin(frequency * x + phase) + b * np.sin(2 * frequency * x + other)
        return y


@dataclass(frozen=True)
class Step:
    """`y = a` left of an edge, `b` right of it.

    Args:
        height: bounds of a and b.
        edge: bounds of its place.
        x: bounds of the inputs.
        noise: standard deviation of what is added to y.

    Example:
        >>> one = np.ones((1, 1))
        >>> Step().value(np.array([[-1.0, 2.0]]), [3 * one, 4 * one, 0 * one])
        array([[3., 4.]])
    """

    name: ClassVar[str] = "step"
    height: tuple[float, float] = (-3.0, 3.0)
    edge: tuple[float, float] = (-2.5, 2.5)
    x: tuple[float, float] = (-5.0, 5.0)
    noise: float = 0.0

    def bounds(self) -> list[tuple[float, float]]:
        """Of a, b and the edge."""
        return [self.height, self.height, self.edge]

    def value(self, x: Array, parameters: list[Array]) -> Array:
        """The functions at `x [T, N]`."""
        left, right, edge = parameters
        return np.where(x < edge, left, right)


FAMILIES: dict[str, type[Sinusoid] | type[Harmonic] | type[Step]] = {
    family.name: family for family in (Sinusoid, Harmonic, Step)
}


def sample(family: Family, keys: Array, points: int) -> tuple[Array, Array]:
    """Points of one function for each key.

    Args:
        family: of the functions.
        keys: uint64 `[T]`.
        points: N for each function.

    Returns:
        `(x, y)`: float32 `[T, N, 1]`; y is computed in float64 and rounded.
    """
    bounds = family.bounds()
    counters = np.arange(len(bounds) + points)
    numbers = uniform(draw(keys[:, None], counters))
    parameters = [low + (high - low) * numbers[:, i : i + 1] for i, (low, high) in enumerate(bounds)]
    x = family.x[0] + (family.x[1] - family.x[0]) * numbers[:, len(bounds) :]
    x = x.astype(np.float32).astype(np.float64)  # y belongs to the x that is handed out
    y = family.value(x, parameters)
    if family.noise:
        first = (1 << 20) + 2 * np.arange(points)
        radius = np.sqrt(-2 * np.log1p(-uniform(draw(keys[:, None], first))))
        y = y + family.noise * radius * np.cos(2 * math.pi * uniform(draw(keys[:, None], first + 1)))
    return x.astype(np.float32)[..., None], y.astype(np.float32)[..., None]
