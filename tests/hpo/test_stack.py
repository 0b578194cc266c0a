"""Stacked models compute what each model computes, and so do their gradients; what cannot be stacked is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metafast.hpo._engines import cross_entropy, make_engine
from metafast.hpo._stack import NotStackableError, stack
from metafast.models import MLP, DeepSpeech, LSTMForecaster, RNNClassifier, SequenceTransformer, SmallCNN, ViT

TOKENS = torch.randint(1, 50, (3, 4, 9), generator=torch.Generator().manual_seed(0))
TOKENS[..., 6:] = 0
CASES = {
    "mlp": (lambda seed: MLP(9, (8, 8), 5, seed=seed), (9,)),
    "cnn": (lambda seed: SmallCNN(2, 5, 8, seed=seed), (2, 8, 8)),
    "lstm": (lambda seed: LSTMForecaster(6, hidden=8, layers=2, dropout=0.1 * seed, seed=seed), (20,)),
    "vit": (lambda seed: ViT(1, 5, 14, patch=7, dim=16, layers=2, heads=2, seed=seed), (1, 14, 14)),
    "transformer": (lambda seed: SequenceTransformer(5, 9, dim=8, heads=2, seed=seed), (9,)),
    "deep speech": (lambda seed: DeepSpeech(4, 5, channels=8, hidden=8, seed=seed), (30, 4)),
    "gru": (lambda seed: RNNClassifier(50, 5, kind="gru", dim=8, hidden=8, layers=2, seed=seed), None),
    "last state": (lambda seed: RNNClassifier(50, 5, dim=8, hidden=8, pool="last", seed=seed), None),
    "text transformer": (lambda seed: SequenceTransformer(5, 9, buckets=50, dim=8, heads=2, seed=seed), None),
}


def gap(a, b):
    return float((a.detach() - b.detach()).norm() / (b.detach().norm() + 1e-30))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_each_model(name):
    build, shape = CASES[name]
    models = [build(seed).double().eval() for seed in range(3)]
    x = TOKENS if shape is None else torch.randn(3, 4, *shape, dtype=torch.float64)
    stacked = stack(models).eval()
    found = stacked(x.flatten(0, 1)).unflatten(0, (3, -1))
    grads = torch.autograd.grad(found.square().sum(), stacked.weights)
    for i, model in enumerate(models):
        out = model(x[i])
        assert gap(found[i], out) < 1e-12
        wanted = torch.autograd.grad(out.square().sum(), list(model.parameters()))
        assert all(gap(mine[i], want) < 1e-10 or want.norm() < 1e-12 for mine, want in zip(grads, wanted, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    copies=st.integers(1, 4), batch=st.integers(1, 5), length=st.integers(1, 6), size=st.integers(1, 5),
    hidden=st.integers(1, 5), layers=st.integers(1, 3), kind=st.sampled_from([nn.GRU, nn.LSTM]),
)  # fmt: skip
def test_recurrent_layers_of_any_size(copies, batch, length, size, hidden, layers, kind):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = kind(size, hidden, layers, batch_first=True)

        def forward(self, x):
            return self.inner(x)[0]

    models = [Last().double() for _ in range(copies)]
    x = torch.randn(copies, batch, length, size, dtype=torch.float64)
    found = stack(models)(x.flatten(0, 1)).unflatten(0, (copies, -1))
    assert gap(found, torch.stack([m(x[i]) for i, m in enumerate(models)])) < 1e-12


def test_dropout_has_each_models_own_probability():
    models = [nn.Sequential(nn.Dropout(p)) for p in (0.0, 0.25, 1.0)]
    found = stack(models).train()(torch.ones(3 * 4000, 2)).view(3, -1)
    assert torch.equal(found[0], torch.ones(8000))
    assert found[1].mean() == pytest.approx(1.0, abs=0.03) and (found[1] == 0).float().mean() == pytest.approx(
        0.25, abs=0.03
    )
    assert found[1].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not found[2].any()


def test_padding_takes_no_gradient():
    models = [nn.Sequential(nn.Embedding(5, 3, padding_idx=0)) for _ in range(2)]
    stacked = stack(models)
    stacked(torch.tensor([[0, 1], [0, 2]])).sum().backward()
    grad = stacked.weights[0].grad
    assert not grad[:, 0].any() and grad[0, 1].all() and grad[1, 2].all()


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "empty"),
        ([nn.Linear(2, 3), nn.Linear(2, 4)], "different names or shapes"),
        ([nn.BatchNorm1d(3)] * 2, "BatchNorm1d"),
        ([nn.GRU(2, 3, bidirectional=True, batch_first=True)] * 2, "one direction"),
        ([nn.GRU(2, 3)] * 2, "batch_first"),
        ([nn.Conv2d(2, 2, 3, groups=2)] * 2, "groups"),
        ([nn.Embedding(4, 2, sparse=True)] * 2, "sparse"),
        ([WithBuffer()] * 2, "buffers"),
        ([nn.MultiheadAttention(4, 2)] * 2, "no stacked form"),
    ],
)
def test_what_cannot_be_stacked_is_named(models, message):
    with pytest.raises(NotStackableError, match=message):
        stack(models)


def test_shared_weights_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    with pytest.raises(NotStackableError, match="shared"):
        stack([Tied(), Tied()])


class Mixes(nn.Module):
    """Looks at the other examples of its batch: stacked, it would see those of other models."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Flagged(nn.Module):
    """Its code depends on something that its layers do not show."""

    def __init__(self, sign):
        super().__init__()
        self.layer, self.sign = nn.Linear(4, 3), sign

    def forward(self, x):
        return self.sign * self.layer(x)


@pytest.mark.parametrize("models", [[Mixes(), Mixes()], [Flagged(1.0), Flagged(-1.0)]])
def test_an_engine_that_would_be_wrong_is_not_chosen(models):
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    engine, reason = make_engine(models, cross_entropy, x, y, 0, "auto")
    assert engine.name == "loop" and "not compute what each model computes" in reason
    for kind in ("compiled", "stacked"):
        with pytest.raises(ValueError, match=f'engine="{kind}"'):
            make_engine(models, cross_entropy, x, y, 0, kind)
