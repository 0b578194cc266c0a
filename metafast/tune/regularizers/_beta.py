"""Samples of a symmetric beta distribution that can be differentiated by its parameter."""

from __future__ import annotations

import torch
from torch import Tensor

TERMS = 512  # of the series; enough for float64 up to a = 1,000


def symmetric_beta(a: Tensor, count: int) -> Tensor:
    r"""Samples \(\lambda\) of Beta(a, a), whose derivative by a is that of the quantile at a fixed probability.

    `torch.distributions.Beta.rsample` has this derivative to three digits, and can be differentiated once only. Here
    \(d\lambda/da\) is a number, so that \(\partial^2 L / \partial\theta\, \partial a\) is exact too; the second
    derivative by a alone is taken for zero.

    Args:
        a: 0-d, above 0.
        count: samples.

    Returns:
        `[count]` in float64, because the gamma samples of a small a underflow in float32.

    Example:
        >>> a = torch.tensor(0.4, requires_grad=True)
        >>> share = symmetric_beta(a, 5)
        >>> share.shape, bool(((share > 0) & (share < 1)).all())
        (torch.Size([5]), True)

    Source:
        M. Figurnov, S. Mohamed, A. Mnih, Implicit Reparameterization Gradients, NeurIPS 2018, equation 7.
    """
    value = a.detach().double()
    sample = draw(value, count)
    return sample + slope(sample, value) * (a - a.detach())


def draw(a: Tensor, count: int) -> Tensor:
    """Samples of Beta(a, a), by the global random generator of a's device."""
    return torch.distributions.Beta(a, a, validate_args=False).sample((count,))


def slope(sample: Tensor, a: Tensor) -> Tensor:
    r"""\(d\lambda/da = -\partial_a F(\lambda; a) / \partial_\lambda F\), elementwise, in float64.

    Below one half, \(F = \frac{(x (1 - x))^a}{a B(a, a)} S\) with \(S = \sum_n \frac{(2a)_n}{(a + 1)_n} x^n\) (DLMF
    8.17.8), which divided by the density is \(x (1 - x) S / a\). Above, Beta(a, a) is symmetric.
    """
    x = torch.minimum(sample, 1 - sample).clamp_min(torch.finfo(a.dtype).tiny)
    n = torch.arange(TERMS, dtype=a.dtype, device=a.device)
    terms = (x[:, None] * (2 * a + n) / (a + 1 + n)).cumprod(1)  # all positive: nothing cancels
    log_slopes = (2 / (2 * a + n) - 1 / (a + 1 + n)).cumsum(0)  # of the terms, by a
    series, series_slope = 1 + terms.sum(1), (terms * log_slopes).sum(1)
    factor = (x * (1 - x)).log() - 1 / a - 2 * torch.digamma(a) + 2 * torch.digamma(2 * a)
    found = -x * (1 - x) / a * (factor * series + series_slope)
    return torch.where(sample <= 0.5, found, -found)
