"""Run records as tasks to learn from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metafast.hpo._metrics import direction_of
from metafast.hpo._rows import Row, pick_metric, space_of, task_of_rows
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask
from metafast.runs import Run, list_runs

INNER = "hyperparameters"  # key of a record's config that holds them, where they are not the config itself

FRACTION, SECONDS = "fraction", "seconds"  # metrics that say how far a training had come, and what it had cost
STOPPED = "pruned"  # tag of runs that were stopped because they were hopeless


def task_of_runs(
    source: str | os.PathLike[str] | Sequence[Run],
    *,
    name: str | None = None,
    dataset: str | None = None,
    space: Space | None = None,
    metric: str | None = None,
    direction: str | None = None,
    steps: int | None = None,
    reference: float | None = None,
    features: Mapping[str, float] | None = None,
) -> MetaTask:
    """Run records of one task as a task to learn from: finished runs with their curves, and failed ones.

    Runs that are in progress, were killed, or have the tag "pruned" are left out, and so are those whose logged
    "fraction" of the budget ends below 1; those of one configuration (other seeds) are averaged.

    Args:
        source: a folder of records, or records.
        name: None: the folder's name.
        dataset: what is left out as one when a predictor is judged. None: `name`.
        space: what was searched. None: what differs between the runs' configs, or their "hyperparameters" where they
            have such an entry.
        metric: a logged one. None: a known one, rather of validation, rather accuracy than loss.
        direction: "maximize" or "minimize". None: the known one of the metric.
        steps: of a whole training. None: as many as the longest finished run has.
        reference: as in `MetaTask`.
        features: likewise.

    Raises:
        TypeError: something else.
        ValueError: no runs, an unknown metric or direction, runs outside the space, or fewer than 2 finished
            configurations.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> for lr in (0.1, 0.2, 0.4):
        ...     with Run.create(root, config={"lr": lr, "data": "digits"}) as run:
        ...         for step in (1, 2):
        ...             run.log(step=step, loss=1 - lr * step, val_accuracy=lr * step)
        >>> task = task_of_runs(root, name="digits")
        >>> task.metric, task.space, task.curves.tolist()
        ('val_accuracy', Space(lr=[0.1, 0.2, 0.4]), [[0.1, 0.2], [0.2, 0.4], [0.4, 0.8]])
    """
    runs, what = _runs(source)
    whole = [run for run in runs if STOPPED not in run.tags]
    ended = [(run, status) for run in whole if (status := run.status) in ("finished", "failed")]
    if not ended:
        raise ValueError(f"{what} has {len(runs)} runs, none of which has finished or failed")
    if metric is None:
        metric = pick_metric(list(dict.fromkeys(name for run, _ in ended for name in run.metrics)), what)
    direction = direction or direction_of(metric)
    if direction is None:
        raise ValueError(f"which way round is {metric!r}? give direction='maximize' or 'minimize'")
    curves = [_curve(run, metric) for run, _ in ended]
    if not any(curves):
        raise ValueError(
            f"{what} has no metric {metric!r}; logged: {sorted({n for run, _ in ended for n in run.metrics})}"
        )
    ends = [curve[-1][0] for (run, status), curve in zip(ended, curves, strict=True)
            if curve and status == "finished" and FRACTION not in run.metrics]  # fmt: skip
    longest = steps or max(ends, default=1)
    configs = [_config(run, space, what) for run, _ in ended]
    space = space or space_of(configs, what)
    rows = []
    for (run, status), curve, config in zip(ended, curves, configs, strict=True):
        told = FRACTION in run.metrics
        points = [(min(step if told else max(step, 1) / longest, 1.0), value) for step, value in curve]
        if status == "failed" or not points:
            points.append((1.0, math.nan))
        elif told and points[-1][0] < 1:
            continue  # a part of the budget, as planned: nobody knows how it would have ended
        else:
            points[-1] = (1.0, points[-1][1])
        rows.append(Row({key: config[key] for key in space.dimensions if key in config}, points, _seconds(run, status)))
    if isinstance(source, str | os.PathLike):
        name = name or Path(source).resolve().name
    return task_of_rows(
        rows,
        space,
        what=what,
        name=name or "runs",
        dataset=dataset,
        metric=metric,
        direction=direction,
        reference=reference,
        features=features,
    )


def _runs(source: Any) -> tuple[list[Run], str]:
    if isinstance(source, str | os.PathLike):
        if not Path(source).is_dir():
            raise ValueError(f"{source} is no folder of run records")
        return list_runs(source), f"folder {str(source)!r}"
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        runs = list(source)
        if all(isinstance(run, Run) for run in runs):
            return runs, f"list of {len(runs)} records"
    raise TypeError(f"expected a folder of run records or a list of them, got {type(source).__name__}")


def _curve(run: Run, metric: str) -> list[tuple[float, float]]:
    """Fractions of the budget, where they were logged, or steps, and the metric."""
    if metric not in run.metrics:
        return []
    steps, values = run.curve(metric)
    if FRACTION in run.metrics:
        fractions = dict(zip(*(part.tolist() for part in run.curve(FRACTION)), strict=True))
        return [
            (fractions[step], v) for step, v in zip(steps.tolist(), values.tolist(), strict=True) if step in fractions
        ]
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def _seconds(run: Run, status: str) -> float:
    """The cost of a whole training: as it was logged, or the time of the record."""
    if status != "finished":
        return math.nan
    return float(run.curve(SECONDS).values[-1]) if SECONDS in run.metrics else run.cost["seconds"]


def _config(run: Run, space: Space | None, what: str) -> Config:
    config = run.config
    inner = config.get(INNER)
    config = dict(inner) if isinstance(inner, Mapping) else config
    if space is None:
        return config
    config = {key: config[key] for key in space.dimensions if key in config}
    try:
        space.check(config)
    except ValueError as error:
        raise ValueError(f"{what}: run {run.name!r} is of another space: {error}") from None
    return config
