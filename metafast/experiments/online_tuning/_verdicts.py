"""Means over seeds, and whether each aim was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metafast.experiments.online_tuning._plan import METHODS, Row
from metafast.experiments.online_tuning._recipes import FEEDBACK
from metafast.experiments.online_tuning._tasks import TASKS

WORSE = 1.0  # percent of the static result that an adaptive one may lose
BEHIND = 1.0  # points of accuracy, or percent of an error, that it may be behind a random search
SHARE = 0.1  # of the search's cost


@dataclass(frozen=True)
class Summary:
    """One method in one experiment, over seeds.

    Args:
        experiment: its name.
        method: its name.
        mean, low, high: of each metric on test data, by name.
        gradients: examples whose gradient one result took, with all trials of a search.
        seconds: CPU time of the same.
        cost: `gradients` in static trainings.
        trials: of a search; 0 else.
        values: hyperparameters that it was trained with; where an adaptive one started.
        seeds: how many.
    """

    experiment: str
    method: str
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    gradients: float
    seconds: float
    cost: float
    trials: int
    values: dict[str, float]
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """One aim for one kind of feedback.

    Args:
        aim: what was to be reached.
        feedback: "batch" or "epoch".
        reached: None where experiments are missing that decide it.
        text: the numbers.
    """

    aim: str
    feedback: str
    reached: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "reached", False: "missed", None: "not judged (an experiment is missing)"}[self.reached]
        return f"{self.aim} (feedback by {self.feedback}): {word}. {self.text}"


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """The rows of one plan, a summary per experiment and method."""
    made = []
    for name in dict.fromkeys(row["experiment"] for row in rows):
        static = _mean([row["gradients"] for row in rows if (row["experiment"], row["method"]) == (name, "static")])
        for method in METHODS:
            mine = [row for row in rows if (row["experiment"], row["method"]) == (name, method)]
            metrics = {metric: [row[f"test_{metric}"] for row in mine] for metric in TASKS[name].metrics}
            gradients = _mean([row["gradients"] for row in mine])
            made.append(
                Summary(
                    name,
                    method,
                    {metric: _mean(values) for metric, values in metrics.items()},
                    {metric: min(values) for metric, values in metrics.items()},
                    {metric: max(values) for metric, values in metrics.items()},
                    gradients,
                    _mean([row["seconds"] for row in mine]),
                    gradients / static,
                    mine[0]["trials"],
                    mine[0]["values"],
                    len(mine),
                )
            )
    return made


def gain(name: str, mine: float, other: float, *, points: bool) -> float:
    """How much better one result is than another: in percent of the other, or `points` for accuracies."""
    task = TASKS[name]
    difference = mine - other if task.better == "higher" else other - mine
    return difference if points and task.better == "higher" else 100 * difference / other


def verdicts(found: Sequence[Summary]) -> list[Verdict]:
    """The three aims, for either kind of feedback, by the first metric of each experiment."""
    table = {(each.experiment, each.method): each for each in found}
    names = list(dict.fromkeys(each.experiment for each in found))
    complete = set(names) == set(TASKS)
    made = []
    for feedback in FEEDBACK:
        mine = {name: table[name, feedback] for name in names}
        static = {name: _gain(mine[name], table[name, "static"], points=False) for name in names}
        search = {name: _gain(mine[name], table[name, "random"], points=True) for name in names}
        shares = {name: mine[name].gradients / table[name, "random"].gradients for name in names}
        better = sum(value > 0 for value in static.values())
        numbers = _listed({name: f"{value:+.1f} %" for name, value in static.items()})
        distances = {
            name: f"{search[name]:+.1f} {unit(name)} at {100 * shares[name]:.1f} % of the cost" for name in names
        }
        trials = table[names[0], "random"].trials
        # aim, whether it is reached so far, what another experiment cannot change any more, numbers
        aims = [
            (
                f"Never worse than static by more than {WORSE:g} %",
                all(value >= -WORSE for value in static.values()),
                False,
                numbers,
            ),
            ("Better than static in at least 2 of 3 experiments", better >= 2, True, f"Better in {better}: {numbers}"),
            (
                f"Within 1 point of a random search of {trials} trials at {100 * SHARE:g} % of its cost",
                all(search[name] >= -BEHIND and shares[name] <= SHARE for name in names),
                False,
                _listed(distances),
            ),
        ]
        made += [
            Verdict(aim, feedback, reached if complete or reached == final else None, text)
            for aim, reached, final, text in aims
        ]
    return made


def _gain(mine: Summary, other: Summary, *, points: bool) -> float:
    metric = TASKS[mine.experiment].metrics[0]
    return gain(mine.experiment, mine.mean[metric], other.mean[metric], points=points)


def unit(name: str) -> str:
    """Of a difference to a search."""
    return "points" if TASKS[name].better == "higher" else "%"


def _listed(texts: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in texts.items()) + "."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
