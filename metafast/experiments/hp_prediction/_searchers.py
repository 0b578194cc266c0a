"""Searches over the candidates of a table, one run at a time: at random, by processes, by portfolios."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metafast.experiments.hp_prediction._gp import (
    Fitted,
    ensemble_weights,
    expected_improvement,
    fit,
    left_out,
)
from metafast.experiments.hp_prediction._measures import mid_ranks
from metafast.experiments.hp_prediction._tables import Table

Array = np.ndarray[Any, Any]
LEARNED = 200  # configurations of a source that its process knows
FIRST = 3  # observations from which on processes are weighed, and a plain one is believed
_processes: dict[tuple[str, int], Fitted] = {}  # of sources, which the replays of a process of the machine share


@dataclass(frozen=True)
class Beliefs:
    """What a search believes of all candidates, in merits.

    Args:
        rank: what they are ranked by, higher is better.
        mean: `[N]`.
        std: `[N]`; NaN: it has no idea.
        low, high: ends of the 90 % interval.
    """

    rank: Array
    mean: Array
    std: Array
    low: Array
    high: Array


class Searcher:
    """A search, as it is replayed.

    Args:
        table: the task; a search sees its candidates, and the merits that it asked for.
        sources: tasks that were searched before.
        seed: of what it draws.
    """

    fraction = 1.0  # of the budget that each run gets

    def __init__(self, table: Table, sources: Sequence[Table], seed: int) -> None:
        self.table, self.sources, self.seed = table, sources, seed
        self.drawn = zlib.crc32(f"{table.task.name} {seed}".encode())  # tasks with one seed draw different things
        self.rng = np.random.default_rng(self.drawn)
        self.tried: list[int] = []
        self.merits: list[float] = []

    def ask(self) -> int:
        """The candidate to run next, which was not run before."""
        raise NotImplementedError

    def tell(self, row: int, merit: float) -> None:
        """What came of it."""
        self.tried.append(row)
        self.merits.append(merit)

    def recommend(self) -> int | None:
        """The candidate that it believes is best, run or not; None: it believes nothing beyond what it has run."""
        return None

    def best_run(self) -> int | None:
        """The best of what was run; None: nothing was."""
        return self.tried[int(np.argmax(self.merits))] if self.tried else None

    def belief(self) -> Beliefs | None:
        """Of all candidates; None: it has none."""
        return None

    def untried(self) -> Array:
        """Rows that are left."""
        left = np.ones(len(self.table.merit), dtype=bool)
        left[self.tried] = False
        return np.flatnonzero(left)


class RandomSearch(Searcher):
    """Without repetition."""

    def ask(self) -> int:
        """One of those that are left."""
        return int(self.rng.choice(self.untried()))


class ZeroShot(Searcher):
    """A list of configurations that complement each other on the tasks that were searched before; it never learns.

    Each next configuration is the one that lowers the mean, over tasks, of the best rank so far the most; when nothing
    lowers it any more, the list of what is left begins anew.

    Source:
        M. Wistuba, N. Schilling, L. Schmidt-Thieme, Sequential model-free hyperparameter tuning, ICDM 2015; the rule of
        Syne Tune's ZeroShotTransfer, whose order it has.
    """

    def __init__(self, table: Table, sources: Sequence[Table], seed: int) -> None:
        super().__init__(table, sources, seed)
        self.scores = np.stack([on_candidates(source, table) for source in sources])
        self.ranks: Array = self.scores
        self._begin()

    def ask(self) -> int:
        """The next of the list."""
        left = self.untried()
        return int(left[self.ranks[:, left].mean(0).argmin()])

    def tell(self, row: int, merit: float) -> None:
        """From now on a configuration counts where it is better than this."""
        super().tell(row, merit)
        self.ranks = np.minimum(self.ranks, self.ranks[:, [row]])
        left = self.untried()
        if len(left) and (self.ranks[:, left] == self.ranks[:, left[:1]]).all():
            self._begin()

    def recommend(self) -> int | None:
        """The first of the list before anything was run, then the best that was run."""
        return None if self.tried else self.ask()

    def _begin(self) -> None:
        left = self.untried()
        self.ranks = np.full(self.scores.shape, np.inf)
        self.ranks[:, left] = np.stack([mid_ranks(-row) for row in self.scores[:, left]])


class PlainGP(Searcher):
    """A Gaussian process that chooses among the candidates themselves, after three at random."""

    def __init__(self, table: Table, sources: Sequence[Table], seed: int) -> None:
        super().__init__(table, sources, seed)
        self.fitted: Fitted | None = None

    def ask(self) -> int:
        """The candidate with the largest expected improvement."""
        left = self.untried()
        if self.fitted is None or len(self.tried) < FIRST:
            return int(self.rng.choice(left))
        mean, std = self._posterior()
        best = max(mean[self.tried])
        return int(left[expected_improvement(mean[left], std[left], best).argmax()])

    def tell(self, row: int, merit: float) -> None:
        """Fits it again."""
        super().tell(row, merit)
        start = None if self.fitted is None else self.fitted.raw
        steps = 40 if len(self.tried) <= FIRST else 10  # the hyperparameters of before are nearly right
        self.fitted = fit(self.table.codes, self.tried, np.array(self.merits), start, steps)

    def recommend(self) -> int | None:
        """The highest mean."""
        return None if len(self.tried) < FIRST else int(self._posterior()[0].argmax())

    def belief(self) -> Beliefs | None:
        """From three runs on."""
        if self.fitted is None or len(self.tried) < FIRST:
            return None
        known = np.array(self.merits)
        scale = float(known.std()) or 1.0
        mean = known.mean() + scale * self.fitted.mean
        std = scale * np.sqrt(self.fitted.std**2 + float(self.fitted.raw[-1].exp()))
        return Beliefs(mean, mean, std, mean - 1.645 * std, mean + 1.645 * std)

    def _posterior(self) -> tuple[Array, Array]:
        assert self.fitted is not None
        return self.fitted.mean, self.fitted.std


class RGPE(PlainGP):
    """An ensemble of the processes of all source tasks and the task's own, weighted by how well they rank what was run.

    Source:
        M. Feurer, B. Letham, E. Bakshy, Scalable meta-learning for Bayesian optimization, arXiv 1802.02219.
    """

    def __init__(self, table: Table, sources: Sequence[Table], seed: int) -> None:
        super().__init__(table, sources, seed)
        self.processes = [_process(source, table) for source in sources]
        self.weights = ensemble_weights(self.processes, None, [], np.zeros(0), self.rng)

    def ask(self) -> int:
        """The candidate with the largest expected improvement; the first: with the highest mean."""
        left, (mean, std) = self.untried(), self._posterior()
        if not self.tried:
            return int(left[mean[left].argmax()])
        return int(left[expected_improvement(mean[left], std[left], max(mean[self.tried])).argmax()])

    def tell(self, row: int, merit: float) -> None:
        """Fits the task's own process, and weighs all."""
        super().tell(row, merit)
        assert self.fitted is not None
        if len(self.tried) >= FIRST:
            target = left_out(self.fitted, self.table.codes, self.tried, np.array(self.merits))
            self.weights = ensemble_weights(self.processes, target, self.tried, np.array(self.merits), self.rng)

    def recommend(self) -> int | None:
        """The highest mean."""
        return int(self._posterior()[0].argmax())

    def belief(self) -> Beliefs | None:
        """A ranking; its variance is that of no distribution of scores."""
        mean, nothing = self._posterior()[0], np.full(len(self.table.merit), np.nan)
        return Beliefs(mean, nothing, nothing, nothing, nothing)

    def _posterior(self) -> tuple[Array, Array]:
        members = [*self.processes, *([] if self.fitted is None else [self.fitted])]
        weights = self.weights[: len(members)]
        mean = sum(w * member.mean for w, member in zip(weights, members, strict=True) if w > 0)
        variance = sum(w**2 * member.std**2 for w, member in zip(weights, members, strict=True) if w > 0)
        return np.asarray(mean), np.sqrt(np.asarray(variance))


def on_candidates(source: Table, table: Table) -> Array:
    """`[N]`, the source's merit of each candidate of the table; of the nearest one where it has not that."""
    rows = [source.place.get(table.task.space.key(config), -1) for config in table.task.configs]
    if -1 in rows:
        apart = ((table.codes[:, None] - source.codes[None]) ** 2).sum(-1)
        rows = [int(apart[i].argmin()) if row < 0 else row for i, row in enumerate(rows)]
    found: Array = source.merit[rows]
    return found


def _process(source: Table, table: Table) -> Fitted:
    """The source's process at the candidates of the table."""
    key = (source.task.name, hash(table.codes.tobytes()))
    if key not in _processes:
        rng = np.random.default_rng(0)
        known = np.sort(rng.permutation(len(source.merit))[:LEARNED])
        codes = np.concatenate([table.codes, source.codes[known]])
        count = len(table.codes)
        fitted = fit(codes, range(count, count + len(known)), source.merit[known])
        _processes[key] = fitted.first(count)
    return _processes[key]
