"""Which pairs of data and model are trained, and for how long: the settings at three sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

RATE = 1e-3  # Adam's usual one, where everything starts that is not told otherwise
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the grid and of the sweep
RUNS = 5  # that the controller adapts by, each as long as the training: shorter ones favour rates that are too high
# What the aims are about. None of their data and models was used in meta-training; the code looks.
HELD_OUT = (
    "cifar10/resnet18",
    "cifar10/vit",
    "fashion_mnist/resnet18",
    "mnist/vit",
    "imdb/gru",
    "ag_news/lstm",
    "ag_news/bert",
    "imdb/roberta",
    "few_rel/gru",
    "conllpp/lstm",
)
# On these five the adapted controller is judged, named before anything was measured.
ADAPTED = ("fashion_mnist/resnet18", "mnist/vit", "imdb/gru", "ag_news/lstm", "cifar10/resnet18")
# Starting rates that must end within a point of the best fixed rate. Data that meta-training has not seen, on small
# models of the kinds that it has.
SWEEP = {"mnist/mlp": 7, "fashion_mnist/mlp": 7, "cifar10/cnn": 5, "ag_news/embedding": 5}


@dataclass(frozen=True)
class Setup:
    """One pair.

    Args:
        data: name of the data set.
        model: name of the model.
        train, val, test: examples of each part; None: all (of validation: a tenth of what there is to train on).
        steps: of a training.
        sizes: of the model, as it takes them.
        encoding: of texts: "length" in tokens and "buckets" of words.
        watch: validation examples that the progress of a training is measured on.
        batch_size: of training.
    """

    data: str
    model: str
    train: int | None
    val: int | None
    test: int | None
    steps: int
    sizes: dict[str, Any] = field(default_factory=dict)
    encoding: dict[str, int] = field(default_factory=dict)
    watch: int = 1000
    batch_size: int = 32

    @property
    def pair(self) -> str:
        """Its name."""
        return f"{self.data}/{self.model}"


@dataclass(frozen=True)
class Recipe:
    """All pairs at one size.

    Args:
        name: of the recipe.
        seeds: trainings per method.
        setups: by name of the pair.
        about: what a reader should know about its size.
    """

    name: str
    seeds: int
    setups: dict[str, Setup]
    about: str


def _by_name(*setups: Setup) -> dict[str, Setup]:
    return {setup.pair: setup for setup in setups}


_TEXT = {"length": 128, "buckets": 16384}
_TINY_VIT = {"dim": 192, "layers": 12, "heads": 3}

FULL = Recipe(
    name="full",
    seeds=3,
    setups=_by_name(
        Setup("cifar10", "resnet18", None, None, None, 15_000, {"width": 64}),
        Setup("cifar10", "vit", None, None, None, 15_000, {"patch": 4, **_TINY_VIT}),
        Setup("fashion_mnist", "resnet18", None, None, None, 12_000, {"width": 64}),
        Setup("mnist", "vit", None, None, None, 12_000, {"patch": 4, **_TINY_VIT}),
        Setup("imdb", "gru", None, None, None, 6_000, {"dim": 128, "hidden": 256}, {**_TEXT, "length": 256}),
        Setup("ag_news", "lstm", None, None, None, 12_000, {"dim": 128, "hidden": 256}, _TEXT),
        Setup("ag_news", "bert", None, None, None, 6_000, {"name": "bert-base-uncased"}, {"length": 128}),
        Setup("imdb", "roberta", None, None, None, 3_000, {"name": "roberta-base"}, {"length": 256}),
        Setup("few_rel", "gru", None, None, 2_000, 5_000, {"dim": 128, "hidden": 256}, _TEXT),
        Setup("conllpp", "lstm", None, None, None, 8_000, {"dim": 128, "hidden": 256, "pool": "last"}, _TEXT),
        Setup("yelp", "bert", None, None, None, 20_000, {"name": "bert-base-uncased"}, {"length": 128}),
        Setup("few_nerd", "lstm", None, None, None, 8_000, {"dim": 128, "hidden": 256, "pool": "last"}, _TEXT),
        Setup("mnist", "mlp", None, None, None, 9_000, {"hidden": (128,)}),
        Setup("fashion_mnist", "mlp", None, None, None, 9_000, {"hidden": (128,)}),
        Setup("cifar10", "cnn", None, None, None, 9_000, {"width": 16, "stride": 2}),
        Setup("ag_news", "embedding", None, None, None, 9_000, {"dim": 32}, _TEXT),
    ),
    about="all of the data, ResNet-18 with 64 channels, DeiT-Tiny, BERT-base and RoBERTa-base, from METAFAST_DATA or "
    "the hub. Yelp and Few-NERD are on the hub alone; they are shown, and not part of the aims. Meant for a GPU.",
)

_SMALL_TEXT = {"length": 48, "buckets": 4096}
_SMALL_RNN = {"dim": 64, "hidden": 64}
_SMALL_ENCODER = {"dim": 64, "layers": 2, "heads": 2}
_SMALL_VIT = {"dim": 32, "layers": 2, "heads": 2}

REDUCED = Recipe(
    name="reduced",
    seeds=3,
    setups=_by_name(
        Setup("cifar10", "resnet18", 8_000, 500, 2_000, 600, {"width": 4}, watch=500),
        Setup("cifar10", "vit", 8_000, 500, 2_000, 1_200, {"patch": 8, **_SMALL_VIT}, watch=500),
        Setup("fashion_mnist", "resnet18", 8_000, 500, 2_000, 600, {"width": 4}, watch=500),
        Setup("mnist", "vit", 8_000, 500, 2_000, 1_200, {"patch": 7, **_SMALL_VIT}, watch=500),
        Setup("imdb", "gru", 3_200, 500, 2_000, 700, _SMALL_RNN, _SMALL_TEXT, watch=500),
        Setup("ag_news", "lstm", 8_000, 500, 2_000, 1_000, _SMALL_RNN, _SMALL_TEXT, watch=500),
        Setup("ag_news", "bert", 8_000, 500, 2_000, 600, _SMALL_ENCODER, {**_SMALL_TEXT, "length": 32}, watch=500),
        Setup("imdb", "roberta", 3_200, 500, 2_000, 500, _SMALL_ENCODER, _SMALL_TEXT, watch=500),
        Setup("few_rel", "gru", 8_000, 500, 2_000, 800, _SMALL_RNN, _SMALL_TEXT, watch=500),
        Setup("conllpp", "lstm", 8_000, 500, 2_000, 1_500, {**_SMALL_RNN, "pool": "last"}, _SMALL_TEXT, watch=500),
        Setup("mnist", "mlp", 16_000, 1_000, 5_000, 1_500, {"hidden": (128,)}, watch=500),
        Setup("fashion_mnist", "mlp", 16_000, 1_000, 5_000, 1_500, {"hidden": (128,)}, watch=500),
        Setup("cifar10", "cnn", 8_000, 1_000, 2_000, 800, {"width": 16, "stride": 2}, watch=500),
        Setup("ag_news", "embedding", 8_000, 1_000, 5_000, 1_500, {"dim": 32}, _SMALL_TEXT, watch=500),
    ),
    about="small models and parts of the data, so that all of it takes 45 minutes on two cores: ResNet-18 a sixteenth "
    "as wide, transformers of two layers with random weights, 64 units in LSTM and GRU, texts of up to 48 tokens, 500 "
    "to 1,500 steps. CoNLL++ stands in for Few-NERD.",
)

_SMOKE: dict[str, Any] = {"train": 1_000, "val": 200, "test": 400, "steps": 100, "watch": 200}
SMOKE = Recipe(
    name="smoke",
    seeds=2,
    setups=_by_name(
        replace(REDUCED.setups["mnist/vit"], **_SMOKE),
        replace(REDUCED.setups["mnist/mlp"], **_SMOKE),
    ),
    about="a few steps of one held-out pair and one sweep. It shows that everything works; the numbers are no result.",
)

RECIPES = {recipe.name: recipe for recipe in (SMOKE, REDUCED, FULL)}
