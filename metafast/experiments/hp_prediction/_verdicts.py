"""Means over tasks, and whether each aim was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metafast.experiments._running import Row
from metafast.experiments._verdict import Verdict
from metafast.experiments.hp_prediction._measures import signed_rank
from metafast.experiments.hp_prediction._methods import METHODS, OURS, RIVALS
from metafast.experiments.hp_prediction._replay import CALIBRATED
from metafast.metrics import mean_interval

NEAR = {0: 0.75, 3: 0.85, 5: 0.92}  # runs to the share of tasks within 5 % of the grid's best
REGRET = 0.06  # after five runs
OF_RANDOM = 0.5
RANK = 0.7
COVERED = (0.85, 0.95)
OF_GRID, OF_TRIALS, TRIALS = 0.01, 0.1, 50
PARAMETERS, MILLISECONDS = 2_000_000, 50.0
P = 0.05
Values = dict[int, float]  # by runs


@dataclass(frozen=True)
class Summary:
    """One method on one suite: means over tasks, of each task over seeds; by runs.

    Args:
        suite: its name.
        method: its name.
        found: regret of the best that was run.
        half: half of its 95 % interval over tasks; NaN for one task.
        told: regret of what it believes is best.
        near: share of tasks and seeds where the best that was run is within 5 % of the grid's best.
        told_near: the same of what it believes is best.
        test: mean test score of what it believes is best, in the metric of each task; NaN where there is none.
        rank: median rank correlation of belief and truth.
        coverage: share of scores inside 90 % intervals.
        trainings: cost in whole trainings.
        of_grid: cost in seconds, as a share of the whole grid's.
        of_trials: the same of 50 trials at random.
        thinking: CPU seconds of the method itself for all its runs.
        course: mean regret after each run, and half of its interval.
        seeds: how many.
        tasks: how many.
    """

    suite: str
    method: str
    found: Values
    half: Values
    told: Values
    near: Values
    told_near: Values
    test: Values
    rank: Values
    coverage: Values
    trainings: Values
    of_grid: Values
    of_trials: Values
    thinking: float
    course: tuple[list[float], list[float]]
    seeds: int
    tasks: int


def summaries(rows: Sequence[Row], grids: Mapping[str, tuple[float, int]]) -> list[Summary]:
    """A summary per suite and method.

    Args:
        rows: from `replay`, with "method".
        grids: task to the seconds of its whole grid, and its configurations.
    """
    made = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["suite"], row["method"]), []).append(row)
    for (suite, method), mine in groups.items():
        looks = mine[0]["looks"]
        found = {k: [by[k] for by in _by_task(mine, "found").values()] for k in looks}
        intervals = {k: mean_interval(values) for k, values in found.items()}
        shares = [np.array(row["seconds"]) / grids[row["task"]][0] for row in mine]
        trials = [np.array(row["seconds"]) / (TRIALS * grids[row["task"]][0] / grids[row["task"]][1]) for row in mine]
        made.append(
            Summary(
                suite,
                method,
                {k: each.mean for k, each in intervals.items()},
                {k: each.half for k, each in intervals.items()},
                _means(mine, "told"),
                _means(mine, "found_near"),
                _means(mine, "told_near"),
                _means(mine, "told_test"),
                rank=_means(mine, "rank", np.nanmedian),
                coverage=_means(mine, "coverage"),
                trainings=_means(mine, "trainings"),
                of_grid=dict(zip(looks, np.mean(shares, 0).tolist(), strict=True)),
                of_trials=dict(zip(looks, np.mean(trials, 0).tolist(), strict=True)),
                thinking=float(np.mean([row["thinking"] for row in mine])),
                course=_course(mine),
                seeds=len({row["seed"] for row in mine}),
                tasks=len(found[looks[0]]),
            )
        )
    return made


def compared(rows: Sequence[Row], suite: str, runs: int) -> dict[str, tuple[float, float]]:
    """Every other method on a suite: how much more regret it has after so many runs, and the p value of that."""
    mine = _of(rows, suite, OURS)
    ours = {task: by[runs] for task, by in _by_task(mine, "found").items() if runs in by}
    made = {}
    for method in METHODS:
        others = _by_task(_of(rows, suite, method), "found")
        common = [task for task in ours if runs in others.get(task, {})]
        if method != OURS and common:
            differences = [others[task][runs] - ours[task] for task in common]
            made[method] = (float(np.mean(differences)), signed_rank(differences))
    return made


def verdicts(found: Sequence[Summary], rows: Sequence[Row], size: Mapping[str, Any], main: str) -> list[Verdict]:
    """The aims, judged on the suite `main` where they name no other."""
    table = {(each.suite, each.method): each for each in found}
    mine, random = table.get((main, OURS)), table.get((main, "random"))
    if mine is None:
        return []
    judged = main == "collected"  # a made-up suite decides nothing
    short = table.get((main, "ours_short"), mine)
    made = [
        Verdict(
            f"Within 5 % of the grid's best on {100 * share:.0f} % of the tasks {after(runs)}",
            _told(judged, mine.near.get(runs), lambda value, share=share: value >= share),
            (f"The best run {_percent(mine.near.get(runs))}" if runs else f"{_percent(mine.near.get(runs))}")
            + f"; the best of {max(runs, 1)} at random {_percent(random.near.get(runs) if random else None)}"
            + (f"; what it believes is best {_percent(mine.told_near.get(runs))}." if runs else "."),
        )
        for runs, share in NEAR.items()
    ]
    at5, random5 = mine.found.get(5), random.found.get(5) if random else None
    made.append(
        Verdict(
            f"Mean regret after 5 runs at most {REGRET:g}, and at most half of random's",
            None if at5 is None or random5 is None or not judged else at5 <= min(REGRET, OF_RANDOM * random5),
            f"{_number(at5)}; random search {_number(random5)}.",
        )
    )
    looks = [runs for runs in (5, 10) if runs in mine.found]
    made += [_against(rows, main, runs, RIVALS, significant=True, judged=judged) for runs in looks]
    for suite in ("taskset", "svm"):
        if (suite, OURS) in table:
            made += [_against(rows, suite, runs, ("tpe", "gp", "gp_table"), False, True) for runs in looks]
    grid, trials = mine.of_grid.get(5), mine.of_trials.get(5)
    made.append(
        Verdict(
            "A recommendation costs at most 1 % of the grid and 10 % of 50 trials at random",
            None if grid is None or trials is None or not judged else grid <= OF_GRID and trials <= OF_TRIALS,
            f"5 runs: {_percent(grid, 2)} of the grid's seconds and {_percent(trials)} of the trials'. 3 runs: "
            f"{_percent(mine.of_grid.get(3), 2)} and {_percent(mine.of_trials.get(3))}. 5 runs cut short: "
            f"{_percent(short.of_grid.get(5), 2)} and {_percent(short.of_trials.get(5))}, with a regret of "
            f"{_number(short.found.get(5))} and within 5 % on {_percent(short.near.get(5))} of the tasks.",
        )
    )
    made.append(
        Verdict(
            f"Median rank correlation over all configurations at least {RANK:g}",
            _told(judged, mine.rank.get(5), lambda value: value >= RANK),
            f"{_number(mine.rank.get(5))} after 5 runs, {_number(mine.rank.get(0))} before the first.",
        )
    )
    covered = {runs: mine.coverage[runs] for runs in CALIBRATED if math.isfinite(mine.coverage.get(runs, math.nan))}
    furthest = max(covered.values(), key=lambda value: abs(value - sum(COVERED) / 2), default=None)
    made.append(
        Verdict(
            "Coverage of the 90 % interval from 85 to 95 %",
            _told(judged, furthest, lambda value: COVERED[0] <= value <= COVERED[1]),
            ", ".join(f"{_percent(value)} {after(runs)}" for runs, value in covered.items()) + ".",
        )
    )
    if size:
        numbers, time = size["numbers"], size["milliseconds"]
        made.append(
            Verdict(
                "At most 2 M parameters, and 50 ms for all configurations on one core",
                None if not judged else (numbers or size["bytes"] / 4) <= PARAMETERS and time <= MILLISECONDS,
                f"{numbers or size['bytes'] // 4:,} numbers ({size['bytes'] / 1e6:.1f} MB), {time:.0f} ms for "
                f"{size['candidates']} configurations.",
            )
        )
    return made


def after(runs: int) -> str:
    """In words."""
    return "before the first run" if runs == 0 else f"after {runs} run{'s' * (runs > 1)}"


def _against(
    rows: Sequence[Row], suite: str, runs: int, rivals: Sequence[str], significant: bool, judged: bool
) -> Verdict:
    found = {name: each for name, each in compared(rows, suite, runs).items() if name in rivals}
    better = [gain > 0 and (p < P or not significant) for gain, p in found.values()]
    names = {"taskset": "TaskSet", "svm": "the SVM set"}
    where = f" on {names[suite]}" if suite in names else ""
    return Verdict(
        f"Regret{where} {after(runs)} below {', '.join(METHODS[name].title for name in found)}"
        + (" (signed-rank test, two-sided, 5 %)" if significant else ""),
        all(better) if better and judged else None,
        ", ".join(f"{METHODS[name].title} {gain:+.3f} (p = {p:.2g})" for name, (gain, p) in found.items()) + ".",
    )


def _told(judged: bool, value: float | None, test: Any) -> bool | None:
    return None if value is None or not math.isfinite(value) or not judged else bool(test(value))


def _by_task(rows: Sequence[Row], name: str) -> dict[str, dict[int, float]]:
    """Task to runs to the mean over seeds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    return {
        task: dict(zip(mine[0]["looks"], np.mean([row[name] for row in mine], 0).tolist(), strict=True))
        for task, mine in groups.items()
    }


def _means(rows: Sequence[Row], name: str, mean: Any = np.nanmean) -> Values:
    """By runs, without what is not known."""
    made = {}
    for at, runs in enumerate(rows[0]["looks"]):
        values = np.array([row[name][at] for row in rows], dtype=np.float64)
        made[runs] = float(mean(values)) if np.isfinite(values).any() else math.nan
    return made


def _course(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    groups: dict[str, list[list[float]]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row["course"])
    table = np.array([np.mean(mine, 0) for mine in groups.values()])  # [tasks, runs]
    intervals = [mean_interval(column) for column in table.T] if table.size else []
    return [each.mean for each in intervals], [each.half for each in intervals]


def _of(rows: Sequence[Row], suite: str, method: str) -> list[Row]:
    return [row for row in rows if (row["suite"], row["method"]) == (suite, method)]


def _percent(value: float | None, digits: int = 1) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def _number(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.3f}"
