"""A plain Gaussian process over the candidates of a table, and the same helped by those of other tasks (RGPE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
SAMPLES = 128  # of the posterior, that rankings are compared on
_LENGTH = (math.log(0.5), 1.0)  # mean and spread of the prior of log lengths, in ranges of a hyperparameter
_NOISE = (math.log(1e-2), 1.5)
_JITTER = 1e-6


@dataclass(frozen=True)
class Fitted:
    """Hyperparameters of a process, and what it says at all candidates, in standardized units.

    Args:
        raw: `[H + 2]`, logarithms of the lengths, of the signal's variance and of the noise's.
        mean: `[N]`.
        std: `[N]`, without noise.
        codes: `[N, H]`.
        cross: `[n, N]`, what the n observations take from the prior covariance, as a root.
    """

    raw: Tensor
    mean: Array
    std: Array
    codes: Array
    cross: Array

    def cov(self, rows: Sequence[int]) -> Array:
        """`[R, R]`, posterior covariance of some candidates."""
        x = torch.from_numpy(self.codes[list(rows)])
        known = self.cross[:, list(rows)]
        found: Array = matern(x, x, self.raw).numpy() - known.T @ known
        return found

    def first(self, count: int) -> Fitted:
        """The same at the first so many candidates."""
        return Fitted(self.raw, self.mean[:count], self.std[:count], self.codes[:count], self.cross[:, :count])


def matern(a: Tensor, b: Tensor, raw: Tensor) -> Tensor:
    """Matérn 5/2 with a length per hyperparameter: `[A, B]`."""
    scaled = (a[:, None] - b[None]) / raw[: a.shape[1]].exp()
    apart = (5 * scaled.square().sum(-1) + 1e-12).sqrt()
    return raw[a.shape[1]].exp() * (1 + apart + apart.square() / 3) * (-apart).exp()


def fit(codes: Array, observed: Sequence[int], values: Array, start: Tensor | None = None, steps: int = 40) -> Fitted:
    """The process with the most probable hyperparameters.

    Args:
        codes: `[N, H]` of all candidates, in [0, 1].
        observed: candidates whose values are known.
        values: theirs, in any units; they are standardized.
        start: of the search for hyperparameters; the last found, where there is one.
        steps: of L-BFGS.
    """
    x = torch.from_numpy(np.ascontiguousarray(codes[list(observed)], dtype=np.float64))
    y = torch.from_numpy(standardized(np.asarray(values, dtype=np.float64)))
    usual = torch.tensor([_LENGTH[0]] * x.shape[1] + [0.0, _NOISE[0]], dtype=torch.float64)
    raw = (usual if start is None else start).clone().requires_grad_()
    spread = torch.tensor([_LENGTH[1]] * x.shape[1] + [1.0, _NOISE[1]], dtype=torch.float64)
    eye = torch.eye(len(x), dtype=torch.float64)

    def minus_log_posterior() -> Tensor:
        root = torch.linalg.cholesky(matern(x, x, raw) + (raw[-1].exp() + _JITTER) * eye)
        white = torch.linalg.solve_triangular(root, y[:, None], upper=False)
        prior = 0.5 * ((raw - usual) / spread).square().sum()
        return 0.5 * white.square().sum() + root.diagonal().log().sum() + prior

    search = torch.optim.LBFGS([raw], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-6)

    def closure() -> Tensor:
        search.zero_grad()
        loss = minus_log_posterior()
        loss.backward()
        return loss

    try:
        search.step(closure)
    except torch.linalg.LinAlgError:
        raw = usual.clone()
    raw = raw.detach()
    if not bool(raw.isfinite().all()):
        raw = usual
    every = np.ascontiguousarray(codes, dtype=np.float64)
    root = torch.linalg.cholesky(matern(x, x, raw) + (raw[-1].exp() + _JITTER) * eye)
    cross = torch.linalg.solve_triangular(root, matern(x, torch.from_numpy(every), raw), upper=False)
    white = torch.linalg.solve_triangular(root, y[:, None], upper=False)
    variance = (raw[-2].exp() - cross.square().sum(0)).clamp(min=1e-12)
    return Fitted(raw, (cross.T @ white).squeeze(1).numpy(), variance.sqrt().numpy(), every, cross.numpy())


def left_out(fitted: Fitted, codes: Array, observed: Sequence[int], values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation at each observed candidate of the process that does not know it.

    Source:
        C. Rasmussen, C. Williams, Gaussian Processes for Machine Learning, equation 5.12.
    """
    x = torch.from_numpy(np.ascontiguousarray(codes[list(observed)], dtype=np.float64))
    noise = float(fitted.raw[-1].exp()) + _JITTER
    inverse = torch.linalg.inv(matern(x, x, fitted.raw) + noise * torch.eye(len(x), dtype=torch.float64)).numpy()
    y = standardized(np.asarray(values, dtype=np.float64))
    variance = 1 / np.diagonal(inverse)
    return y - inverse @ y * variance, np.sqrt(variance)


def expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """Of what is to be maximized."""
    z = (mean - best) / std
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(torch.from_numpy(z / math.sqrt(2))).numpy())
    found: Array = std * (z * below + density)
    return found


def ensemble_weights(
    sources: Sequence[Fitted],
    target: tuple[Array, Array] | None,
    observed: Sequence[int],
    values: Array,
    rng: np.random.Generator,
) -> Array:
    """How often each process ranks the observations best: `[sources + 1]`, the target's own last; they sum to 1.

    Each process is judged by samples of its posterior: how many pairs of observations it puts in the wrong order. The
    target's own is judged by what it says of each observation without having seen it. A source whose typical sample is
    worse than nearly all of the target's has no weight.

    Args:
        sources: of other tasks.
        target: mean and standard deviation of `left_out`; None: too few observations, and all sources count the same.
        observed: candidates.
        values: theirs.
        rng: draws the samples.

    Source:
        M. Feurer, B. Letham, E. Bakshy, Scalable meta-learning for Bayesian optimization, arXiv 1802.02219, section 4.
    """
    count = len(sources)
    if target is None:
        return np.append(np.full(count, 1 / max(count, 1)), 0.0)
    n, y = len(observed), np.asarray(values, dtype=np.float64)
    losses = np.empty((count + 1, SAMPLES))
    better = y[:, None] < y[None]
    for row, source in enumerate(sources):
        cov = source.cov(observed)
        root = np.linalg.cholesky(cov + (1e-6 + 1e-4 * float(cov.trace()) / n) * np.eye(n))
        drawn = source.mean[list(observed)] + rng.standard_normal((SAMPLES, n)) @ root.T
        losses[row] = ((drawn[:, :, None] < drawn[:, None, :]) ^ better).sum((1, 2))
    mean, std = target
    drawn = mean + rng.standard_normal((SAMPLES, n)) * std  # of each observation alone, against the others as they are
    losses[count] = ((drawn[:, :, None] < standardized(y)[None, None, :]) ^ better).sum((1, 2))
    limit = np.quantile(losses[count], 0.95)
    losses[:count][np.median(losses[:count], axis=1) > limit] = np.inf
    first = losses == losses.min(0)
    found: Array = (first / first.sum(0)).mean(1)
    return found


def standardized(values: Array) -> Array:
    """With mean 0 and variance 1, or 0 where all are equal."""
    spread = float(values.std())
    found: Array = (values - values.mean()) / (
        spread if spread > 1e-12 * max(1.0, float(np.abs(values).max())) else 1.0
    )
    return found
