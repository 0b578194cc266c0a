"""Means over seeds, and whether each aim was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metafast.experiments._running import Row
from metafast.experiments._verdict import Verdict as BaseVerdict
from metafast.experiments.lr_adaptation._methods import METHODS
from metafast.experiments.lr_adaptation._recipes import ADAPTED, HELD_OUT, RATES, SWEEP
from metafast.metrics import mean_interval, steps_to_threshold

MEASURES = ("accuracy", "precision", "recall", "f1")
POINT = 1.0  # of accuracy in percent, that a result may be behind
SHARE = 0.8  # of the held-out pairs
OF_BEST = 0.95  # of the best validation accuracy of the fixed rate: the threshold


@dataclass(frozen=True)
class Summary:
    """One method on one pair, over seeds.

    Args:
        pair: its name.
        method: its name.
        mean: of each measure on test data, in percent.
        half: half of its 95 % confidence interval; NaN for one seed.
        accuracies: on test data, one per seed.
        to_threshold: steps until validation accuracy was at the threshold, one per seed; None: never.
        epochs: the mean of the same in passes over the training data; None where a seed never was.
        seconds: CPU time of the steps of a training.
        overhead: of a step, in percent of the fixed rate's; the seed that was least disturbed.
        search_seconds: CPU time of the grid or of the adaptation that came before.
        rate: where the training started.
        final_rate: the mean of effective rates at its end.
        events: how often a watchdog stepped in, all seeds together.
        seeds: how many.
    """

    pair: str
    method: str
    mean: dict[str, float]
    half: dict[str, float]
    accuracies: list[float]
    to_threshold: list[int | None]
    epochs: float | None
    seconds: float
    overhead: float
    search_seconds: float
    rate: float
    final_rate: float
    events: int
    seeds: int


@dataclass(frozen=True)
class Sweep:
    """Starting rates on one pair.

    Args:
        pair: its name.
        accuracy: method to starting rate to test accuracy in percent, the mean over seeds.
        best_rate: the fixed rate that is best on validation data.
        best: its test accuracy.
        within: method to the number of rates that end at most a point below.
        needed: how many the controller must.
    """

    pair: str
    accuracy: dict[str, dict[float, float]]
    best_rate: float
    best: float
    within: dict[str, int]
    needed: int


class Verdict(BaseVerdict):
    """One aim."""

    unjudged = "not judged (pairs are missing)"


def thresholds(rows: Sequence[Row]) -> dict[str, float]:
    """Of each pair: 95 % of the best validation accuracy that the fixed rate reaches, mean over seeds."""
    made = {}
    for pair in dict.fromkeys(row["pair"] for row in rows):
        best = [max(value for _, value in row["looks"]) for row in _of(rows, pair, "fixed")]
        made[pair] = OF_BEST * _mean(best)
    return made


def summaries(rows: Sequence[Row], examples: Mapping[str, int], batch_size: Mapping[str, int]) -> list[Summary]:
    """The rows of one plan, a summary per pair and method.

    Args:
        rows: from `Plan.rows`.
        examples: training examples of each pair.
        batch_size: of each pair.
    """
    made = []
    levels = thresholds(rows)
    for pair, level in levels.items():
        plain = _step_seconds(_of(rows, pair, "fixed"))
        for method in METHODS:
            mine = _of(rows, pair, method)
            if not mine:
                continue
            found = {name: mean_interval([100 * row[f"test_{name}"] for row in mine]) for name in MEASURES}
            steps = [_to_threshold(row, level) for row in mine]
            reached = [step for step in steps if step is not None]
            epochs = _mean(reached) * batch_size[pair] / examples[pair] if len(reached) == len(steps) else None
            made.append(
                Summary(
                    pair=pair,
                    method=method,
                    mean={name: each.mean for name, each in found.items()},
                    half={name: each.half for name, each in found.items()},
                    accuracies=[100 * row["test_accuracy"] for row in mine],
                    to_threshold=steps,
                    epochs=epochs,
                    seconds=_mean([row["seconds"] for row in mine]),
                    overhead=100 * (_step_seconds(mine) / plain - 1),
                    search_seconds=mine[0]["search_seconds"],
                    rate=mine[0]["rate"],
                    final_rate=_mean([_mean(row["final_rate"]) for row in mine]),
                    events=sum(len(row["events"]) for row in mine),
                    seeds=len(mine),
                )
            )
    return made


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """The rows of the starting rates, one summary per pair."""
    made = []
    for pair in dict.fromkeys(row["pair"] for row in rows):

        def table(key: str, method: str, pair: str = pair) -> dict[float, float]:
            mine = _of(rows, pair, method)
            return {rate: 100 * _mean([row[key] for row in mine if row["rate"] == rate]) for rate in RATES}

        accuracy = {method: table("test_accuracy", method) for method in ("fixed", "controller")}
        validation = table("val_accuracy", "fixed")
        best_rate = max(validation, key=validation.__getitem__)
        best = accuracy["fixed"][best_rate]
        within = {method: sum(value >= best - POINT for value in row.values()) for method, row in accuracy.items()}
        made.append(Sweep(pair, accuracy, best_rate, best, within, SWEEP[pair]))
    return made


def verdicts(found: Sequence[Summary], swept: Sequence[Sweep], held_out: Mapping[str, bool]) -> list[Verdict]:
    """The aims, by mean test accuracy and by steps.

    Args:
        found: from `summaries`.
        swept: from `sweeps`.
        held_out: whether meta-training saw neither data nor model of a pair; one that it saw counts for nothing.
    """
    table = {(each.pair, each.method): each for each in found}
    names = [name for name in HELD_OUT if (name, "controller") in table and held_out[name]]
    made = [verdict for method in ("controller", "layers") for verdict in _against_fixed(table, names, method)]
    by_pair = {each.pair: each for each in swept}
    for name, needed in SWEEP.items():
        mine = by_pair.get(name)
        text = "" if mine is None else (
            f"Controller {mine.within['controller']}, fixed {mine.within['fixed']}; the best fixed rate, "
            f"{mine.best_rate:g}, ends at {mine.best:.1f}."
        )  # fmt: skip
        reached = None if mine is None else mine.within["controller"] >= needed
        made.append(
            Verdict(f"{name}: {needed} of 7 starting rates within a point of the best fixed rate", reached, text)
        )
    judged = [name for name in ADAPTED if name in names and (name, "adapted") in table]
    adapted = {name: _ahead(table, name, "adapted", "controller") for name in judged}
    gained = sum(value > 1e-6 for value in adapted.values())  # means of the same numbers differ in the last bit
    made.append(
        Verdict(
            "Adapted by 5 runs better than unadapted on at least 4 of 5 held-out pairs",
            _judged(gained, len(judged), len(ADAPTED), len(ADAPTED) - 1),
            f"On {gained} of {len(judged)}: {_listed(adapted)}",
        )
    )
    return made


def _against_fixed(table: Mapping[tuple[str, str], Summary], names: Sequence[str], method: str) -> list[Verdict]:
    """The three aims that a controller is held to; with a rate for each tensor they are told beside the others."""
    many = math.ceil(SHARE * len(HELD_OUT))
    who = "" if method == "controller" else ", with a rate for each tensor"
    names = [name for name in names if (name, method) in table]
    fixed = {name: _ahead(table, name, method, "fixed") for name in names}
    grid = {name: _ahead(table, name, method, "grid") for name in names}
    close = [name for name in names if fixed[name] >= -_standard_error(table, name, method, "fixed")]
    quick = {name: (_steps(table[name, method]), _steps(table[name, "fixed"])) for name in names}
    faster = sum(mine < other for mine, other in quick.values())
    better = sum(value >= 0 for value in fixed.values())
    near = sum(value >= -POINT for value in grid.values())
    return [
        Verdict(
            f"At least the accuracy of Adam at 0.001 on every held-out pair{who}",
            _judged(better, len(names), len(HELD_OUT), len(HELD_OUT)),
            f"On {better} of {len(names)}, within one standard error on {len(close)}: {_listed(fixed)}",
        ),
        Verdict(
            f"Within {POINT:g} point of the best of 7 rates on at least {100 * SHARE:g} % of them{who}",
            _judged(near, len(names), len(HELD_OUT), many),
            f"On {near} of {len(names)}: {_listed(grid)}",
        ),
        Verdict(
            f"Fewer steps to the threshold than Adam at 0.001 on at least {100 * SHARE:g} % of them{who}",
            _judged(faster, len(names), len(HELD_OUT), many),
            f"On {faster} of {len(names)}: "
            + ", ".join(f"{name} {_told(mine)} against {_told(other)}" for name, (mine, other) in quick.items())
            + ".",
        ),
    ]


def winners(found: Sequence[Summary]) -> dict[str, dict[str, float]]:
    """Pair to methods that are better than the controller, and by how many points."""
    table = {(each.pair, each.method): each for each in found}
    made: dict[str, dict[str, float]] = {}
    for pair, method in table:
        if (pair, "controller") in table and method not in ("controller", "layers", "adapted"):
            ahead = _ahead(table, pair, method, "controller")
            if ahead > 0:
                made.setdefault(pair, {})[method] = ahead
    return made


def _ahead(table: Mapping[tuple[str, str], Summary], pair: str, method: str, other: str) -> float:
    return table[pair, method].mean["accuracy"] - table[pair, other].mean["accuracy"]


def _standard_error(table: Mapping[tuple[str, str], Summary], pair: str, method: str, other: str) -> float:
    """Of the mean difference, whose seeds are paired."""
    both = zip(table[pair, method].accuracies, table[pair, other].accuracies, strict=True)
    differences = [mine - theirs for mine, theirs in both]
    if len(differences) < 2:
        return 0.0
    centre = _mean(differences)
    variance = sum((each - centre) ** 2 for each in differences) / (len(differences) - 1)
    return math.sqrt(variance / len(differences))


def _step_seconds(rows: Sequence[Row]) -> float:
    """CPU time of a step in the seed where the machine's other work disturbed it least."""
    return min(row["seconds"] / row["steps"] for row in rows)


def _steps(summary: Summary) -> float:
    """Mean steps to the threshold; infinite where a seed never was there."""
    return _mean([math.inf if step is None else step for step in summary.to_threshold])


def _judged(reached: int, judged: int, total: int, needed: int) -> bool | None:
    """What the pairs that are missing cannot change any more, else None."""
    if reached >= needed:
        return True
    return False if reached + total - judged < needed else None


def _to_threshold(row: Row, level: float) -> int | None:
    steps, values = zip(*row["looks"], strict=True)
    return steps_to_threshold(steps, values, level)


def _told(steps: float) -> str:
    return f"{steps:.0f}" if math.isfinite(steps) else "never (a seed)"


def _listed(points: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:+.2f}" for name, value in points.items()) + "."


def _of(rows: Sequence[Row], pair: str, method: str) -> list[Row]:
    return [row for row in rows if (row["pair"], row["method"]) == (pair, method)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
