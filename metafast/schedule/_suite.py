"""The suites of small real trainings that the shipped controller was made with, and what is drawn from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metafast import models
from metafast.data import Samples, bag_of_words, digits, hash_tokens, labels_of, load, split_validation
from metafast.data._pictures import pictures
from metafast.models._small import _seeded
from metafast.schedule._tasks import Task
from metafast.schedule._trainings import Start

MOST = 8000  # examples of a data set


@dataclass(frozen=True)
class Draw:
    """What trainings begin with: rates log-uniform, half of them near where people start; lengths log-uniform.

    Args:
        interval: steps between two decisions; lengths are multiples.
        rates: lowest and highest starting rate.
        usual: the same, of the usual half.
        steps: shortest and longest training.
        open_end: share of the trainings whose length the controller is not told.
    """

    interval: int
    rates: tuple[float, float] = (1e-6, 0.1)
    usual: tuple[float, float] = (3e-4, 3e-3)
    steps: tuple[int, int] = (100, 800)
    open_end: float = 0.2

    def __call__(self, generator: torch.Generator) -> Start:
        """A start."""
        seed = int(torch.randint(1 << 30, (), generator=generator))
        u = torch.rand(4, generator=generator).tolist()
        rate = _between(self.usual if u[0] < 0.5 else self.rates, u[1])
        steps = round(_between(self.steps, u[2]) / self.interval) * self.interval
        return Start(seed, rate, max(self.interval, steps), u[3] < self.open_end)


def _between(ends: tuple[float, float], share: float) -> float:
    low, high = ends
    return low * math.exp(share * math.log(high / low))


def _parts(inputs: Tensor, labels: Tensor) -> tuple[Samples, Samples]:
    if len(labels) > MOST:
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MOST]
        inputs, labels = inputs[chosen], labels[chosen]
    train, val = split_validation(labels, 0.2, seed=0)
    return Samples(inputs[train], labels[train]), Samples(inputs[val], labels[val])


@functools.cache
def _images(name: str, split: str, column: str, label: str, side: int) -> tuple[Samples, Samples]:
    """Pictures in [0, 1], averaged down to `side`."""
    rows = load(name, split)
    x = torch.from_numpy(pictures(rows, column)).float() / 255
    if x.shape[-1] != side:
        x = torch.nn.functional.adaptive_avg_pool2d(x, side)
    return _parts(x, labels_of(rows, label))


@functools.cache
def _omniglot() -> tuple[Samples, Samples]:
    """Which alphabet a character is from."""
    rows = load("omniglot", "background")
    x = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pictures(rows, "image")).float() / 255, 14)
    names = rows["alphabet"][:]
    order = {name: i for i, name in enumerate(sorted(set(names)))}
    return _parts(x, torch.tensor([order[name] for name in names]))


@functools.cache
def _words(name: str, split: str, text: str, label: str, kind: str) -> tuple[Samples, Samples]:
    rows = load(name, split)
    column = rows[text][:]
    texts = [" ".join(words) if isinstance(words, list) else words for words in column]
    x = bag_of_words(texts, 512) if kind == "bag" else hash_tokens(texts, 1024, 32)
    labels = rows[label][:]
    order = {name: i for i, name in enumerate(sorted(set(labels), key=str))}
    return _parts(x, torch.tensor([order[name] for name in labels]))


@functools.cache
def _tags() -> tuple[Samples, Samples]:
    """The tag of the middle word of five."""
    rows = load("conllpp", "train")
    windows, labels = [], []
    for words, tags in zip(rows["tokens"][:3000], rows["ner_tags"][:3000], strict=True):
        padded = ["<s>", "<s>", *words, "</s>", "</s>"]
        windows += [" ".join(f"{k}:{word}" for k, word in enumerate(padded[i : i + 5])) for i in range(len(words))]
        labels += tags
    return _parts(hash_tokens(windows, 2048, 5), torch.tensor(labels))


@functools.cache
def _spoken() -> tuple[Samples, Samples]:
    """Log energies of 16 bands in 16 pieces of a spoken digit."""
    rows = load("free_spoken_digit", "train")
    found = []
    for sound in rows["array"][:]:
        wave = torch.tensor(sound, dtype=torch.float32)
        spectrum = torch.stft(wave, 256, 128, window=torch.hann_window(256), return_complex=True).abs().square()
        found.append(torch.nn.functional.adaptive_avg_pool2d((spectrum + 1.0).log()[None], (16, 16)))
    x = torch.stack(found)
    return _parts((x - x.mean()) / x.std(), torch.tensor(rows["label"][:]))


def _digits() -> tuple[Samples, Samples]:
    parts = digits(seed=0)
    return parts.train, parts.val


Parts = Callable[[], tuple[Samples, Samples]]


def _task(name: str, data: str, parts: Parts, model: Callable[[int], torch.nn.Module], optimizer: str = "adam") -> Task:
    train, val = parts()
    return Task(f"{data}/{name}", model, train, val, optimizer=optimizer, data=data)


def training_suite() -> list[Task]:
    """What the shipped controller learned from: digits, CIFAR-100, Omniglot, CLINC and spoken digits.

    Raises:
        FileNotFoundError, ImportError: data that are neither at hand nor on the hub.
    """
    cifar = functools.partial(_images, "cifar100", "train", "img", "coarse_label")
    clinc = functools.partial(_words, "clinc_oos", "train", "text")
    domains, intents = functools.partial(clinc, "domain"), functools.partial(clinc, "intent")
    mlp, cnn, bag, text = models.MLP, models.SmallCNN, models.EmbeddingBagClassifier, models.TextMLP
    return [
        _task("mlp", "digits", _digits, lambda seed: mlp(64, (32,), 10, seed=seed)),
        _task("cnn", "digits", _digits, lambda seed: cnn(1, 10, 8, width=8, seed=seed)),
        _task("mlp", "cifar100", lambda: cifar(16), lambda seed: mlp(768, (32, 32), 20, seed=seed)),
        _task("normed cnn", "cifar100", lambda: cifar(16), lambda seed: _normed_cnn(3, 20, seed)),
        _task("normed mlp", "omniglot", _omniglot, lambda seed: _normed_mlp(196, (64, 64, 64), 30, seed)),
        _task("cnn, sgd", "omniglot", _omniglot, lambda seed: cnn(1, 30, 14, width=8, seed=seed), "sgd"),
        _task("mlp", "clinc_oos", lambda: domains("bag"), lambda seed: mlp(512, (32,), 11, seed=seed)),
        _task("bag", "clinc_oos", lambda: domains("tokens"), lambda seed: bag(1024, 11, dim=16, seed=seed)),
        # Many classes: losses that hardly move at first.
        _task("mlp, intents", "clinc_oos", lambda: intents("bag"), lambda seed: mlp(512, (64,), 151, seed=seed)),
        _task("text, intents", "clinc_oos", lambda: intents("tokens"), lambda seed: text(1024, 151, dim=16, seed=seed)),
        _task("mlp, sgd", "spoken_digit", _spoken, lambda seed: mlp(256, (32,), 10, seed=seed), "sgd"),
        _task("mlp, adamw", "spoken_digit", _spoken, lambda seed: mlp(256, (64, 32), 10, seed=seed), "adamw"),
    ]


def _normed_cnn(channels: int, classes: int, seed: int) -> nn.Module:
    with _seeded(seed):
        layers: list[nn.Module] = []
        for before, after in ((channels, 8), (8, 16)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def _normed_mlp(inputs: int, widths: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    with _seeded(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((inputs, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def validation_suite() -> list[Task]:
    """What decides when meta-training stops: FewRel and CoNLL++, and models in other sizes."""
    few_rel = functools.partial(_words, "few_rel", "train_wiki_subset", "tokens", "relation")
    mlp, bag = models.MLP, models.EmbeddingBagClassifier
    return [
        _task("bag", "few_rel", lambda: few_rel("tokens"), lambda seed: bag(1024, 64, dim=32, seed=seed)),
        _task("mlp", "few_rel", lambda: few_rel("bag"), lambda seed: mlp(512, (64,), 64, seed=seed)),
        _task("bag", "conllpp", _tags, lambda seed: bag(2048, 9, dim=16, seed=seed)),
    ]
