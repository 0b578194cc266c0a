r"""A Gaussian process over time and hyperparameters, and the upper confidence bound that picks the next ones.

The covariance of two points (t, x) and (t', x') is \(\exp(-d(x, x')^2 / 2\ell^2)\,(1 - \epsilon)^{|t - t'|/2}\) times a
signal variance: what was seen long ago counts for less. In \(d^2\), ordered values add their squared distance and
unordered ones 1 where they differ. Closed forms in float64.

Source: J. Parker-Holder et al., NeurIPS 2020, section 4 (PB2); I. Bogunovic et al., AISTATS 2016 (the kernel);
T. Desautels et al., JMLR 2014 (points under way count for the variance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
FORGETTING = (0.02, 0.06, 0.2, 0.5)  # never 0: what was once bad is tried again
NOISE = (0.01, 0.1, 1.0)  # in parts of the signal variance
TYPICAL = (0.4, 0.1, 0.1)  # of each of the three: the middle of a prior, which rules while there are few points
PRIOR_WIDTH = math.log(4.0)


@dataclass(frozen=True)
class Kernel:
    """Length scale, forgetting per unit of time, noise and signal variance of one covariance, or of several ([k])."""

    length: Tensor
    forgetting: Tensor
    noise: Tensor
    variance: Tensor

    def __call__(self, a: Tensor, b: Tensor, unordered: Tensor) -> Tensor:
        """Covariances in parts of the signal variance.

        Args:
            a: [n, 1 + d], the time in column 0.
            b: [m, 1 + d].
            unordered: [d], True for columns that hold the number of an unordered value.

        Returns:
            [n, m], or [k, n, m].
        """
        gap = a[:, None, 1:] - b[None, :, 1:]  # [n, m, d]
        gap = torch.where(unordered, (gap != 0).to(gap), gap)
        time = (a[:, None, 0] - b[None, :, 0]).abs()
        length, forgetting = self.length[..., None, None], self.forgetting[..., None, None]
        return torch.exp(-gap.square().sum(-1) / (2 * length**2)) * (1 - forgetting) ** (time / 2)


class GaussianProcess:
    """The posterior after some observations, with the most probable kernel of a grid.

    Args:
        points: [n, 1 + d], float64: time, and values in [0, 1] or numbers of unordered ones.
        targets: [n], float64, standardized.
        unordered: [d], bool.
        kernel: in place of the grid's best.

    Example:
        >>> points = torch.tensor([[0.0, 0.1], [0.0, 0.9]], dtype=torch.float64)
        >>> gp = GaussianProcess(points, torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([False]))
        >>> mean, deviation = gp.posterior(torch.tensor([[1.0, 0.8]], dtype=torch.float64))
        >>> bool(mean > 0), bool(deviation > 0)
        (True, True)
    """

    def __init__(self, points: Tensor, targets: Tensor, unordered: Tensor, kernel: Kernel | None = None) -> None:
        self.points, self.targets, self.unordered = points, targets, unordered
        self.kernel = most_probable(points, targets, unordered) if kernel is None else kernel

    def posterior(self, points: Tensor, pending: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at [m, 1 + d] points.

        Args:
            points: where to look.
            pending: [p, 1 + d], points under way: they lower the deviation as if they had been seen.

        Returns:
            Two tensors [m].
        """
        half, cross = self._whitened(self.points, points)
        mean = cross.mT @ torch.linalg.solve_triangular(half, self.targets[:, None], upper=False)
        if pending is not None:
            _, cross = self._whitened(torch.cat([self.points, pending]), points)
        variance = self.kernel.variance * (1 - cross.square().sum(0)).clamp_min(0)
        return mean[:, 0], variance.sqrt()

    def _whitened(self, seen: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """L with L Lᵀ the covariance of what was seen, and L⁻¹ times that with the points."""
        half = _cholesky(self.kernel, seen, self.unordered)
        return half, torch.linalg.solve_triangular(half, self.kernel(seen, points, self.unordered), upper=False)


def most_probable(points: Tensor, targets: Tensor, unordered: Tensor) -> Kernel:
    """The kernel of the grid with the largest posterior probability; the signal variance in closed form."""
    axes = [torch.tensor(values, dtype=torch.float64) for values in (LENGTHS, FORGETTING, NOISE)]
    length, forgetting, noise = (grid.flatten() for grid in torch.meshgrid(*axes, indexing="ij"))
    trial = Kernel(length, forgetting, noise, torch.ones_like(length))
    half = _cholesky(trial, points, unordered)  # [k, n, n]
    white = torch.linalg.solve_triangular(half, targets[:, None].expand(len(length), -1, 1), upper=False)
    # one pseudo-observation of variance 1, the variance of standardized targets
    variance = (white.square().sum((1, 2)) + 1) / (len(targets) + 1)
    fit = -0.5 * (len(targets) + 1) * variance.log() - half.diagonal(dim1=1, dim2=2).log().sum(1)
    for values, typical in zip((length, forgetting + 0.01, noise), TYPICAL, strict=True):
        fit = fit - 0.5 * ((values.log() - math.log(typical)) / PRIOR_WIDTH).square()
    best = int(fit.argmax())
    return Kernel(length[best], forgetting[best], noise[best], variance[best])


def upper_confidence_bound(gp: GaussianProcess, candidates: Tensor, pending: Tensor | None, kappa: float) -> Tensor:
    """Mean plus `kappa` standard deviations at [m, 1 + d] candidates: [m]."""
    mean, deviation = gp.posterior(candidates, pending)
    return mean + kappa * deviation


def standardized(values: Tensor, limit: float = 2.0) -> Tensor:
    """Minus the mean, over the standard deviation, within +-limit; zeros where all are equal."""
    centered = values - values.mean()
    scale = centered.square().mean().sqrt()
    return (centered / scale).clamp(-limit, limit) if float(scale) > 0 else torch.zeros_like(values)


def _cholesky(kernel: Kernel, points: Tensor, unordered: Tensor) -> Tensor:
    covariance = kernel(points, points, unordered)
    return torch.linalg.cholesky(covariance + kernel.noise[..., None, None] * torch.eye(len(points)).to(points))
