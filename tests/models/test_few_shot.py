"""The models of the few-shot papers: sizes, seeds, gradients, wrong arguments."""

import pytest
import torch
from torch import nn

from metafast.models import Conv4, OmniglotFC, ResNet12, SentenceCNN, SinusoidMLP, TextCNN, TextMLP

BUILDERS = {
    "conv4": (lambda **o: Conv4(1, 5, 28, channels=8, **o), (1, 28, 28), 5),
    "conv4 with pooling": (lambda **o: Conv4(3, 5, 40, channels=8, downsample="max_pool", **o), (3, 40, 40), 5),
    "omniglot fc": (lambda **o: OmniglotFC(5, hidden=(32, 16), **o), (1, 28, 28), 5),
    "sinusoid": (lambda **o: SinusoidMLP(**o), (1,), 1),
    "resnet12": (lambda **o: ResNet12(3, 5, widths=(4, 4, 8, 8), **o), (3, 20, 20), 5),
    "text mlp": (lambda **o: TextMLP(50, 5, **o), None, 5),
    "sentence cnn": (lambda **o: SentenceCNN(6, 5, length=9, filters=16, **o), (6, 9, 1), 5),
    "text cnn": (lambda **o: TextCNN(50, 5, filters=16, **o), None, 5),
}


def inputs(shape, count=10):
    generator = torch.Generator().manual_seed(0)
    if shape is None:
        return torch.randint(0, 50, (count, 7), generator=generator)
    return torch.randn(count, *shape, generator=generator)


@pytest.mark.parametrize("name", BUILDERS)
def test_shape_seed_and_gradient(name):
    build, shape, width = BUILDERS[name]
    before = torch.get_rng_state()
    model, twin, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    x = inputs(shape)
    out = model(x)
    assert out.shape == (10, width)
    assert torch.equal(out, twin(x))
    assert not torch.equal(out, other(x))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("sinusoid",)])
def test_it_fits_ten_examples(name):
    build, shape, _ = BUILDERS[name]
    model, x, y = build(seed=0), inputs(shape), torch.arange(10) % 5
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("name", ["conv4", "conv4 with pooling", "omniglot fc", "resnet12"])
def test_batch_norms_keep_running_statistics_only_when_asked(name):
    build, shape, _ = BUILDERS[name]
    model = build(seed=0)
    assert not list(model.buffers())
    assert torch.equal(model.eval()(inputs(shape)), model.train()(inputs(shape)))
    assert list(build(seed=0, track_running_stats=True).buffers())


def test_sizes_of_the_papers():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    # MAML's models; the convolutions of mini-ImageNet's end in 5x5x32 = 800 numbers
    assert count(Conv4(1, 5, 28)) == 640 + 3 * 36928 + 4 * 128 + 325
    assert Conv4(3, 5, 84, channels=32, downsample="max_pool").classifier.in_features == 800
    assert count(SinusoidMLP()) == 80 + 1640 + 41
    assert [m.out_features for m in OmniglotFC(5).modules() if isinstance(m, nn.Linear)] == [256, 128, 64, 64, 5]
    assert ResNet12(3, 5).classifier.in_features == 640
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in ResNet12(3, 5).modules()) == 12


def test_odd_images_halve_upwards_with_stride():
    assert Conv4(1, 3, 9, channels=4)(torch.zeros(2, 1, 9, 9)).shape == (2, 3)


def test_padding_does_not_count_and_word_order_does():
    for model in (TextMLP(50, 3, seed=0), TextCNN(50, 3, seed=0)):
        a, b = model(torch.tensor([[5, 7, 9, 0, 0]])), model(torch.tensor([[5, 7, 9]]))
        torch.testing.assert_close(a, b)
    words = torch.tensor([[5, 7, 9]])
    assert not torch.allclose(TextCNN(50, 3, seed=0)(words), TextCNN(50, 3, seed=0)(words.flip(1)))
    assert TextMLP(50, 3, seed=0)(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Conv4(1, 0, 28), ValueError, "classes must be at least 1"),
        (lambda: Conv4(1, 5, 15, downsample="max_pool"), ValueError, "image_size must be at least 16"),
        (
            lambda: Conv4(1, 5, 28, downsample="mean"),
            ValueError,
            "downsample must be 'stride' or 'max_pool', got 'mean'",
        ),
        (lambda: Conv4(1, 5, 28.0), TypeError, "image_size must be an integer"),
        (lambda: OmniglotFC(5, hidden=64), TypeError, r"hidden must be a sequence of widths such as \(256, 128\)"),
        (lambda: SinusoidMLP(40), TypeError, r"hidden must be a sequence of widths such as \(40, 40\), got 40"),
        (lambda: SinusoidMLP((40, 0)), ValueError, r"hidden\[1\] must be at least 1"),
        (
            lambda: ResNet12(3, 5, widths=(64, 128)),
            ValueError,
            r"widths must be four numbers of channels, got \(64, 128\)",
        ),
        (lambda: TextMLP(9, 2, hidden=0), ValueError, "hidden must be at least 1"),
        (lambda: TextCNN(9, 2, window=2), ValueError, "window must be odd, got 2"),
        (lambda: SentenceCNN(9, 2, window=4), ValueError, "window must be odd, got 4"),
        (lambda: SentenceCNN(9, 2, length=0), ValueError, "length must be at least 1"),
    ],
)
def test_wrong_sizes(call, error, text):
    with pytest.raises(error, match=text):
        call()
