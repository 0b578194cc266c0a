"""The surrogate: a Gaussian process whose mean and covariance are those of tasks that were searched before.

At a point, each known task has a value (interpolated on its own table, `_known.py`). Their weighted mean is the prior
mean; their weighted products are the prior covariance, so that an observation moves all that it moved together with in
other tasks; what is new in a task is a Gaussian process of its own over the space. A predictor that has learned nothing
is one more point, whose score is often known before the first run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metafast.hpo._encode import Axis, distances, matern
from metafast.hpo._known import Family, Known, at
from metafast.hpo._posterior import Grid, Joint, Mixture, condition
from metafast.hpo._scores import SHARES, Scores

_SCALES = 8
_REACH = 2.0  # standard deviations of the log scale that its grid covers
_WIDER = 3.0  # tasks' worth of doubt about centre and scale, where few tasks tell them
_REFERENCE_NOISE = 0.05
_LEAST_OVERLAP = 0.05
_SHARE_CENTRE = 0.6, 0.4  # of accuracies, where no task tells: mean and standard deviation of the offset
_SHARE_SCALE = math.log(0.15), 0.7  # and of the log scale


@dataclass(frozen=True)
class Settings:
    """What `tuned` finds by leaving tasks out.

    Args:
        length: of the interpolation between known configurations, in ranges.
        smooth: noise variance of it.
        strength: of the covariance that other tasks teach.
        new_length: of what is new, in ranges times the root of the number of hyperparameters.
        local: how much more that is where known tasks differ, in [0, 1].
        noise: variance of a measurement.
        novelties: shares of what is new that are tried.
        alike: weight of a task by its features, in [0, 1]; 0: features are not looked at.
        alike_length: how far features reach, in standard deviations.
        trust: observations that settle scale and novelty at most.
        portfolio: first runs that are chosen by the known tasks alone.
        early: over how many halvings of the budget what is new stays the same.
    """

    length: float = 0.3
    smooth: float = 0.02
    strength: float = 0.8
    new_length: float = 0.14
    local: float = 0.9
    noise: float = 0.02
    novelties: tuple[float, ...] = (0.05, 0.15, 0.5, 1.5)
    alike: float = 0.9
    alike_length: float = 0.8
    early: float = 2.0
    trust: float = 1.5
    portfolio: int = 3


@dataclass(frozen=True)
class Query:
    """Points of a space, the first n of which were observed.

    Args:
        axes: of the space, by canonical name.
        codes: `[M, H]`.
        fractions: `[M]`, of the budget.
        observed: `[n]`, as the model sees scores.
        scores: how these are read.
        reference: of a predictor that has learned nothing; NaN: not known.
        features: of the task.
    """

    axes: dict[str, Axis]
    codes: np.ndarray
    fractions: np.ndarray
    observed: np.ndarray
    scores: Scores
    reference: float
    features: Mapping[str, float]


class Surrogate:
    """Beliefs about a task from those that are known.

    Args:
        families: what is known.
        settings: of the model.
    """

    def __init__(self, families: Sequence[Family], settings: Settings = Settings()) -> None:
        self.families = list(families)
        self.settings = settings
        self._recent: tuple[Query | None, dict[int, tuple[np.ndarray, np.ndarray]]] = (None, {})

    def without(self, datasets: set[str]) -> Surrogate:
        """The same, knowing nothing of some data sets; nothing that was computed is lost."""
        kept = []
        for family in self.families:
            tasks = [task for task in family.tasks if task.dataset not in datasets]
            if tasks:
                kept.append(replace(family, tasks=tasks))
        return Surrogate(kept, self.settings)

    def believe(self, query: Query, *, blank: bool = False) -> tuple[Mixture, float]:
        """Beliefs at all points, and the log density of what was observed, given the reference.

        Args:
            query: the points.
            blank: whether to forget what known tasks say of configurations; their centres and scales stay.
        """
        known, weights, shares = self._weighted(query)
        noise = np.full(len(query.observed), self.settings.noise)
        grid = self._grid(query, [task for _, task in known], weights)
        if blank or not known:
            joint = self._joint(query, None, weights, shares)
            return condition(
                replace(joint, noise=noise), grid, query.observed, self.settings.noise, self.settings.trust
            )
        made = self._made(query, known)
        joint = replace(self._joint(query, made, weights, shares), noise=noise)
        observed, first = query.observed, 0
        told = np.array([task.reference for _, task in known])
        if math.isfinite(query.reference) and np.isfinite(told).any():
            joint = self._with_reference(joint, made[0], weights, told)
            observed, first = np.concatenate([[query.reference], observed]), 1
        mixture, evidence = condition(joint, grid, observed, self.settings.noise, self.settings.trust)
        if first:
            evidence -= condition(_first_alone(joint), grid, observed[:1], self.settings.noise)[1]
        return Mixture(mixture.weights, mixture.means[:, first:], mixture.variances[:, first:]), evidence

    def values(self, query: Query) -> tuple[list[Known], np.ndarray, np.ndarray]:
        """The known tasks, what each has at the points, `[T, M]`, and how much each counts, `[T]`."""
        known, weights, _ = self._weighted(query)
        return [task for _, task in known], self._made(query, known)[0], weights

    def costs(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        """What each known task whose cost is known would take at the points, `[T, M]` log seconds without their mean,
        and the tasks' weights `[T]`."""
        known, weights, _ = self._weighted(query)
        timed = [row for row, (_, task) in enumerate(known) if math.isfinite(task.cost)]
        if not timed:
            return np.zeros((0, len(query.codes))), np.zeros(0)
        tables = [
            self._interpolation(query, known[row][0])[0] @ np.nan_to_num(known[row][1].costs.astype(np.float64))
            for row in timed
        ]
        return np.array(tables), weights[timed] / weights[timed].sum()

    def _weighted(self, query: Query) -> tuple[list[tuple[Family, Known]], np.ndarray, np.ndarray]:
        """Tasks that share hyperparameters, their weights, and the shares of the query's that each family has."""
        known, weights, shares = [], [], []
        for family in self.families:
            shared = len(family.shared(query.axes))
            if not shared:
                continue
            overlap = shared / (len(query.axes) + len(family.axes) - shared)
            for task in family.tasks:
                known.append((family, task))
                weights.append(overlap**2)
                shares.append(shared / len(query.axes))
        if not known:
            return [], np.zeros(0), np.zeros(0)
        near = np.flatnonzero(np.array(weights) > _LEAST_OVERLAP * max(weights))  # others say next to nothing
        known = [known[row] for row in near]
        w = np.array(weights)[near] * self._alike(query.features, [task for _, task in known])
        return known, w / w.sum(), np.array(shares)[near]

    def _alike(self, features: Mapping[str, float], known: list[Known]) -> np.ndarray:
        """How much each task counts by its features."""
        s = self.settings
        names = sorted({name for task in known for name in task.features} & features.keys())
        if not names or not s.alike or len(known) < 2:
            return np.ones(len(known))
        table = np.array([[task.features.get(name, math.nan) for name in names] for task in known])
        spread = np.nanstd(table, axis=0)
        use = spread > 1e-6
        if not use.any():
            return np.ones(len(known))
        here = np.array([features[name] for name in names])
        gaps = ((table - here) / np.where(use, spread, 1.0))[:, use]
        gaps = np.where(np.isfinite(gaps), np.clip(gaps, -3, 3), 1.0)
        squares = (gaps**2).mean(1)
        near = np.exp(-0.5 * (squares - squares.min()) / s.alike_length**2)
        return (1 - s.alike) + s.alike * near * len(near) / near.sum()

    def _interpolation(self, query: Query, family: Family) -> tuple[np.ndarray, np.ndarray]:
        """Weights `[M, N]` of a family's table at the points, and the variances `[M]` that remain."""
        if self._recent[0] is not query:
            self._recent = (query, {})
        if id(family) not in self._recent[1]:
            self._recent[1][id(family)] = self._interpolated(query, family)
        return self._recent[1][id(family)]

    def _interpolated(self, query: Query, family: Family) -> tuple[np.ndarray, np.ndarray]:
        names, shared = list(query.axes), family.shared(query.axes)
        columns = query.codes[:, [names.index(name) for name in shared]]
        missing = 1 - len(shared) / len(family.axes)
        s = self.settings
        return family.weights(shared, recoded(query.axes, family.axes, shared, columns), s.length, s.smooth + missing)

    def _made(self, query: Query, known: list[tuple[Family, Known]]) -> tuple[np.ndarray, np.ndarray]:
        """Known tasks' values at the points `[T, M]`, and what interpolation leaves open there, a variance `[T, M]`."""
        values, left = np.zeros((2, len(known), len(query.codes)))
        for row, (family, task) in enumerate(known):
            weights, left[row] = self._interpolation(query, family)
            values[row] = at(task, weights, query.fractions)
        return values, left

    def _joint(
        self, query: Query, made: tuple[np.ndarray, np.ndarray] | None, weights: np.ndarray, shares: np.ndarray
    ) -> Joint:
        """What is believed of the points before anything is observed."""
        s, n, points = self.settings, len(query.observed), len(query.codes)
        gaps = distances(list(query.axes.values()), query.codes[:n], query.codes)
        space = matern(gaps, s.new_length * math.sqrt(len(query.axes)))
        halvings = np.abs(np.log2(query.fractions[:n, None] / query.fractions))
        new, zero = space * np.exp(-halvings / s.early), np.zeros(n)
        if made is None:
            return Joint(np.zeros(points), new, new, np.ones(points), np.ones(points), zero)
        values, left = made
        mean = weights @ values
        basis = np.sqrt(weights * s.strength)[:, None] * (values - mean)
        taught = (basis**2).sum(0)
        size = np.sqrt((1 - s.local) + s.local * taught)
        new = new * size[:n, None] * size
        unknown = 1 - float(weights @ shares)  # of the hyperparameters: they matter as much as known ones
        open_ = weights @ left
        known = basis[:, :n].T @ basis + unknown * new + np.sqrt(open_[:n, None] * open_) * space
        return Joint(mean, known, new, taught + unknown * size**2 + open_, size**2, zero)

    def _with_reference(self, joint: Joint, values: np.ndarray, weights: np.ndarray, told: np.ndarray) -> Joint:
        """One more point, the first: what has learned nothing."""
        known = np.isfinite(told)
        middle = float(weights[known] @ told[known] / weights[known].sum())
        root = np.sqrt(weights * self.settings.strength)
        off = root * (np.where(known, told, middle) - middle)
        row = np.concatenate([[off @ off], (root * off) @ (values - weights @ values)])
        n = len(joint.noise)
        full, new = np.zeros((2, n + 1, len(row)))
        full[0], full[1:, 0], full[1:, 1:] = row, row[1 : n + 1], joint.known
        new[0, 0], new[1:, 1:] = _REFERENCE_NOISE, joint.new
        return Joint(
            np.concatenate([[middle], joint.mean]),
            full,
            new,
            np.concatenate([row[:1], joint.known_variance]),
            np.concatenate([[_REFERENCE_NOISE], joint.new_variance]),
            np.concatenate([[_REFERENCE_NOISE], joint.noise]),
        )

    def _grid(self, query: Query, known: list[Known], weights: np.ndarray) -> Grid:
        """Where offset and scale may lie: as in known tasks with this metric, or else around what was observed."""
        s = self.settings
        novelties = np.array(s.novelties)
        same = [row for row, task in enumerate(known) if task.scores == query.scores]
        steps = np.linspace(-_REACH, _REACH, _SCALES)
        if same:
            w = weights[same] / weights[same].sum()
            count = 1 / (w**2).sum()
            doubt = math.sqrt(1 + _WIDER / count)
            logs = np.log([known[row].spread for row in same])
            centres = np.array([known[row].centre for row in same])
            middle, centre = float(w @ logs), float(w @ centres)
            wide = math.sqrt(float(w @ (centres - centre) ** 2) + math.exp(2 * middle) * 0.25) * doubt
            sigma = math.sqrt(float(w @ (logs - middle) ** 2) + 0.04) * doubt
        elif query.scores.metric in SHARES or query.scores.kind == "error":
            (centre, wide), (middle, sigma) = _SHARE_CENTRE, _SHARE_SCALE
        else:
            told = query.observed[np.isfinite(query.observed)]
            if math.isfinite(query.reference):
                told = np.append(told, query.reference)
            centre = float(told.mean()) if len(told) else 0.0
            size = float(told.std()) if len(told) > 1 else 0.0
            size = size or abs(centre) / 3 or 1.0
            middle, sigma, wide = math.log(size), 1.0, 5 * size
        weigh = np.exp(-0.5 * steps**2)
        return Grid(
            np.exp(middle + sigma * steps), weigh / weigh.sum(), novelties, np.full(len(novelties), 1 / len(novelties)),
            centre, wide,
        )  # fmt: skip


def _first_alone(joint: Joint) -> Joint:
    known, new = joint.known[:1, :1], joint.new[:1, :1]
    return Joint(joint.mean[:1], known, new, joint.known_variance[:1], joint.new_variance[:1], joint.noise[:1])


def recoded(own: Mapping[str, Axis], other: Mapping[str, Axis], shared: Sequence[str], codes: np.ndarray) -> np.ndarray:
    """Codes `[M, len(shared)]` on the axes of another space."""
    moved = codes.copy()
    for column, name in enumerate(shared):
        moved[:, column] = other[name].from_code(own[name], codes[:, column])
    return moved
