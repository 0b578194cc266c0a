"""Optuna studies and folders of run records as tasks to learn from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metafast.hpo._records import task_of_runs
from metafast.hpo._rows import Row, task_of_rows
from metafast.hpo._space import Space
from metafast.hpo._trials import Clock, common, score
from metafast.hpo._types import MetaTask, Observation

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from metafast.hpo._space_optuna import Distributions


def to_tasks(source: Any) -> list[MetaTask]:
    """What a predictor learns from: a study, a folder of run records, or a list of records.

    Raises:
        TypeError: something else; a table needs to be told what its columns are: `task_of_table`.
        ValueError: nothing to learn from in it.
    """
    if isinstance(source, MetaTask):
        return [source]
    if _is_study(source):
        return [task_of_study(source)]
    if isinstance(source, str | os.PathLike):
        if Path(source).suffix in (".csv", ".parquet"):
            raise TypeError(f"a table must be told what its columns are: task_of_table({str(source)!r}, score=…)")
        return [task_of_runs(source)]
    if isinstance(source, list | tuple) and source and all(hasattr(run, "curve") for run in source):
        return [task_of_runs(source)]
    raise TypeError(f"expected MetaTasks, Optuna studies and folders of run records, got {type(source).__name__}")


def task_of_study(
    study: Study,
    *,
    name: str | None = None,
    dataset: str | None = None,
    space: Space | None = None,
    metric: str | None = None,
    n_steps: int | None = None,
    reference: float | None = None,
    features: Mapping[str, float] | None = None,
) -> MetaTask:
    """A study as a task to learn from: finished trials with their curves, and failed ones.

    Pruned and running trials are left out, as nobody knows how they would have ended; trials of one configuration are
    averaged. Hyperparameters that not all trials have are kept where a choice explains why.

    Args:
        study: with one objective.
        name: None: the study's name.
        dataset: what is left out as one when a predictor is judged. None: `name`.
        space: what was searched. None: what the trials say.
        metric: None: the study's metric name, or "accuracy" if it is maximized, else "loss".
        n_steps: steps that a whole training reports. None: as many as the longest finished trial reported.
        reference: as in `MetaTask`.
        features: likewise.

    Raises:
        TypeError: no study.
        ValueError: several objectives, a metric the wrong way round, trials of another space, or fewer than 2 finished
            configurations.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(study_name="mine", sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(lambda trial: (trial.suggest_float("lr", 1e-3, 1.0, log=True) - 0.1) ** 2, n_trials=9)
        >>> task = task_of_study(study, metric="mse")
        >>> task.name, task.direction, len(task.configs), task.space.dimensions["lr"].log
        ('mine', 'minimize', 9, True)
    """
    what, direction = _one_objective(study)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "FAIL")]
    both = _distributions(trials, space, what)
    clock = Clock.of(trials, n_steps)
    rows = []
    for trial in trials:
        config = both.config(trial.params)
        if config is not None:
            seconds = trial.duration.total_seconds() if trial.duration and trial.state.name == "COMPLETE" else math.nan
            rows.append(Row(config, _points(trial, clock), seconds))
    if trials and not rows:
        raise ValueError(
            f"{what} searches another space: none of its {len(trials)} trials is in {both.space}; they have "
            f"{sorted(trials[-1].params)}"
        )
    names = study.metric_names
    metric = metric or (names[0] if names else "accuracy" if direction == "maximize" else "loss")
    return task_of_rows(
        rows,
        both.space,
        what=what,
        name=name or study.study_name,
        dataset=dataset,
        metric=metric,
        direction=direction,
        reference=reference,
        features=features,
    )


def observations_of_study(study: Study, space: Space, *, n_steps: int | None = None) -> list[Observation]:
    """What all trials of a study say about a space, for `Predictor.belief` and `suggest`: pruned and failed ones too.

    Args:
        study: with one objective.
        space: trials outside of it are left out.
        n_steps: as in `task_of_study`.

    Raises:
        TypeError: no study, or no space.
        ValueError: several objectives, or no trial in the space.
    """
    from metafast.hpo._trials import read_trials

    what, direction = _one_objective(study)
    if not isinstance(space, Space):
        raise TypeError(f"space must be a Space, got {type(space).__name__}")
    trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    both = _distributions(trials, space, what)
    told = read_trials(trials, both, maximize=direction == "maximize", total=n_steps)
    if trials and not told.observed:
        raise ValueError(f"{what} searches another space: none of its {len(trials)} trials is in {space}")
    return told.observed


def _one_objective(study: Any) -> tuple[str, str]:
    if not _is_study(study):
        raise TypeError(f"study must be an Optuna study, got {type(study).__name__}")
    what = f"study {study.study_name!r}"
    if len(study.directions) != 1:
        raise ValueError(f"{what} has {len(study.directions)} objectives; a predictor learns from studies with one")
    return what, study.direction.name.lower()


def _distributions(trials: Sequence[FrozenTrial], space: Space | None, what: str) -> Distributions:
    """How values are read: by the given space, or by what trials say that do not contradict each other."""
    from metafast.hpo._space_optuna import Distributions

    if space is not None:
        return Distributions(space.to_optuna(), space)
    both = common(trials)
    if both is None:
        raise ValueError(
            f"{what} has no finished trials with hyperparameters whose ranges do not change; give space=Space(…)"
        )
    return both


def _points(trial: FrozenTrial, clock: Clock) -> list[tuple[float, float]]:
    points = [
        (fraction, value)
        for step, value in sorted(trial.intermediate_values.items())
        if (fraction := clock.fraction(step)) is not None and fraction < 1
    ]
    return [*points, (1.0, score(trial))]


def _is_study(source: Any) -> bool:
    return all(hasattr(source, name) for name in ("get_trials", "directions", "study_name"))
