"""Small models: shapes, seeds, learning, wrong sizes."""

import pytest
import torch

from metafast.models import MLP, EmbeddingBagClassifier, LogisticRegression, SmallCNN

BUILDERS = {
    "logistic": (lambda **o: LogisticRegression(64, 3, **o), torch.float32),
    "mlp": (lambda **o: MLP(64, (16, 8), 3, **o), torch.float32),
    "mlp without hidden layers": (lambda **o: MLP(64, (), 3, **o), torch.float32),
    "cnn": (lambda **o: SmallCNN(1, 3, 8, **o), torch.float32),
    "cnn with stride": (lambda **o: SmallCNN(1, 3, 8, stride=2, width=4, **o), torch.float32),
    "bag": (lambda **o: EmbeddingBagClassifier(50, 3, dim=8, **o), torch.int64),
}


def inputs(dtype, count=12):
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.int64:
        return torch.randint(0, 50, (count, 6), generator=generator)
    return torch.randn(count, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("name", BUILDERS)
def test_shape_seed_and_gradient(name):
    build, dtype = BUILDERS[name]
    before = torch.get_rng_state()
    model, twin, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    x = inputs(dtype)
    logits = model(x)
    assert logits.shape == (12, 3)
    assert torch.equal(logits, twin(x))
    assert not torch.equal(logits, other(x))
    torch.nn.functional.cross_entropy(logits, torch.arange(12) % 3).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    build()
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", BUILDERS)
def test_it_fits_twelve_samples(name):
    build, dtype = BUILDERS[name]
    model, x, y = build(seed=0), inputs(dtype), torch.arange(12) % 3
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_padding_does_not_count():
    model = EmbeddingBagClassifier(50, 3, seed=0)
    assert torch.allclose(model(torch.tensor([[5, 7, 0, 0]])), model(torch.tensor([[5, 7]])))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: LogisticRegression(0, 3), ValueError, "in_features must be at least 1"),
        (lambda: LogisticRegression(4, 2.0), TypeError, "classes must be an integer"),
        (lambda: MLP(4, 8, 2), TypeError, r"hidden must be a sequence of widths such as \(128,\), got 8"),
        (lambda: MLP(4, (8, 0), 2), ValueError, r"hidden\[1\] must be at least 1"),
        (lambda: SmallCNN(1, 2, 3), ValueError, "image_size must be at least 4"),
        (lambda: SmallCNN(1, 2, 4, stride=2), ValueError, "image_size must be at least 8 with stride 2"),
        (lambda: SmallCNN(1, 2, 8, seed=-1), ValueError, "seed must be at least 0"),
        (lambda: EmbeddingBagClassifier(9, 2, dim=None), TypeError, "dim must be an integer"),
    ],
)
def test_wrong_sizes(call, error, text):
    with pytest.raises(error, match=text):
        call()
