"""The predictor: hyperparameters for a new task from a few runs of it and all that other tasks have taught."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast._checks import integer
from metafast.hpo._acquire import neighbours, worth
from metafast.hpo._costs import log_seconds
from metafast.hpo._encode import axes_of, encode
from metafast.hpo._fallback import FALLBACKS, fall_back
from metafast.hpo._file import read, write
from metafast.hpo._known import families_of
from metafast.hpo._metrics import check_direction
from metafast.hpo._portfolio import next_of_portfolio
from metafast.hpo._posterior import Mixture
from metafast.hpo._scores import Scores, tame
from metafast.hpo._space import Space
from metafast.hpo._surrogate import Query, Settings, Surrogate
from metafast.hpo._types import Belief, Config, MetaTask, Observation, Suggestion
from metafast.hpo._unlike import unlike

if TYPE_CHECKING:
    from metafast.hpo._trainings import BatchedTask
    from metafast.hpo._tune import TuneResult

SHIPPED = Path(__file__).parent
CANDIDATES = 512  # of a space with more configurations
MOST_OBSERVED = 100  # the best and the latest of more
_INTERVAL = (0.05, 0.95)


class _OnClassToo:
    """A method that, called on the class, works on a new instance."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        functools.update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type[Any]) -> Callable[..., Any]:
        return functools.partial(self.method, owner() if instance is None else instance)


