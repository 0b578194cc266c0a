"""Small models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import integer


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    seed = integer("seed", seed, minimum=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class LogisticRegression(nn.Module):
    """One linear layer on the flattened input: `logits = W x + b`.

    Args:
        in_features: numbers per sample, such as 784.
        classes: number of classes.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> LogisticRegression(784, 10, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int, classes: int, *, seed: int | None = None) -> None:
        super().__init__()
        in_features, classes = _sizes(in_features=in_features, classes=classes)
        with _seeded(seed):
            self.linear = nn.Linear(in_features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, classes]` of inputs `[N, ...]`."""
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened input.

    Args:
        in_features: numbers per sample, such as 784.
        hidden: widths of the hidden layers, such as `(128,)` or `(1000, 1000)`.
        classes: number of classes.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> sum(p.numel() for p in MLP(784, (128,), 10).parameters())
        101770
    """

    def __init__(self, in_features: int, hidden: Sequence[int], classes: int, *, seed: int | None = None) -> None:
        super().__init__()
        if isinstance(hidden, int) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths such as (128,), got {hidden!r}")
        in_features, classes = _sizes(in_features=in_features, classes=classes)
        widths = [in_features, *(integer(f"hidden[{i}]", width, minimum=1) for i, width in enumerate(hidden)), classes]
        with _seeded(seed):
            layers: list[nn.Module] = [nn.Flatten()]
            for index in range(len(widths) - 1):
                layers += [nn.ReLU()] * (index > 0) + [nn.Linear(widths[index], widths[index + 1])]
            self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[N, classes]` of inputs `[N, ...]`."""
        logits: Tensor = self.layers(inputs)
        return logits


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with ReLU and 2x2 pooling, then one linear layer; a few milliseconds per step on a CPU.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        image_size: height and width of the square images, at least 4.
        width: channels of the first convolution; the second has twice as many.
        stride: of the first convolution; 2 makes larger images as cheap as small ones.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or images that shrink to nothing.

    Example:
        >>> SmallCNN(1, 10, image_size=28, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        image_size: int,
        *,
        width: int = 16,
        stride: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        in_channels, classes, width = _sizes(in_channels=in_channels, classes=classes, width=width)
        image_size, stride = _sizes(image_size=image_size, stride=stride)
        side = ((image_size - 1) // stride + 1) // 2 // 2
        if side < 1:
            raise ValueError(f"image_size must be at least {4 * stride} with stride {stride}, got {image_size}")
        with _seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, width, 3, stride=stride, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
            )
            self.classifier = nn.Linear(2 * width * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, in_channels, image_size, image_size]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class EmbeddingBagClassifier(nn.Module):
    """The mean of a text's word embeddings, then one linear layer (fastText's classifier).

    Args:
        buckets: rows of the embedding, as given to `metafast.data.hash_tokens`.
        classes: number of classes.
        dim: width of the embedding.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> EmbeddingBagClassifier(100, 4, seed=0)(torch.tensor([[5, 7, 0], [0, 0, 0]])).shape
        torch.Size([2, 4])

    Source:
        A. Joulin et al., Bag of Tricks for Efficient Text Classification, EACL 2017.
    """

    def __init__(self, buckets: int, classes: int, *, dim: int = 64, seed: int | None = None) -> None:
        super().__init__()
        buckets, classes, dim = _sizes(buckets=buckets, classes=classes, dim=dim)
        with _seeded(seed):
            # dense gradients: fused optimizers refuse sparse ones
            self.embedding = nn.EmbeddingBag(buckets, dim, mode="mean", padding_idx=0)
            self.classifier = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]` of bucket numbers `[N, length]`, 0 for padding."""
        logits: Tensor = self.classifier(self.embedding(tokens))
        return logits


def _sizes(**sizes: Any) -> list[int]:
    return [integer(name, value, minimum=1) for name, value in sizes.items()]


def _dropout(p: Any) -> float:
    """A probability of dropout, or an error."""
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"dropout must be a number, got {p!r} ({type(p).__name__})")
    if not 0 <= p < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {p!r}")
    return float(p)
