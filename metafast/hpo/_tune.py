"""`Predictor.tune`: a few runs, the best of them as a whole training is expected to end, and what to try next."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast._checks import fraction as check_fraction
from metafast._checks import integer
from metafast.experiments._running import OtherSettingsError, check_settings
from metafast.hpo._batched import DEFAULT_METRICS
from metafast.hpo._features import task_features
from metafast.hpo._judge import Judge
from metafast.hpo._metrics import direction_of
from metafast.hpo._space import Space
from metafast.hpo._trainings import (
    BatchedTask,
    Plan,
    name_of,
    read,
    train_batched,
    train_pool,
)
from metafast.hpo._types import Config, Observation, Suggestion

if TYPE_CHECKING:
    from metafast.hpo._predictor import Predictor


@dataclass(frozen=True)
class TuneResult:
    """What a few runs have told.

    Args:
        best: of the configurations that were run, the one that is expected to end best. (Configurations that were not
            run may promise more, but replays say that the best of the runs is the better choice: docs/hpo.md.)
        expected: its expected score after a whole training.
        interval: 90 % interval of that score.
        score: what it scored, where it was run to the end of the whole budget; else None.
        observed: all that was measured, partial scores included.
        seconds: cost of the runs.
        next: the configuration to try next, with what is expected of it.
        reason: how the runs were chosen.
        output: folder of the records.
    """

    best: Config
    expected: float
    interval: tuple[float, float]
    score: float | None
    observed: list[Observation]
    seconds: float
    next: Suggestion
    reason: str
    output: Path


def tune(
    predictor: Predictor,
    train: Callable[..., Any] | BatchedTask,
    space: Space,
    n_initial: int,
    task: Any,
    *,
    n_more: int,
    metric: str | None,
    direction: str | None,
    reference: float | None,
    budget: float,
    stop_below: float,
    workers: int,
    output: str | os.PathLike[str] | None,
    seed: int,
    progress: Callable[[str], None] | None,
) -> TuneResult:
    """See `Predictor.tune`."""
    if not isinstance(space, Space):
        raise TypeError(f"space must be a metafast.hpo.Space, got {type(space).__name__}; write Space(lr=[...])")
    n_initial, n_more = integer("n_initial", n_initial, minimum=1), integer("n_more", n_more, minimum=0)
    workers = integer("workers", workers, minimum=0)
    budget = 1.0 if budget == 1 else check_fraction("budget", budget)
    if stop_below:
        check_fraction("stop_below", stop_below)
    if not isinstance(train, BatchedTask) and not callable(train):
        raise TypeError(f"train must be a function of a configuration, or a BatchedTask, got {type(train).__name__}")
    metric, direction, reference = _score(train, metric, direction, reference)
    told: dict[str, Any] = {
        "features": _features(train, task),
        "metric": metric,
        "direction": direction,
        "reference": reference,
    }
    root = Path(tempfile.mkdtemp(prefix="metafast-tune-")) if output is None else Path(output)
    root.mkdir(parents=True, exist_ok=True)
    try:
        check_settings({"space": space.describe(), "metric": metric, "budget": budget, "seed": seed}, root)
    except OtherSettingsError as error:
        raise ValueError(f"output: {error}") from None
    configs, reason = predictor.initial(space, n_initial, **told, seed=seed)
    judge = Judge(predictor, space, told, stop_below)
    say = progress or (lambda line: None)

    def run(chosen: list[Config]) -> None:
        ended = {name_of(one.config) for one in read(root, metric)}
        missing = [config for config in chosen if name_of(config) not in ended]
        if not missing:
            return
        plan = Plan(missing, budget, metric, seed, root)
        if isinstance(train, BatchedTask):
            say(f"{len(missing)} runs side by side")
            train_batched(train, plan, judge)
        else:
            train_pool(train, plan, judge, workers, lambda config: say(f"done: {config}"))

    run(configs)
    for _ in range(n_more):
        found = predictor.suggest(space, read(root, metric), **told, seed=seed)
        say(f"next, {found.reason}: {found.config}")
        run([found.config])
    observed = read(root, metric)
    if all(one.failed for one in {space.key(one.config): one for one in observed}.values()):  # the ends of the curves
        raise RuntimeError(f"all {len(configs) + n_more} runs failed; their records are in {root}")
    pool = list({space.key(one.config): one.config for one in observed}.values())
    belief = predictor.belief(space, pool, observed, **told)
    best = int(belief.merit.argmax())
    whole = {space.key(one.config): one.score for one in observed if one.fraction == 1.0 and not one.failed}
    costs: dict[Any, float] = {}
    for one in observed:
        costs[space.key(one.config)] = max(costs.get(space.key(one.config), 0.0), one.seconds or 0.0)
    return TuneResult(
        dict(pool[best]), float(belief.mean[best]), (float(belief.low[best]), float(belief.high[best])),
        whole.get(space.key(pool[best])), observed, sum(costs.values()),
        predictor.suggest(space, observed, **told, seed=seed), reason, root,
    )  # fmt: skip


def _features(train: Any, task: Any) -> Mapping[str, float]:
    """Of the data that are given, or given themselves; a BatchedTask has data of its own."""
    if task is None:
        return train.features() if isinstance(train, BatchedTask) else {}
    if isinstance(task, Mapping) and all(isinstance(value, int | float) for value in task.values()):
        return {str(name): float(value) for name, value in task.items()}
    return task_features(task)


def _score(
    train: Any, metric: str | None, direction: str | None, reference: float | None
) -> tuple[str, str, float | None]:
    """Names and reference of the scores; a BatchedTask knows them itself."""
    if isinstance(train, BatchedTask):
        own = train.metric if isinstance(train.metric, str) else None
        default = DEFAULT_METRICS.get(train.loss) if isinstance(train.loss, str) else None
        metric = metric or own or (default if train.metric is None else None)
        if metric is None:
            raise ValueError("metric must be given, the name of what the BatchedTask's function measures")
        targets, val = train.train[1], train.val[1]
        if reference is None and metric == "accuracy":
            reference = float((val == targets.flatten().bincount().argmax()).double().mean())
        if reference is None and metric == "mse":
            reference = float((val.double() - targets.double().mean(0)).square().mean())
    metric = metric or "accuracy"
    direction = direction or direction_of(metric)
    if direction is None:
        raise ValueError(f"which way round is {metric!r}? give direction='maximize' or 'minimize'")
    if reference is not None and not np.isfinite(reference):
        raise ValueError(f"reference must be finite, got {reference!r}")
    return metric, direction, reference
