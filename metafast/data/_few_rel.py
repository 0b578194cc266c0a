"""FewRel: which relations are for training, and its sentences as bags, as sequences, or as word vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from metafast.data._cache import kept
from metafast.data._class_sets import ClassSet, ClassSplits, permutation
from metafast.data._load import DatasetNotFoundError, load
from metafast.data._reading import Reading
from metafast.data._relations import encode_relations, marked_texts
from metafast.data._word_vectors import WordVectors, frequent_words, place_codes, vectors_of, word_vectors

if TYPE_CHECKING:
    from datasets import Dataset

PARTS = ("train_wiki_subset", "val_wiki")
WHOLE = "train_wiki"  # of which the first is what fits at hand
DIM, LENGTH = 50, 32  # of word vectors, of sentences made of them
# Text beside the training sentences that word vectors are made of: data set, split, column.
OTHER_TEXTS = (("ag_news", "train", "text"), ("imdb", "train", "text"), ("squad_v2", "train", "context"))
_WORD = re.compile(r"\w+|[^\w\s]")


def read_few_rel(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
    """Every relation; `name` and the tokenizer say what becomes of the sentences."""
    if reading.tokenizer is not None and name != "few_rel":
        raise ValueError(f"{name} are words of their own; with a tokenizer it is few_rel")
    tokens, relations, known = [], [], {}
    for part in PARTS if split is None else (split,):
        rows = load_few_rel(part, path)
        columns = {column: rows[column][:] for column in ("tokens", "head", "tail", "relation", "names")}
        sentences = (columns["tokens"], columns["head"], columns["tail"])
        if reading.tokenizer is not None:
            tokens.append(reading.tokens(marked_texts(*sentences)))
        elif name == "few_rel_vectors":
            tokens.append(place_codes(*sentences, few_rel_vectors(path).words, LENGTH))
        else:
            tokens.append(encode_relations(*sentences, style="sequence" if name == "few_rel_words" else "bag"))
        relations += columns["relation"]
        for relation, (meaning, *_) in zip(columns["relation"], columns["names"], strict=True):
            known[relation] = (f"{relation} {meaning}", part)
    numbers = sorted(known)
    place = {relation: number for number, relation in enumerate(numbers)}
    return ClassSet(
        np.concatenate(tokens),
        np.array([place[relation] for relation in relations]),
        tuple(known[relation][0] for relation in numbers),
        tuple(known[relation][1] for relation in numbers),
        name=name,
    )


def load_few_rel(part: str, path: str | None) -> Dataset:
    """A part; the whole training relations where the subset is not there."""
    try:
        return load("few_rel", part, path)
    except DatasetNotFoundError:
        if part != PARTS[0]:
            raise
    return load("few_rel", WHOLE, path)


def split_few_rel(relations: ClassSet) -> ClassSplits:
    """50 and 14 of the training relations, and the 16 of the official validation part."""
    train, val = _train_val([i for i, group in enumerate(relations.groups) if group == PARTS[0]])
    return ClassSplits(
        relations.select(train),
        relations.select(val),
        relations.select([i for i, group in enumerate(relations.groups) if group == PARTS[1]]),
    )


def fill_vectors(relations: ClassSet, path: str | None) -> ClassSet:
    """`"few_rel_vectors"` has numbers of words until its classes are chosen: their vectors are far larger."""
    return replace(relations, examples=vectors_of(relations.examples, few_rel_vectors(path).vectors))


def training_texts(path: str | None, others: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """Lower-case words of the sentences of training relations, none of validation or test, and of other text.

    Args:
        path: of the relations, as in `load`.
        others: data set, split and column of the other text.
    """
    rows = load_few_rel(PARTS[0], path)
    relations = rows["relation"][:]
    names = sorted(set(relations))
    train = {names[i] for i in _train_val(list(range(len(names))))[0]}
    texts = [
        [word.lower() for word in words]
        for words, relation in zip(rows["tokens"][:], relations, strict=True)
        if relation in train
    ]
    texts += texts  # they count twice: they are what the vectors are for
    return texts + plain_texts(others)


def plain_texts(sources: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """The words of the texts in some columns: data set, split and column of each."""
    found: list[list[str]] = []
    for name, split, column in sources:
        found += [split_words(text) for text in dict.fromkeys(load(name, split)[column][:])]
    return found


def split_words(text: str) -> list[str]:
    """Lower-case words and signs."""
    return _WORD.findall(text.lower().replace("<br />", " "))


@lru_cache(maxsize=2)
def few_rel_vectors(path: str | None) -> WordVectors:
    """Word vectors of the sentences of training relations and of other text, none of validation or test."""
    texts = training_texts(path, (*OTHER_TEXTS, ("clinc_oos", "train", "text")))
    words = frequent_words(texts)
    vectors = kept(
        "word-vectors",
        chain([f"{DIM}".encode()], (" ".join(text).encode() for text in texts)),
        lambda: word_vectors(texts, DIM).vectors.numpy(),
        lambda array: array.shape == (len(words), DIM) and array.dtype == np.float32,
    )
    return WordVectors(words, torch.from_numpy(vectors))


def _train_val(known: Sequence[int]) -> tuple[list[int], list[int]]:
    val = {known[i] for i in permutation(len(known), seed=0)[:14]}
    return [i for i in known if i not in val], sorted(val)
