"""Periods of training that take turns in one process: what one costs against another."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

Period = Callable[[], None]


def measure_periods(
    periods: Mapping[str, Period], base: Mapping[str, str] | str, steps: int, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Rows of times per step: two periods a turn, in an order that rotates; a ratio is that of two turns of one round.

    Args:
        periods: by name; each does `steps` steps.
        base: name of what the others are compared with, or that of each.
        steps: in a period.
        rounds: turns of each.
        clock: seconds.
    """
    times: dict[str, list[float]] = {key: [] for key in periods}
    for period in periods.values():
        period()
    order = list(periods)
    for number in range(rounds):
        for offset in range(len(order)):
            key = order[(offset + number) % len(order)]
            begin = clock()
            periods[key]()
            periods[key]()
            times[key].append((clock() - begin) / (2 * steps))
    rows = []
    for key, seconds in times.items():
        against = base if isinstance(base, str) else base[key]
        ratios = [mine / other for mine, other in zip(seconds, times[against], strict=True)]
        rows.append(
            {
                "name": key,
                "ms": 1e3 * statistics.median(seconds),
                "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                "seconds": seconds,
            }
        )
    return rows
