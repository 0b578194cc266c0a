"""Gaussian processes whose scale is not known: what is believed after a few observations, as a mixture of Gaussians.

A score is `c + s (m(x) + g(x) + sqrt(r) h(x)) + noise`: `m` and `g` are what other tasks have taught (mean and
covariance), `h` what is new in this task, `c`, `s` and `r` its own unknown offset, scale and share of novelty. `c` is
Gaussian; `s` and `r` lie on a grid, each pair weighted by how well it explains the observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

_LEAST = 1e-10


@dataclass(frozen=True)
class Mixture:
    """Gaussian mixtures for M points.

    Args:
        weights: `[C]`, of the components.
        means: `[C, M]`.
        variances: `[C, M]`.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`[M]`."""
        mean: np.ndarray = self.weights @ self.means
        return mean

    @property
    def std(self) -> np.ndarray:
        """`[M]`."""
        second = self.weights @ (self.variances + self.means**2)
        return np.sqrt(np.maximum(second - self.mean**2, _LEAST))

    def below(self, values: np.ndarray) -> np.ndarray:
        """`[M]`, the probability of less than each value."""
        total: np.ndarray = self.weights @ phi((values - self.means) / np.sqrt(self.variances))
        return total

    def quantile(self, level: float) -> np.ndarray:
        """`[M]`, by bisection."""
        reach = 8 * np.sqrt(self.variances.max(0))
        low, high = self.means.min(0) - reach, self.means.max(0) + reach
        for _ in range(30):
            middle = (low + high) / 2
            less = self.below(middle) < level
            low, high = np.where(less, middle, low), np.where(less, high, middle)
        return (low + high) / 2

    def improvement(self, best: float | np.ndarray) -> np.ndarray:
        """`[M]`, how much more than `best` is expected."""
        sigma = np.sqrt(self.variances)
        gain = (self.means - best) / sigma
        density = np.exp(-0.5 * gain**2) / math.sqrt(2 * math.pi)
        total: np.ndarray = self.weights @ (sigma * (gain * phi(gain) + density))
        return total

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """`[M]`."""
        each = -0.5 * (values - self.means) ** 2 / self.variances - 0.5 * np.log(2 * math.pi * self.variances)
        top = each.max(0)
        total: np.ndarray = top + np.log(self.weights @ np.exp(each - top))
        return total


@dataclass(frozen=True)
class Joint:
    """What is believed before anything is observed, of M points of which the first n are the observed ones.

    Args:
        mean: `[M]`, m.
        known: `[n, M]`, covariance that other tasks have taught.
        new: `[n, M]`, covariance of what is new, for r = 1.
        known_variance: `[M]`.
        new_variance: `[M]`.
        noise: `[n]`, variance of the observations.
    """

    mean: np.ndarray
    known: np.ndarray
    new: np.ndarray
    known_variance: np.ndarray
    new_variance: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Grid:
    """Where scale and novelty may lie, and the offset.

    Args:
        scales: `[S]`.
        scale_weights: `[S]`, before anything is observed.
        novelties: `[R]`.
        novelty_weights: `[R]`.
        centre: mean of the offset.
        wide: its standard deviation.
    """

    scales: np.ndarray
    scale_weights: np.ndarray
    novelties: np.ndarray
    novelty_weights: np.ndarray
    centre: float
    wide: float


def condition(
    joint: Joint, grid: Grid, observed: np.ndarray, noise: float, trust: float = math.inf
) -> tuple[Mixture, float]:
    """Beliefs after observations.

    Args:
        joint: of the points.
        grid: of scale and novelty.
        observed: `[n]`, values of the first n points.
        noise: variance of a new measurement, which is part of the beliefs.
        trust: so many observations at most settle scale and novelty: the best ones, which are observed first, lie on a
            plateau and tell little about the rest.

    Returns:
        (the mixture at all M points, the log density of the observations).
    """
    n = len(observed)
    scale = grid.scales[:, None]  # [S, 1]
    offset = (grid.wide / scale) ** 2
    logs = np.log(grid.novelty_weights)[:, None] + np.log(grid.scale_weights)  # [R, S]
    variance = joint.known_variance + grid.novelties[:, None] * joint.new_variance  # [R, M]
    means = np.broadcast_to(joint.mean, (*logs.shape, len(joint.mean)))
    spread = variance[:, None] + offset
    evidence = 0.0
    if n:
        across = joint.known + grid.novelties[:, None, None] * joint.new  # [R, n, M]
        left = across[:, :, :n] + np.diag(joint.noise)
        ones, start = np.ones((n, 1)), joint.mean[:n]
        rest = (observed - grid.centre) / scale - start  # [S, n]
        right = np.concatenate([across, np.broadcast_to(np.hstack([ones, rest.T]), (len(left), n, 1 + len(rest)))], -1)
        solved = np.linalg.solve(left, right)
        points = len(joint.mean)
        # the offset is common to all points: a term of rank one, put in after the inversion (Sherman and Morrison)
        alone, fitted = solved[:, :, points], solved[:, :, points + 1 :]  # [R, n], [R, n, S]
        free = 1 - (across * alone[:, :, None]).sum(1)[:, None]  # [R, 1, M]
        share = offset[:, 0] / (1 + offset[:, 0] * alone.sum(1)[:, None])  # [R, S]
        pull = alone @ rest.T  # [R, S]
        means = means + fitted.mT @ across + (share * pull)[:, :, None] * free
        spread = (variance - (across * solved[:, :, :points]).sum(1))[:, None] + share[:, :, None] * free**2
        fit = -0.5 * ((rest.T * fitted).sum(1) - share * pull**2)
        size = np.linalg.slogdet(left)[1][:, None] + np.log(offset[:, 0] / share)
        likely = fit - 0.5 * size - n * np.log(scale[:, 0])
        evidence = _log_sum(logs + likely) - 0.5 * n * math.log(2 * math.pi)
        logs = logs + min(1.0, trust / n) * likely
    weights = np.exp(logs - _log_sum(logs))
    means = grid.centre + scale * means
    variances = scale**2 * (np.maximum(spread, _LEAST) + noise)
    flat = (-1, len(joint.mean))
    return Mixture(weights.ravel(), means.reshape(flat), variances.reshape(flat)), evidence


def phi(values: np.ndarray) -> np.ndarray:
    """The normal distribution function."""
    result: np.ndarray = torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(values))).numpy()
    return result


def _log_sum(logs: np.ndarray) -> float:
    top = logs.max()
    return float(top + math.log(np.exp(logs - top).sum()))
