"""Runs of one task, wherever they come from, put together as a `MetaTask`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metafast._dimensions import Choice, Dimension, FloatRange, IntRange
from metafast.hpo._guessed import with_conditions
from metafast.hpo._metrics import check_direction, direction_of
from metafast.hpo._scale import LOG_RATIO
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask

POINTS = 8  # of a learning curve
MOST_CHOICES = 12  # different numbers that are read as a list; more are a range
LEAST = 2  # different configurations that have something to say about each other


@dataclass
class Row:
    """One run.

    Args:
        config: the hyperparameters.
        points: fraction of the budget and metric, ascending; the last is the end. NaN: failed.
        seconds: cost; NaN: not known.
    """

    config: Config
    points: list[tuple[float, float]]
    seconds: float = math.nan


def task_of_rows(
    rows: Sequence[Row],
    space: Space,
    *,
    what: str,
    name: str,
    dataset: str | None,
    metric: str,
    direction: str,
    reference: float | None,
    features: Mapping[str, float] | None,
) -> MetaTask:
    """The task; runs of one configuration are averaged.

    Args:
        rows: of configurations that are in the space.
        space: what was searched.
        what: of the source, for errors: "study 'mine'".
        name: of the task.
        dataset: None: `name`.
        metric: its name.
        direction: checked against what is known of the metric.
        reference: as in `MetaTask`.
        features: likewise.
    """
    check_direction(metric, direction, f"{what} seems to be read the wrong way round")
    fractions = _fractions(rows)
    grouped: dict[Any, list[Row]] = {}
    for row in rows:
        grouped.setdefault(space.key(row.config), []).append(row)
    curves = [_mean([_curve(row, fractions) for row in same]) for same in grouped.values()]
    finite = sum(math.isfinite(curve[-1]) for curve in curves)
    if finite < LEAST:
        raise ValueError(
            f"{what} has {finite} finished configurations with a finite {metric}, at least {LEAST} are needed"
        )
    return MetaTask(
        name=name,
        dataset=dataset or name,
        space=space,
        configs=[same[0].config for same in grouped.values()],
        curves=np.array(curves, dtype=np.float64),
        fractions=np.array(fractions, dtype=np.float64),
        seconds=np.array([_mean([np.array([row.seconds]) for row in same])[0] for same in grouped.values()]),
        metric=metric,
        direction=direction,
        reference=reference,
        features=dict(features or {}),
    )


def space_of(configs: Sequence[Config], what: str) -> Space:
    """The space that configurations seem to come from: what differs between them.

    Few different numbers are a list, more a range, by ratio where its ends are far apart. What some configurations do
    not have depends on a choice of names that tells them apart from the others.
    """
    names = list(dict.fromkeys(name for config in configs for name in config))
    dimensions: dict[str, Dimension] = {}
    for name in names:
        values: list[Any] = []
        for config in configs:
            if name in config and not any(type(v) is type(config[name]) and v == config[name] for v in values):
                values.append(config[name])
        everywhere = all(name in config for config in configs)
        if len(values) > 1 or not everywhere:
            dimensions[name] = _dimension(values)
    space = with_conditions(dimensions, configs)
    if space is None:
        raise ValueError(f"{what} has no hyperparameter that differs between runs; give space=Space(…)")
    return space


def pick_metric(names: Sequence[str], what: str) -> str:
    """The metric that counts among logged ones: a known one, rather of validation, rather accuracy than loss."""
    known = [name for name in names if direction_of(name) is not None and not name.startswith("train")]
    if not known:
        raise ValueError(
            f"{what} has the metrics {list(names)}, none of which is known; say which: metric=…, direction=…"
        )
    return min(known, key=lambda name: (not name.startswith("val"), direction_of(name) != "maximize"))


def _dimension(values: list[Any]) -> Dimension:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        return Choice(values)
    values = sorted(values)
    if len(values) <= MOST_CHOICES:
        return Choice(values)
    low, high = values[0], values[-1]
    log = low > 0 and high / low >= LOG_RATIO
    if all(isinstance(value, int) for value in values):
        return IntRange(low, high, log=log)
    return FloatRange(float(low), float(high), log=log)


def _fractions(rows: Sequence[Row]) -> list[float]:
    """Where curves are read: where the longest was, thinned; only at the end if some have nothing before."""
    longest = max((row.points for row in rows), key=len, default=[])
    finished = [row for row in rows if math.isfinite(row.points[-1][1])]
    if len(longest) < 2 or any(len(row.points) < 2 for row in finished):
        return [1.0]
    if len(longest) > POINTS:
        return [(index + 1) / POINTS for index in range(POINTS)]
    return [fraction for fraction, _ in longest[:-1] if fraction < 1] + [1.0]


def _curve(row: Row, fractions: Sequence[float]) -> np.ndarray:
    """The latest value at each fraction, the first one before it, and NaN once it had failed."""
    curve = np.full(len(fractions), math.nan)
    for index, fraction in enumerate(fractions):
        before = [value for at, value in row.points if at <= fraction + 1e-9]
        curve[index] = before[-1] if before else row.points[0][1]
    if not math.isfinite(row.points[-1][1]):
        curve[-1] = math.nan
    curve[~np.isfinite(curve)] = math.nan
    return curve


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    """The mean without NaN, where not all are."""
    stacked = np.array(arrays)
    count = np.isfinite(stacked).sum(0)
    total = np.where(np.isfinite(stacked), stacked, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)
