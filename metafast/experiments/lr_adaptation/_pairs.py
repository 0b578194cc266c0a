"""The data and the models."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metafast.data import Samples, Splits, encode_relations, hash_tokens, load, split_validation
from metafast.experiments._data import Sizes, choose_rows, picture_splits, some, text_rows
from metafast.experiments.lr_adaptation._recipes import Setup
from metafast.models import (
    MLP,
    BertClassifier,
    EmbeddingBagClassifier,
    ResNet18,
    RNNClassifier,
    RobertaClassifier,
    SmallCNN,
    ViT,
)

AROUND = 3  # words on either side of the one whose tag is wanted


@dataclass(frozen=True)
class Source:
    """A data set.

    Args:
        title: for people.
        classes: how many.
        load: reads the three parts; the number decides which rows they have.
        channels, side: of pictures.
    """

    title: str
    classes: int
    load: Callable[[Setup, int], Splits]
    channels: int = 0
    side: int = 0


@dataclass(frozen=True)
class Architecture:
    """A model.

    Args:
        title: for people.
        kind: its class, whose name a controller's record has where it was used in meta-training.
        make: builds it with weights from a seed.
    """

    title: str
    kind: type[nn.Module]
    make: Callable[[Setup, Source, int], nn.Module]


def load_pair(setup: Setup, seed: int) -> Splits:
    """Its data; `seed` decides which rows each part has."""
    return SOURCES[setup.data].load(setup, seed)


def build_model(setup: Setup, seed: int) -> nn.Module:
    """Its model with new weights."""
    return MODELS[setup.model].make(setup, SOURCES[setup.data], seed)


def title(setup: Setup) -> str:
    """For people."""
    return f"{SOURCES[setup.data].title}, {MODELS[setup.model].title}"


def window_tokens(sentences: Sequence[Sequence[str]], places: Sequence[tuple[int, int]], buckets: int) -> Tensor:
    """Each place's word with three before and three behind it, as two tokens a word: the word and how it is written.

    Args:
        sentences: words of each.
        places: sentence and word numbers.
        buckets: size of the embedding.

    Returns:
        int64 `[places, 14]`.
    """
    table = np.empty((len(places), 2 * (2 * AROUND + 1)), np.int64)
    for row, (number, middle) in enumerate(places):
        words = sentences[number]
        for column, place in enumerate(range(middle - AROUND, middle + AROUND + 1)):
            word = words[place] if 0 <= place < len(words) else "<outside>"
            table[row, 2 * column : 2 * column + 2] = _bucket(word.lower(), buckets), _bucket(_shape(word), buckets)
    return torch.from_numpy(table)


def _pictures(setup: Setup, seed: int) -> Splits:
    return picture_splits(setup.data, _sizes(setup), seed)


def _texts(setup: Setup, seed: int) -> Splits:
    model = build_model(setup, 0) if MODELS[setup.model].kind in ENCODERS else None

    def encode(texts: list[str]) -> Tensor:
        if isinstance(model, BertClassifier | RobertaClassifier):
            return model.encode(texts)
        return hash_tokens(texts, setup.encoding["buckets"], setup.encoding["length"])

    return Splits(*(Samples(encode(texts), labels) for texts, labels in text_rows(setup.data, _sizes(setup), seed)))


def _relations(setup: Setup, seed: int) -> Splits:
    """Which of 16 relations a sentence states; the parts are cut from the same sentences, as there is no test split."""
    table = load("few_rel", "val_wiki")
    names = table["relation"][:]
    order = {name: number for number, name in enumerate(sorted(set(names)))}
    labels = torch.tensor([order[name] for name in names])
    sentences, heads, tails = (table[column][:] for column in ("tokens", "head", "tail"))
    buckets, length = setup.encoding["buckets"], setup.encoding["length"]
    tokens = torch.from_numpy(
        encode_relations(sentences, heads, tails, style="sequence", buckets=buckets, length=length)
    ).long()
    rest, test = split_validation(labels, (setup.test or len(labels) // 5) / len(labels), seed)
    rows = choose_rows(labels[rest], labels[test], _sizes(setup), seed)
    places = (rest[rows.train], rest[rows.val], test[rows.test])
    return Splits(*(Samples(tokens[at], labels[at]) for at in places))


def _tags(setup: Setup, seed: int) -> Splits:
    """The tag of a word in its window; words without a tag are thinned to the number of the most frequent tag."""
    found = []
    for split in ("train", "test"):
        table = load(setup.data, split)
        sentences, tags = table["tokens"][:], table["ner_tags"][:]
        places = [(number, middle) for number, row in enumerate(tags) for middle in range(len(row))]
        labels = torch.tensor([tag for row in tags for tag in row])
        counts = labels.bincount()
        outside = (labels == 0).nonzero().squeeze(1)
        kept = outside[some(labels[outside], int(counts[1:].max()), seed)]
        all_kept = torch.cat([kept, labels.nonzero().squeeze(1)]).sort().values
        found.append((sentences, [places[row] for row in all_kept.tolist()], labels[all_kept]))
    (words, places, labels), (test_words, test_places, test_labels) = found
    rows = choose_rows(labels, test_labels, _sizes(setup), seed)
    parts = ((words, places, labels, rows.train), (words, places, labels, rows.val))
    return Splits(
        *(
            Samples(window_tokens(w, [p[row] for row in at.tolist()], setup.encoding["buckets"]), y[at])
            for w, p, y, at in (*parts, (test_words, test_places, test_labels, rows.test))
        )
    )


def _sizes(setup: Setup) -> Sizes:
    return Sizes(setup.train, setup.val, setup.test)


def _bucket(text: str, buckets: int) -> int:
    return 1 + zlib.crc32(text.encode()) % (buckets - 1)  # as `hash_tokens`


def _shape(word: str) -> str:
    """Such as "<Aa>", "<A>", "<a>", "<0>", "<.>": runs of one kind of character count once."""
    kinds = ["A" if c.isupper() else "a" if c.isalpha() else "0" if c.isdigit() else "." for c in word]
    return "<" + "".join(kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]) + ">"


def _recurrent(kind: str) -> Callable[[Setup, Source, int], nn.Module]:
    return lambda setup, source, seed: RNNClassifier(
        setup.encoding["buckets"], source.classes, kind=kind, **setup.sizes, seed=seed
    )


def _encoder(kind: Any) -> Callable[[Setup, Source, int], nn.Module]:
    return lambda setup, source, seed: kind(source.classes, **setup.encoding, **setup.sizes, seed=seed)


SOURCES = {
    "cifar10": Source("CIFAR-10", 10, _pictures, 3, 32),
    "fashion_mnist": Source("Fashion-MNIST", 10, _pictures, 1, 28),
    "mnist": Source("MNIST", 10, _pictures, 1, 28),
    "imdb": Source("IMDB", 2, _texts),
    "ag_news": Source("AG News", 4, _texts),
    "yelp": Source("Yelp, 5 stars", 5, _texts),
    "few_rel": Source("FewRel, 16 relations", 16, _relations),
    "conllpp": Source("CoNLL++ tags", 9, _tags),
    "few_nerd": Source("Few-NERD tags", 9, _tags),
}
ENCODERS = (BertClassifier, RobertaClassifier)
MODELS = {
    "resnet18": Architecture(
        "ResNet-18", ResNet18, lambda s, d, seed: ResNet18(d.channels, d.classes, **s.sizes, seed=seed)
    ),
    "vit": Architecture("ViT", ViT, lambda s, d, seed: ViT(d.channels, d.classes, d.side, **s.sizes, seed=seed)),
    "gru": Architecture("GRU", RNNClassifier, _recurrent("gru")),
    "lstm": Architecture("LSTM", RNNClassifier, _recurrent("lstm")),
    "bert": Architecture("BERT", BertClassifier, _encoder(BertClassifier)),
    "roberta": Architecture("RoBERTa", RobertaClassifier, _encoder(RobertaClassifier)),
    "mlp": Architecture(
        "MLP", MLP, lambda s, d, seed: MLP(d.channels * d.side**2, classes=d.classes, **s.sizes, seed=seed)
    ),
    "cnn": Architecture(
        "small CNN", SmallCNN, lambda s, d, seed: SmallCNN(d.channels, d.classes, d.side, **s.sizes, seed=seed)
    ),
    "embedding": Architecture(
        "embedding bag",
        EmbeddingBagClassifier,
        lambda s, d, seed: EmbeddingBagClassifier(s.encoding["buckets"], d.classes, **s.sizes, seed=seed),
    ),
}
