"""Where the values of a dimension lie: on a scale from 0 to 1 for numbers, by number for names."""

from __future__ import annotations

import math
from typing import Any

from metafast._dimensions import Choice, Dimension, FloatRange, IntRange
from metafast.hpo._conditions import same

LOG_RATIO = 8.0  # lists of positive numbers whose ends are this far apart are read by ratio


class Scale:
    """The scale of a dimension.

    Args:
        dimension: of a space.

    Attributes:
        numeric: whether values are numbers; otherwise they are numbered.
        log: whether ratios count.
        low: smallest value of a numeric one.
        high: largest.
    """

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        if isinstance(dimension, Choice):
            choices = list(dimension.choices)
            self.numeric = all(_is_number(choice) for choice in choices)
            self.low, self.high = (float(min(choices)), float(max(choices))) if self.numeric else (0.0, 1.0)
            self.log = self.numeric and self.low > 0 and self.high / self.low >= LOG_RATIO
        else:
            assert isinstance(dimension, IntRange | FloatRange)
            self.numeric, self.log = True, dimension.log
            self.low, self.high = float(dimension.low), float(dimension.high)

    def unit(self, value: Any) -> float:
        """The place of a number in [0, 1] (outside where the value is), or the index of a name."""
        if not self.numeric:
            return float(self.index(value))
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def index(self, value: Any) -> int:
        """The number of a choice."""
        assert isinstance(self.dimension, Choice)
        for index, choice in enumerate(self.dimension.choices):
            if same(value, choice):
                return index
        raise ValueError(f"{value!r} is none of {list(self.dimension.choices)!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
