"""Data set and model pairs of the studies. Validation is a part of train; test is never used to choose anything."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from metafast import data, models

VAL_FRACTION = 0.2


class Pair(NamedTuple):
    """A model, the data that it learns, and for how long."""

    parts: Callable[[], data.Splits]
    model: Callable[[int], nn.Module]  # from a seed
    batch_size: int
    epochs: int


def _split(inputs: Tensor, labels: Tensor, test: data.Samples) -> data.Splits:
    train, val = data.split_validation(labels, VAL_FRACTION, seed=0)
    return data.Splits(data.Samples(inputs[train], labels[train]), data.Samples(inputs[val], labels[val]), test)


@functools.cache
def images(name: str) -> data.Splits:
    """Pixels in [0, 1]."""
    return _split(*data.to_tensors(data.load(name, "train")), data.Samples(*data.to_tensors(data.load(name, "test"))))


@functools.cache
def tokens(name: str, label: str, buckets: int, length: int) -> data.Splits:
    """Hashed words."""

    def part(split: str) -> data.Samples:
        rows = data.load(name, split)
        return data.Samples(data.hash_tokens(rows["text"][:], buckets, length), data.labels_of(rows, label))

    return _split(*part("train"), part("test"))


@functools.cache
def bags(name: str, label: str, buckets: int) -> data.Splits:
    """Word frequencies."""

    def part(split: str) -> data.Samples:
        rows = data.load(name, split)
        return data.Samples(data.bag_of_words(rows["text"][:], buckets), data.labels_of(rows, label))

    return _split(*part("train"), part("test"))


PAIRS: dict[str, Pair] = {
    "mnist_mlp": Pair(lambda: images("mnist"), lambda seed: models.MLP(784, (128,), 10, seed=seed), 64, 5),
    "fashion_mnist_mlp": Pair(
        lambda: images("fashion_mnist"), lambda seed: models.MLP(784, (128,), 10, seed=seed), 64, 5
    ),
    "ag_news_embedding": Pair(
        lambda: tokens("ag_news", "label", 4096, 64),
        lambda seed: models.EmbeddingBagClassifier(4096, 4, dim=32, seed=seed),
        64,
        8,
    ),
    "digits_cnn": Pair(data.digits, lambda seed: models.SmallCNN(1, 10, 8, seed=seed), 32, 20),
    "fashion_mnist_cnn": Pair(
        lambda: images("fashion_mnist"), lambda seed: models.SmallCNN(1, 10, 28, width=8, stride=2, seed=seed), 64, 2
    ),
    "cifar10_cnn": Pair(
        lambda: images("cifar10"), lambda seed: models.SmallCNN(3, 10, 32, width=16, stride=2, seed=seed), 64, 3
    ),
    "clinc_mlp": Pair(
        lambda: bags("clinc_oos", "intent", 2048), lambda seed: models.MLP(2048, (64,), 151, seed=seed), 64, 6
    ),
    "imdb_embedding": Pair(
        lambda: tokens("imdb", "label", 4096, 200),
        lambda seed: models.EmbeddingBagClassifier(4096, 2, dim=32, seed=seed),
        32,
        8,
    ),
}
ROBUSTNESS = ("mnist_mlp", "fashion_mnist_mlp", "ag_news_embedding")
