"""Argument checks that run records, data functions and models share."""

from __future__ import annotations

import math
import operator
from typing import Any


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    """`value` as an int, or an error that names the argument."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def fraction(name: str, value: Any) -> float:
    """`value` as a float strictly between 0 and 1, or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number between 0 and 1, got {value!r} ({type(value).__name__})")
    if not (math.isfinite(value) and 0 < value < 1):
        raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return float(value)
