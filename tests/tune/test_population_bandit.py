"""The Gaussian process of PB2 against closed forms and scikit-learn."""

import itertools
import math

import pytest
import torch

from metafast.tune.population._bandit import (
    FORGETTING,
    LENGTHS,
    NOISE,
    PRIOR_WIDTH,
    TYPICAL,
    GaussianProcess,
    Kernel,
    most_probable,
    standardized,
    upper_confidence_bound,
)

F64 = torch.float64


def kernel(length=0.5, forgetting=0.2, noise=0.1, variance=2.0):
    return Kernel(*(torch.tensor(value, dtype=F64) for value in (length, forgetting, noise, variance)))


def problem(n, seed=0):
    """Points with a time, a number and an unordered value."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, dtype=F64, generator=rng)
    points[:, 0] = torch.arange(n) // 4
    points[:, 2] = torch.randint(3, (n,), generator=rng)
    targets = torch.sin(4 * points[:, 1]) + 0.3 * points[:, 2] + 0.1 * torch.randn(n, dtype=F64, generator=rng)
    return points, standardized(targets), torch.tensor([False, True])


def test_covariance_by_hand():
    a = torch.tensor([[0.0, 0.2, 1.0]], dtype=F64)
    b = torch.tensor([[3.0, 0.6, 1.0], [0.0, 0.2, 2.0], [0.0, 0.2, 1.0]], dtype=F64)
    found = kernel()(a, b, torch.tensor([False, True]))
    expected = [math.exp(-(0.4**2) / (2 * 0.25)) * 0.8**1.5, math.exp(-1 / (2 * 0.25)), 1.0]
    assert found.tolist() == [pytest.approx(expected, rel=1e-14)]


def test_posterior_after_one_and_two_observations_by_hand():
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=F64)
    targets = torch.tensor([1.0, -0.5], dtype=F64)
    at = torch.tensor([[0.0, 0.25]], dtype=F64)
    unordered = torch.tensor([False])
    k0, k1, r = (math.exp(-(d**2) / 0.5) for d in (0.25, 0.75, 1.0))
    mean, deviation = GaussianProcess(points[:1], targets[:1], unordered, kernel()).posterior(at)
    assert float(mean) == pytest.approx(k0 / 1.1, rel=1e-14)
    assert float(deviation) == pytest.approx(math.sqrt(2 * (1 - k0**2 / 1.1)), rel=1e-14)
    mean, deviation = GaussianProcess(points, targets, unordered, kernel()).posterior(at)
    det = 1.1**2 - r**2  # of [[1.1, r], [r, 1.1]]
    assert float(mean) == pytest.approx((k0 * (1.1 + 0.5 * r) + k1 * (-r - 0.55)) / det, rel=1e-13)
    explained = (1.1 * k0**2 - 2 * r * k0 * k1 + 1.1 * k1**2) / det
    assert float(deviation) == pytest.approx(math.sqrt(2 * (1 - explained)), rel=1e-13)


def test_posterior_equals_the_textbook_formula():
    points, targets, unordered = problem(30)
    at = problem(7, seed=1)[0]
    k = kernel()
    mean, deviation = GaussianProcess(points, targets, unordered, k).posterior(at)
    inverse = (k(points, points, unordered) + 0.1 * torch.eye(30, dtype=F64)).inverse()
    cross = k(points, at, unordered)
    torch.testing.assert_close(mean, cross.T @ inverse @ targets, rtol=1e-10, atol=1e-12)
    variance = 2 * (1 - (cross * (inverse @ cross)).sum(0))
    torch.testing.assert_close(deviation, variance.sqrt(), rtol=1e-9, atol=1e-12)


def test_posterior_equals_scikit_learn():
    gaussian_process = pytest.importorskip("sklearn.gaussian_process", reason="scikit-learn is not installed")
    kernels = gaussian_process.kernels
    points, targets, _ = problem(25)
    points, at = points[:, :2], problem(6, seed=1)[0][:, :2]
    far = 1e8  # a length that makes a column irrelevant
    decay = -2 / math.log(1 - 0.2)  # (1 - e)^(|t|/2) = exp(-|t| / decay)
    theirs = kernels.ConstantKernel(2.0, "fixed") * (
        kernels.RBF([far, 0.5], "fixed") * kernels.Matern([decay, far], "fixed", nu=0.5)
    )
    peer = gaussian_process.GaussianProcessRegressor(theirs, alpha=0.2, optimizer=None)
    peer.fit(points.numpy(), targets.numpy())
    mean, deviation = peer.predict(at.numpy(), return_std=True)
    found = GaussianProcess(points, targets, torch.tensor([False]), kernel()).posterior(at)
    torch.testing.assert_close(found[0], torch.from_numpy(mean), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[1], torch.from_numpy(deviation), rtol=1e-6, atol=1e-7)


def test_the_kernel_is_the_most_probable_of_the_grid():
    points, targets, unordered = problem(12)
    best = (-math.inf,)
    for values in itertools.product(LENGTHS, FORGETTING, NOISE):
        shape = kernel(*values[:2])(points, points, unordered) + values[2] * torch.eye(12, dtype=F64)
        variance = (float(targets @ shape.inverse() @ targets) + 1) / 13
        zeros = torch.zeros(12, dtype=F64)
        fit = torch.distributions.MultivariateNormal(zeros, variance * shape).log_prob(targets)
        fit += torch.distributions.Normal(torch.zeros((), dtype=F64), variance**0.5).log_prob(torch.ones((), dtype=F64))
        middle = (values[0], values[1] + 0.01, values[2])
        fit -= sum((math.log(v / t) / PRIOR_WIDTH) ** 2 / 2 for v, t in zip(middle, TYPICAL, strict=True))
        best = max(best, (float(fit), *values, variance))
    found = most_probable(points, targets, unordered)
    assert [float(v) for v in (found.length, found.forgetting, found.noise)] == list(best[1:4])
    assert float(found.variance) == pytest.approx(best[4], rel=1e-10)


def test_noise_and_forgetting_are_told_from_structure():
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(60, 2, dtype=F64, generator=rng)
    points[:, 0] = torch.arange(60) // 4
    unordered = torch.tensor([False])
    smooth = standardized(torch.sin(3 * points[:, 1]))
    moving = standardized(-(points[:, 1] - points[:, 0] / 15).square())
    noise = standardized(torch.randn(60, dtype=F64, generator=rng))
    assert float(most_probable(points, smooth, unordered).noise) < float(most_probable(points, noise, unordered).noise)
    assert float(most_probable(points, smooth, unordered).forgetting) == min(FORGETTING) > 0
    assert float(most_probable(points, moving, unordered).forgetting) > min(FORGETTING)


def test_points_under_way_lower_the_deviation_and_leave_the_mean():
    points, targets, unordered = problem(10)
    gp = GaussianProcess(points, targets, unordered)
    at = torch.tensor([[3.0, 0.5, 0.0], [3.0, 0.9, 2.0]], dtype=F64)
    mean, deviation = gp.posterior(at)
    same, less = gp.posterior(at, at[:1])
    torch.testing.assert_close(same, mean, rtol=0, atol=0)
    prior, noise = deviation[0] ** 2 / gp.kernel.variance, gp.kernel.noise
    assert float(less[0] ** 2 / gp.kernel.variance) == pytest.approx(float(prior * noise / (prior + noise)), rel=1e-9)
    assert less[1] <= deviation[1]
    torch.testing.assert_close(upper_confidence_bound(gp, at, at[:1], 2.0), mean + 2 * less)


def test_all_targets_equal_and_a_single_point():
    points = torch.tensor([[0.0, 0.5]], dtype=F64)
    for n in (1, 5):
        gp = GaussianProcess(points.expand(n, -1), torch.zeros(n, dtype=F64), torch.tensor([False]))
        mean, deviation = gp.posterior(points)
        assert float(mean) == 0 and math.isfinite(float(deviation)) and float(deviation) > 0


def test_standardized():
    found = standardized(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    assert found.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert standardized(torch.tensor([0.0] * 99 + [1.0])).max() == 2  # an outlier is cut
    assert standardized(torch.full((3,), 7.0)).tolist() == [0, 0, 0]
