"""Mixup: the samples of its distribution and their derivative, and what is mixed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from metafast.tune.regularizers import LabelSmoothingCrossEntropy, Mixup
from metafast.tune.regularizers._beta import slope, symmetric_beta
from tests.helpers import assert_close

pytest.importorskip("scipy", reason="the beta distribution of reference")
from scipy import special, stats


@pytest.mark.parametrize("a", [0.05, 0.4, 1.0, 7.0])
def test_samples_are_those_of_the_distribution(a):
    found = symmetric_beta(torch.tensor(a), 4000).detach().numpy()
    low = found[found < 0.5]  # near 1 floating-point numbers are few
    assert stats.binomtest(len(low), 4000).pvalue > 0.01
    assert stats.kstest(low, lambda x: 2 * stats.beta(a, a).cdf(x)).pvalue > 0.01


@pytest.mark.parametrize("a", [0.03, 0.2, 1.0, 3.0, 30.0, 1000.0])
def test_derivative_is_that_of_the_quantile(a):
    probability = torch.linspace(0.02, 0.48, 25, dtype=torch.float64).numpy()
    step = 1e-3 * a

    def at(shift):
        return special.betaincinv(a + shift * step, a + shift * step, probability)

    expected = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    sample, a = torch.from_numpy(at(0)), torch.tensor(a, dtype=torch.float64)
    assert slope(sample, a).numpy() == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert_close(slope(1 - sample, a), -slope(1 - (1 - sample), a), "the other side")


def test_extreme_samples_have_finite_derivatives():
    sample = torch.tensor([0.0, torch.finfo(torch.float64).tiny, 1e-200, 1 - 2**-53, 1.0], dtype=torch.float64)
    for a in (0.02, 1.0, 10.0):
        assert slope(sample, torch.tensor(a, dtype=torch.float64)).isfinite().all()


def noise(seed, a, count):
    """The shares and partners that Mixup draws after this seed."""
    torch.manual_seed(seed)
    return symmetric_beta(a, count).detach(), torch.randperm(6)


@pytest.mark.parametrize("per", ["example", "batch"])
def test_inputs_and_targets_are_mixed_alike(per):
    x, y = torch.randn(6, 2, 3, dtype=torch.float64), torch.randint(4, (6,))
    mixup = Mixup(0.7, num_classes=4, per=per).double()
    share, partner = noise(5, mixup.strength, 6 if per == "example" else 1)
    torch.manual_seed(5)
    mixed, probabilities = mixup(x, y)
    share = share.expand(6)
    assert_close(mixed, share[:, None, None] * x + (1 - share)[:, None, None] * x[partner], "x")
    scores = torch.randn(6, 4, dtype=torch.float64)
    a, b = (F.cross_entropy(scores, t, reduction="none") for t in (y, y[partner]))
    assert_close(F.cross_entropy(scores, probabilities), (share * a + (1 - share) * b).mean(), "loss")
    torch.manual_seed(5)
    again, soft = mixup(x, F.one_hot(y, 4).double())
    assert torch.equal(again, mixed) and torch.equal(soft, probabilities)


def test_targets_of_many_positions_and_of_numbers():
    mixup = Mixup(0.5, num_classes=4)
    x, y = mixup(torch.randn(3, 2, 5), torch.randint(4, (3, 5)))
    assert x.shape == (3, 2, 5) and y.shape == (3, 4, 5)
    assert torch.allclose(y.sum(1), torch.ones(3, 5))
    assert Mixup()(torch.randn(3, 2), torch.randn(3, 1))[1].shape == (3, 1)


def test_a_batch_of_one_none_and_evaluation_stay():
    mixup = Mixup(0.5, num_classes=3)
    x, y = torch.randn(1, 4), torch.tensor([2])
    mixed, probabilities = mixup(x, y)
    assert_close(mixed, x, "x")
    assert_close(probabilities, torch.tensor([[0.0, 0.0, 1.0]]), "y")
    F.cross_entropy(mixed[:, :3], probabilities).backward()
    assert mixup.strength.grad == pytest.approx(0, abs=1e-6)
    assert mixup(x[:0], y[:0])[1].shape == (0, 3)
    assert mixup.eval()(x, y)[0] is x and mixup(x, y)[1] is y


def test_with_smoothing_and_gradients_of_the_weights_by_the_strength():
    """d / da of a gradient, which the forward method takes, equals that of `slope`, at fixed samples."""
    mixup, criterion = Mixup(0.7, num_classes=3).double(), LabelSmoothingCrossEntropy(0.1).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(weight)

    def loss():
        torch.manual_seed(2)
        mixed, targets = mixup(x, y)
        return criterion(mixed @ weight, targets)

    (by_weight,) = torch.autograd.grad(loss(), weight, create_graph=True)
    (one,) = torch.autograd.grad((by_weight * direction).sum(), mixup.strength)
    (by_strength,) = torch.autograd.grad(loss(), mixup.strength, create_graph=True)
    (other,) = torch.autograd.grad(by_strength, weight)
    assert_close((other * direction).sum(), one, "mixed derivative")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    mixup = Mixup(0.7, num_classes=3).to(dtype)
    torch.manual_seed(3)
    mixed, targets = mixup(x.to(dtype), y)
    torch.manual_seed(3)
    expected, same = mixup(x.to(dtype).float(), y)
    assert mixed.dtype == dtype and targets.dtype == torch.float32 and mixup.strength.dtype == torch.float32
    assert_close(mixed, expected.to(dtype), "x")
    assert torch.equal(targets, same)
    assert mixup(x.to(dtype), x.to(dtype))[1].dtype == dtype
