"""Concrete dropout against `nn.Dropout`, and its place in a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metafast.tune.regularizers import ConcreteDropout, replace_dropout
from tests.helpers import assert_close


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_low_temperatures_are_dropout(p):
    """Values, mean and variance: x / (1 - p) or 0, mean x, variance x² p / (1 - p)."""
    out = ConcreteDropout(p, temperature=1e-3).double()(torch.full((200_000,), 3.0, dtype=torch.float64))
    kept = 3 / (1 - p)
    between = (out > 1e-6 * kept) & (out < (1 - 1e-6) * kept)
    assert between.double().mean() < 0.01
    assert out.mean().item() == pytest.approx(3, abs=5 * 3 * (p / (1 - p) / 2e5) ** 0.5)
    assert out.var().item() == pytest.approx(9 * p / (1 - p), rel=0.03)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_moments_are_those_of_the_relaxed_distribution(temperature, monkeypatch):
    p, count = 0.3, 400_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    mask = 1 - torch.sigmoid((torch.tensor(p, dtype=torch.float64).logit() + u.logit()) / temperature)
    out = ConcreteDropout(p, temperature)(torch.ones(count))
    assert out.mean().item() == pytest.approx((mask / (1 - p)).mean().item(), rel=0.01)
    assert out.var().item() == pytest.approx((mask / (1 - p)).var().item(), rel=0.01)
    assert (mask / (1 - p)).mean().item() == pytest.approx(1, abs=2e-3 if temperature < 0.5 else 0.1)


@pytest.mark.parametrize(
    ("dims", "plain", "shape"),
    [
        (0, nn.Dropout, (4, 6)),
        (0, nn.Dropout, ()),
        (1, nn.Dropout1d, (3, 5, 4)),
        (1, nn.Dropout1d, (5, 4)),
        (2, nn.Dropout2d, (3, 5, 4, 2)),
        (3, nn.Dropout3d, (3, 5, 4, 2, 2)),
        (3, nn.Dropout3d, (5, 4, 2, 2)),
    ],
)
def test_what_is_dropped_together(dims, plain, shape):
    """Positions that share a mask are those of torch's layer: equal in every draw."""
    ours, theirs = ConcreteDropout(0.5, 1e-3, dims), plain(0.5)
    ones = torch.ones(shape)
    patterns = [torch.stack([(layer(ones) > 1).flatten() for _ in range(40)], 1) for layer in (ours, theirs)]
    groups = [(rows[:, None] == rows[None]).all(2) for rows in patterns]
    assert torch.equal(*groups)


def test_three_dimensions_in_a_two_dimensional_dropout_are_those_of_torch():
    out = ConcreteDropout(0.5, 1e-3, 2)(torch.ones(3, 5, 4))
    assert (out == out[:, :, :1]).all() and not (out == out[:, :1]).all()


def test_derivatives():
    dropout = ConcreteDropout(0.3, temperature=0.5).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def fixed(x, p):
        torch.manual_seed(4)
        return dropout(x)

    assert torch.autograd.gradcheck(fixed, (x, dropout.p))
    assert torch.autograd.gradgradcheck(fixed, (x, dropout.p))


def test_a_draw_of_zero_has_finite_derivatives(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape, **options))
    dropout = ConcreteDropout(0.3)
    out = dropout(torch.ones(5))
    assert_close(out, torch.full((5,), 1 / 0.7), "kept")
    assert torch.autograd.grad(out.sum(), dropout.p)[0].isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    dropout = ConcreteDropout(0.3).to(dtype)
    assert dropout.p.dtype == torch.float32 and dropout.p.requires_grad
    torch.manual_seed(1)
    out = dropout(torch.ones(64, dtype=dtype))
    torch.manual_seed(1)
    assert out.dtype == dtype
    assert_close(out, dropout(torch.ones(64)).to(dtype), "mask")


def test_seeds_and_evaluation():
    dropout, x = ConcreteDropout(0.4), torch.randn(8, 8)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert dropout.eval()(x) is x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.same = self.drop
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.3), nn.ModuleList([nn.Dropout(0.0)]))
        self.last = nn.Dropout1d(0.2).eval()


def test_replacing_in_a_model():
    model = Net()
    specs = replace_dropout(model, temperature=0.2)
    assert [spec.name for spec in specs] == ["drop.p", "body.1.p", "body.2.0.p", "last.p"]
    assert [spec.what.item() for spec in specs] == pytest.approx([0.2, 0.3, 1e-3, 0.2])
    assert {spec.space for spec in specs} == {"logit"}
    assert model.drop is model.same and model.drop.temperature == 0.2
    assert model.body[1].channel_dims == 2 and model.last.channel_dims == 1
    assert model.drop.training and not model.last.training
    assert list(model.body._modules) == ["0", "1", "2"]  # the order of a Sequential
    names = [name for name, _ in model.named_parameters()]
    assert names == ["body.0.weight", "body.0.bias"]


def test_replacing_by_one_probability():
    model = Net()
    (spec,) = replace_dropout(model, "global", p=0.25)
    layers = [model.drop, model.body[1], model.body[2][0], model.last]
    assert all(layer.p is spec.what for layer in layers) and spec.name == "dropout"
    twin = copy.deepcopy(model)
    assert twin.drop.p is twin.last.p and twin.drop.p is not spec.what and twin.drop.p.is_leaf
    model.double()
    assert all(layer.p is spec.what for layer in layers) and spec.what.dtype == torch.float64


def test_a_model_that_is_refused_has_not_changed():
    model = Net()
    for options, message in (
        ({"per": "global"}, "different probabilities, 0.001, 0.2, 0.3"),
        ({"per": "channel"}, "per must be one of"),
        ({"p": 1.0}, "p must be above 0 and below 1"),
        ({"p": -0.1}, "p must be above 0 and below 1"),
        ({"temperature": 0.0}, "temperature must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_dropout(model, **options)
    assert type(model.drop) is nn.Dropout and type(model.last) is nn.Dropout1d
    for without in (nn.Linear(2, 2), nn.Dropout(0.1), nn.Sequential(nn.AlphaDropout(0.1))):
        with pytest.raises(ValueError, match="no nn.Dropout"):
            replace_dropout(without)
    with pytest.raises(TypeError, match="nn.Module"):
        replace_dropout([nn.Dropout()])
