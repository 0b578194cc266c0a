"""A search replayed on a table: what it ran, what that cost, and how good it was after so many runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metafast.experiments.hp_prediction._measures import calibration, coverage, spearman
from metafast.experiments.hp_prediction._searchers import Beliefs, Searcher
from metafast.experiments.hp_prediction._tables import Table

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
LOOKS = (0, 1, 3, 5, 10, 25)  # runs after which all is measured
CALIBRATED = (0, 1, 3, 5)
_POINTS = 40  # of a plot of predicted and true scores

Make = Callable[[Table, Sequence[Table], int], Searcher]


def replay(make: Make, table: Table, sources: Sequence[Table], seed: int, runs: int) -> Row:
    """One search on one task.

    Args:
        make: the search.
        table: the task.
        sources: tasks of other data sets.
        seed: of the search.
        runs: how many it gets.

    Returns:
        Plain data. Lists with one value per look: `found` is the regret of the best that was run (before the first run:
        of what it would run first), `told` that of the configuration which the search believes is best, run or not (the
        best run where it believes nothing), each with `_near` (within 5 % of the grid's best), `_score` and `_test`;
        `trainings` and `seconds` are the cost until then.
    """
    clock = 0.0
    began = time.thread_time()
    searcher = make(table, sources, seed)
    clock += time.thread_time() - began
    looks = [each for each in LOOKS if each <= runs]
    row: Row = {"suite": table.suite, "dataset": table.task.dataset, "task": table.task.name, "seed": seed}
    measured: dict[str, list[Any]] = {name: [] for name in (
        "found", "found_near", "found_score", "found_test", "told", "told_near", "told_score", "told_test",
        "trainings", "seconds", "rank", "coverage", "calibration",
    )}  # fmt: skip
    spent, paid = 0.0, 0.0
    first: int | None = None
    for count in range(runs + 1):
        if count in looks:
            began = time.thread_time()
            told = searcher.recommend()
            beliefs = searcher.belief() if count in CALIBRATED or count == looks[-1] else None
            clock += time.thread_time() - began
            best = searcher.best_run()
            if best is None:
                if told is None:
                    first = searcher.ask()
                    told = first
                best = told
            _note(measured, table, "found", best)
            _note(measured, table, "told", best if told is None else told)
            measured["trainings"].append(spent)
            measured["seconds"].append(paid)
            _judge(measured, table, beliefs, count)
            if (
                count == max(set(looks) & set(CALIBRATED))
                and seed == 0
                and beliefs is not None
                and np.isfinite(beliefs.mean).all()
            ):
                row["points"] = _points(table, beliefs)
        if count < runs:
            began = time.thread_time()
            chosen = searcher.ask() if first is None else first
            first = None
            searcher.tell(chosen, float(table.merit[chosen]))
            clock += time.thread_time() - began
            spent += searcher.fraction
            paid += float(table.seconds[chosen]) * searcher.fraction
    course = np.minimum.accumulate(table.regret[searcher.tried]).tolist() if searcher.fraction == 1.0 else []
    return {**row, "looks": looks, "tried": searcher.tried, "course": course, "thinking": clock, **measured}


def _note(measured: dict[str, list[Any]], table: Table, name: str, at: int) -> None:
    measured[name].append(float(table.regret[at]))
    measured[f"{name}_near"].append(bool(table.near[at]))
    measured[f"{name}_score"].append(table.score(float(table.merit[at])))
    measured[f"{name}_test"].append(table.test_of(at))


def _judge(measured: dict[str, list[Any]], table: Table, beliefs: Beliefs | None, count: int) -> None:
    floor = float(table.merit.min())
    if beliefs is None:
        for name in ("rank", "coverage"):
            measured[name].append(math.nan)
        measured["calibration"].append(None)
        return
    measured["rank"].append(spearman(beliefs.rank, table.merit))
    known = bool(np.isfinite(beliefs.low).all())
    measured["coverage"].append(coverage(table.merit, beliefs.low, beliefs.high, floor) if known else math.nan)
    measured["calibration"].append(calibration(table.merit, beliefs.mean, beliefs.std, floor) if known else None)


def _points(table: Table, beliefs: Beliefs) -> list[list[float]]:
    """Predicted and true scores of some configurations, as regrets."""
    width = (table.best - float(table.merit.min())) or 1.0
    rows = np.random.default_rng(0).permutation(len(table.merit))[:_POINTS]
    guessed = (table.best - np.maximum(beliefs.mean, float(table.merit.min()))) / width
    return [[round(float(guessed[row]), 4), round(float(table.regret[row]), 4)] for row in rows]