class Predictor:
    """Predicts scores and costs of configurations, and says which one to try next.

    A Gaussian process whose mean and covariance over configurations are those of the tasks it knows: what an
    observation says about the other configurations is what it would have said in them (docs/hpo-model.md). On a space
    or task unlike all of them, it hands over to Optuna, and says so.

    Args:
        tasks: what it knows from the start; more with `fit`.
        settings: of the model. Default: those that were found by leaving data sets out.

    Example:
        >>> from metafast.hpo import Observation, Space
        >>> space = Space(lr=[1e-3, 1e-2, 1e-1], width=[64, 128, 256])
        >>> predictor = Predictor()
        >>> belief = predictor.belief(space, space.grid(), [Observation({"lr": 0.01, "width": 64}, 0.9)])
        >>> int(belief.merit.argmax()) == space.grid().index({"lr": 0.01, "width": 64})
        True
        >>> predictor.suggest(space, seed=0).reason
        'no task is known'
    """

    def __init__(self, tasks: Sequence[MetaTask] = (), settings: Settings | None = None) -> None:
        self._surrogate = Surrogate([], settings or Settings())
        self.record: dict[str, Any] = {}
        if tasks:
            self.fit(tasks)

    @classmethod
    def load(cls, source: str | os.PathLike[str] = "default") -> Predictor:
        """A predictor from a file, or the one that ships.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, incomplete, or of another version.
        """
        predictor = cls()
        path = SHIPPED / "default.safetensors" if source == "default" else Path(source)
        predictor._surrogate, predictor.record = read(path)
        return predictor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` reads, whole or not at all."""
        write(self._surrogate, self.record, path)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it knows."""
        return [task.name for family in self._surrogate.families for task in family.tasks]

    @property
    def settings(self) -> Settings:
        """Of the model."""
        return self._surrogate.settings

    @_OnClassToo
    def fit(
        self, sources: Iterable[Any], *, tune: bool = False, progress: Callable[[str], None] | None = None
    ) -> Predictor:
        """Learns more tasks; one whose name it knows takes the place of the old one.

        `Predictor.fit(sources)` makes a predictor that knows these alone.

        Args:
            sources: `MetaTask`s, Optuna studies, and folders of run records, in any order.
            tune: whether settings of the model are found anew by leaving out one data set after the other, which
                takes a minute or so. Default False.
            progress: called with lines that say what is done.

        Returns:
            The predictor itself.

        Raises:
            TypeError: a source that is none of these.
            ValueError: no source, or one that has nothing to learn from.
        """
        tasks = _tasks_of(sources)
        new = {task.name for task in tasks}
        kept = [replace(f, tasks=[t for t in f.tasks if t.name not in new]) for f in self._surrogate.families]
        families = [family for family in kept if family.tasks]
        for made in families_of(tasks):
            for family in families:
                if family.same(made):
                    family.tasks.extend(made.tasks)
                    break
            else:
                families.append(made)
        self._surrogate = Surrogate(families, self.settings)
        if tune:
            from metafast.hpo._tuned import tuned

            self._surrogate = Surrogate(families, tuned(self._surrogate, progress))
        self.record = {**self.record, "tasks": len(self.tasks)}
        return self

    def without(self, *datasets: str) -> Predictor:
        """The same predictor, knowing no task of some data sets: what it is judged with."""
        other = Predictor()
        other._surrogate, other.record = self._surrogate.without(set(datasets)), dict(self.record)
        return other

    def belief(
        self,
        space: Space,
        candidates: Sequence[Config],
        observed: Sequence[Observation] = (),
        *,
        features: Mapping[str, float] | None = None,
        metric: str = "accuracy",
        direction: str = "maximize",
        reference: float | None = None,
        fraction: float = 1.0,
    ) -> Belief:
        """Distributions of the candidates' scores and their costs.

        Args:
            space: what is searched.
            candidates: configurations of it.
            observed: scores of runs, whole ones and parts; failed ones have NaN.
            features: of data set and architecture: `task_features(...) | architecture_features(...)`.
            metric: its name; known names ("accuracy", "loss", "mse", "wer", …) tell how it is read.
            direction: "maximize" or "minimize".
            reference: score of a predictor that has learned nothing; None: not known.
            fraction: of the budget at which scores are predicted. Default 1, the end.

        Raises:
            TypeError, ValueError: no candidates, a wrong direction, or observations outside the space.
        """
        if not len(candidates):
            raise ValueError("candidates must have at least one configuration, got none")
        query, measured = self._query(space, candidates, observed, features, metric, direction, reference, fraction)
        n = len(query.observed)
        mixture, _ = self._surrogate.believe(query)
        beliefs = _part(mixture, n)
        costs, level = log_seconds(self._surrogate, query, measured)
        seconds = np.exp(costs[n:]) if level else np.full(len(candidates), math.nan)
        return _belief(beliefs, query.scores, seconds)

    def suggest(
        self,
        space: Space,
        observed: Sequence[Observation] = (),
        *,
        features: Mapping[str, float] | None = None,
        metric: str = "accuracy",
        direction: str = "maximize",
        reference: float | None = None,
        candidates: Sequence[Config] | None = None,
        seed: int = 0,
        per_cost: bool = True,
        fallback: str = "gp",
    ) -> Suggestion:
        """The configuration to try next.

        The first ones are a portfolio of the known tasks, the following ones those with the highest expected
        improvement for their cost. Where the task is unlike all that are known, `fallback` decides.

        Args:
            space: what is searched.
            observed: as in `belief`.
            features: as in `belief`.
            metric: as in `belief`.
            direction: as in `belief`.
            reference: as in `belief`.
            candidates: what may be suggested. Default: the whole space if it is small, else a spread and, once there
                are runs, neighbours of the best.
            seed: of the spread.
            per_cost: whether cheap configurations are preferred. Default True.
            fallback: "gp", "tpe" (Optuna's) or "random".

        Returns:
            A configuration that was not observed, unless all were.
        """
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
        rng = np.random.default_rng([integer("seed", seed, minimum=0), len(observed)])
        given = candidates is not None
        pool = list(candidates) if candidates is not None else space.candidates(rng, CANDIDATES)
        if not pool:
            raise ValueError("candidates must have at least one configuration, got none")
        pool = _untried(space, pool, observed)
        query, measured = self._query(space, pool, observed, features, metric, direction, reference, 1.0)
        n = len(query.observed)
        mixture, evidence = self._surrogate.believe(query)
        reason = unlike(self._surrogate, query, evidence)
        if reason:
            chosen, source = fall_back(fallback, space, pool, observed, direction, seed)
        elif (runs := len({space.key(one.config) for one in observed})) < self.settings.portfolio:
            chosen, source = next_of_portfolio(*self._surrogate.values(query), n), "portfolio"
            reason = f"number {runs + 1} of the portfolio: good where those before it are not"
        else:
            if not given and len(pool) >= CANDIDATES // 2 and (space.size is None or space.size > len(pool)):
                top = np.argsort(-_part(mixture, n).mean)[:8]
                near = neighbours(space, [pool[row] for row in top], rng, CANDIDATES // 4)
                pool = pool + _untried(space, near, observed)
                query, measured = self._query(space, pool, observed, features, metric, direction, reference, 1.0)
                mixture, _ = self._surrogate.believe(query)
            source = "model"
            costs = log_seconds(self._surrogate, query, measured)[0][n:] if per_cost else None
            chosen = int(worth(_part(mixture, n), self._best(query), costs).argmax())
            reason = "highest expected improvement" + (" for its cost" if per_cost else "")
        costs, level = log_seconds(self._surrogate, query, measured)
        row = [n + chosen]
        one = _belief(
            Mixture(mixture.weights, mixture.means[:, row], mixture.variances[:, row]),
            query.scores,
            np.exp(costs[row]) if level else np.full(1, math.nan),
        )
        interval = float(one.low[0]), float(one.high[0])
        return Suggestion(dict(pool[chosen]), float(one.mean[0]), interval, float(one.seconds[0]), source, reason)

    def _best(self, query: Query) -> float:
        """What is to be improved on: the best end of a whole run; of parts, what the best of them promises."""
        n = len(query.observed)
        whole = query.observed[query.fractions[:n] == 1.0]
        if len(whole):
            return float(whole.max())
        codes = np.concatenate([query.codes[:n], query.codes[:n]])
        fractions = np.concatenate([query.fractions[:n], np.ones(n)])
        ends, _ = self._surrogate.believe(replace(query, codes=codes, fractions=fractions))
        return float(ends.mean[n:].max())

    def initial(
        self,
        space: Space,
        count: int,
        *,
        features: Mapping[str, float] | None = None,
        metric: str = "accuracy",
        direction: str = "maximize",
        reference: float | None = None,
        seed: int = 0,
    ) -> tuple[list[Config], str]:
        """Configurations to begin with, all at once: a portfolio of the known tasks.

        Args:
            space: as in `belief`.
            count: how many; fewer where the space has fewer.
            features: as in `belief`.
            metric: as in `belief`.
            direction: as in `belief`.
            reference: as in `belief`.
            seed: of the candidates of a large space, and of the spread that is returned where no known task is alike.

        Returns:
            The configurations, and how they were chosen.
        """
        count = integer("count", count, minimum=1)
        rng = np.random.default_rng(integer("seed", seed, minimum=0))
        pool = space.candidates(rng, CANDIDATES)
        query, _ = self._query(space, pool, [], features, metric, direction, reference, 1.0)
        reason = unlike(self._surrogate, query, 0.0)
        if reason:
            return space.candidates(rng, count), f"spread over the space: {reason}"
        known, values, weights = self._surrogate.values(query)
        chosen: list[int] = []
        for _ in range(min(count, len(pool))):
            left = [row for row in range(len(pool)) if row not in chosen]
            chosen.append(left[next_of_portfolio(known, values[:, chosen + left], weights, len(chosen))])
        return [pool[row] for row in chosen], "a portfolio: each is good in tasks where those before it are not"

    def tune(
        self,
        train: Callable[..., Any] | BatchedTask,
        space: Space,
        n_initial: int = 5,
        task: Any = None,
        *,
        n_more: int = 0,
        metric: str | None = None,
        direction: str | None = None,
        reference: float | None = None,
        budget: float = 1.0,
        stop_below: float = 0.02,
        workers: int = 0,
        output: str | os.PathLike[str] | None = None,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> TuneResult:
        """Runs a few short trainings that known tasks recommend, and says which will be best and what to try next.

        Every run is a record in `output`; called again with the same arguments it trains what is missing. A run that
        raises, or ends with a score that is not finite, is information and nothing else.

        Args:
            train: a function `train(config)` that returns the score, or `train(config, report)` that calls
                `report(fraction, score)` as it goes on and returns when that is False: the run is hopeless then. Or a
                `BatchedTask`, whose runs are one program.
            space: what is searched.
            n_initial: runs that are chosen at once, by what the known tasks have taught.
            task: the training data, as `task_features` takes them, or features. Default: a `BatchedTask`'s own data.
            n_more: runs after them, one at a time, each with the highest expected improvement for its cost.
            metric: name of the score. Default: "accuracy", or what a `BatchedTask` measures.
            direction: "maximize" or "minimize". Default: that of a known metric.
            reference: score of a predictor that has learned nothing. Default: a `BatchedTask`'s own.
            budget: share of a whole training that the runs get, in (0, 1]; the score of a function is then that at
                this share. What is predicted is the end of a whole training.
            stop_below: chance to end best below which a run is stopped; 0 stops none.
            workers: processes for a function, which must be importable then; 0: this one.
            output: folder of the records. Default: a new temporary one.
            seed: of what is random.
            progress: called with lines that say what is done.

        Returns:
            A `TuneResult`: `.best`, `.expected`, `.interval`, and what was observed.

        Raises:
            TypeError, ValueError: a wrong argument, or a folder of other runs.
            RuntimeError: all runs failed.

        Example:
            >>> from metafast.hpo import Predictor, Space
            >>> space = Space(lr=[1e-3, 1e-2, 1e-1], width=[64, 128])
            >>> result = Predictor().tune(lambda config: 1 - (config["lr"] - 0.01) ** 2, space, n_initial=6)
            >>> result.best["lr"]
            0.01
        """
        from metafast.hpo._tune import tune

        return tune(
            self, train, space, n_initial, task, n_more=n_more, metric=metric, direction=direction,
            reference=reference, budget=budget, stop_below=stop_below, workers=workers, output=output, seed=seed,
            progress=progress,
        )  # fmt: skip

    def _query(
        self,
        space: Space,
        candidates: Sequence[Config],
        observed: Sequence[Observation],
        features: Mapping[str, float] | None,
        metric: str,
        direction: str,
        reference: float | None,
        fraction: float,
    ) -> tuple[Query, np.ndarray]:
        """The points, the observed ones first, and the log seconds of these."""
        check_direction(metric, direction, "give the direction of the metric")
        for one in observed:
            space.check(one.config)
            if not 0 < one.fraction <= 1:
                raise ValueError(f"fraction of an observation must be in (0, 1], got {one.fraction}")
        scores = Scores.of(metric, direction, [one.score for one in observed])
        nothing = math.nan if reference is None else float(scores.inward(np.array(float(reference))))
        values = scores.inward(np.array([one.score for one in observed], float))
        values = tame(values, None if math.isnan(nothing) else nothing)
        kept = _kept(values)
        seen = [observed[row] for row in kept]
        axes = axes_of(space)
        codes = encode(axes, [*(one.config for one in seen), *candidates])
        fractions = np.array([*(one.fraction for one in seen), *[fraction] * len(candidates)])
        measured = np.array([math.nan if not one.seconds else math.log(one.seconds / one.fraction) for one in seen])
        return Query(axes, codes, fractions, values[kept], scores, nothing, dict(features or {})), measured


def _tasks_of(sources: Iterable[Any]) -> list[MetaTask]:
    if isinstance(sources, MetaTask | str) or not isinstance(sources, Iterable):
        raise TypeError(f"sources must be a list of tasks or studies, got {type(sources).__name__}; put it into a list")
    tasks: list[MetaTask] = []
    for source in sources:
        if isinstance(source, MetaTask):
            tasks.append(source)
            continue
        from metafast.hpo._studies import to_tasks

        tasks.extend(to_tasks(source))
    if not tasks:
        raise ValueError("sources must have at least one task, got none")
    if len({task.name for task in tasks}) < len(tasks):
        names = [task.name for task in tasks]
        raise ValueError(
            f"tasks must have different names, got {sorted({n for n in names if names.count(n) > 1})} twice"
        )
    return tasks


def _part(mixture: Mixture, first: int) -> Mixture:
    return Mixture(mixture.weights, mixture.means[:, first:], mixture.variances[:, first:])


def _belief(beliefs: Mixture, scores: Scores, seconds: np.ndarray) -> Belief:
    one, two = (scores.outward(beliefs.quantile(level)) for level in _INTERVAL)
    ends = np.minimum(one, two), np.maximum(one, two)
    mean, std = beliefs.mean, beliefs.std
    if scores.kind == "log":  # moments of a ratio may be infinite: the middle, and a spread that fits the interval
        return Belief(scores.outward(mean), (ends[1] - ends[0]) / 3.29, *ends, mean, seconds)
    return Belief(scores.outward(mean), std, *ends, mean, seconds)


def _untried(space: Space, pool: list[Config], observed: Sequence[Observation]) -> list[Config]:
    """Candidates that were not observed; all of them if all were."""
    tried = {space.key(one.config) for one in observed}
    return [config for config in pool if space.key(config) not in tried] or pool


def _kept(values: np.ndarray) -> np.ndarray:
    """Which observations count: all, or the best half and the latest of many."""
    if len(values) <= MOST_OBSERVED:
        return np.arange(len(values))
    best = np.argsort(-values, kind="stable")[: MOST_OBSERVED // 2]
    latest = [row for row in range(len(values) - 1, -1, -1) if row not in set(best.tolist())]
    return np.sort(np.concatenate([best, latest[: MOST_OBSERVED - len(best)]]))
