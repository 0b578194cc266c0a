"""The text backbone: hashed words, their places beside two entities, BERT's layers, a convolution."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.data import ClassSet, few_shot, load
from metafast.data._cache import kept
from metafast.data._few_rel import OTHER_TEXTS, plain_texts, split_words, training_texts
from metafast.data._reading import BUCKETS, SEQUENCE
from metafast.data._relations import MARKS
from metafast.data._text import bucket_of
from metafast.data._word_vectors import word_vectors
from metafast.models._encoders import _transformers
from metafast.models._small import _seeded

WORDS = 30_000  # that have a vector
HIDDEN = bucket_of("<hidden>", BUCKETS)  # in place of a word that is hidden
SCALE = 6.0  # of words beside states, whose numbers have a variance of about 1: words are vectors of length 1
PIECE, LEAST, MOST = 48, 16, 120  # words of a piece of text that is halved, and of a text that pieces are taken of
PLACES = 7  # padding, before, head, tail, between (head first, tail first), after


class TextEncoder(nn.Module):
    """Features of token numbers `[N, L]` as `few_shot("few_rel_words")` and `"clinc_words"` have them.

    The place of a word (before, in or after the entities, between them and which comes first) is BERT's segment; a text
    without marked entities is all "before". A convolution over the last states keeps the largest response of each
    filter, as word order within a phrase matters and its place in the sentence does not.

    Args:
        dim: width of a word.
        layers: of BERT.
        heads: of attention.
        filters: of the convolution, the width of the features.
        window: words that a filter sees, an odd number.
        length: the most words.
        dropout: in BERT's layers.
        seed: of the initial weights.

    Source:
        J. Devlin et al., BERT, NAACL 2019; D. Zeng et al., Relation Classification via Convolutional Deep Neural
        Network, COLING 2014 (places and the largest responses).
    """

    def __init__(
        self,
        *,
        dim: int = 128,
        layers: int = 1,
        heads: int = 4,
        filters: int = 256,
        window: int = 3,
        length: int = SEQUENCE,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        transformers = _transformers("TextEncoder")
        self.length = length
        config = transformers.BertConfig(
            vocab_size=BUCKETS, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * dim, max_position_embeddings=length, type_vocab_size=PLACES, pad_token_id=0,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        with _seeded(seed):
            self.bert = transformers.BertModel(config, add_pooling_layer=False)
            # of a map one column wide: adapters know convolutions of two dimensions
            self.convolution = nn.Conv2d(2 * dim, filters, (window, 1), padding=(window // 2, 0))
        self.register_buffer("marks", torch.tensor([bucket_of(mark, BUCKETS) for mark in MARKS]), persistent=False)

    @property
    def words(self) -> nn.Parameter:
        """The vectors of the words, `[buckets, dim]`."""
        weight: nn.Parameter = self.bert.embeddings.word_embeddings.weight
        return weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Features `[N, filters]`."""
        there = tokens != 0
        states = self.bert(
            input_ids=tokens, attention_mask=there.long(), token_type_ids=self.places(tokens), return_dict=True
        ).last_hidden_state
        words = self.bert.embeddings.word_embeddings(tokens) * SCALE
        maps = (torch.cat([words, states], 2) * there.unsqueeze(2)).transpose(1, 2).unsqueeze(3)  # [N, 2 dim, L, 1]
        responses = F.relu(self.convolution(maps)).squeeze(3) * there.unsqueeze(1)
        return responses.amax(2)

    def places(self, tokens: Tensor) -> Tensor:
        """Where each word stands, `[N, L]`: see `PLACES`."""
        marks: Any = self.marks
        head, head_end, tail, tail_end = ((tokens == mark).cumsum(1) > 0 for mark in marks)
        out = torch.ones_like(tokens)
        out[head_end] = 4
        out[tail_end] = 5
        out[head_end & tail_end] = 6
        out[head & ~head_end] = 2
        out[tail & ~tail_end] = 3
        return out * (tokens != 0)


class Relations:
    """Batches of sentences of the training relations, some of whose words are hidden.

    Args:
        classes: to learn.
        hidden: share of the words that are hidden.
    """

    def __init__(self, classes: ClassSet, hidden: float = 0.1) -> None:
        self.inputs, self.labels = classes.tensors()
        self.outputs = classes.classes
        self.hidden = hidden
        members, starts = classes.members()
        self._members = [members[a:b] for a, b in pairwise(starts)]
        self._marks = torch.tensor([bucket_of(mark, BUCKETS) for mark in MARKS])
        self._halves = Halves()

    def pairs(self, random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Token numbers of `count` texts, and of what belongs to them."""
        return self._halves.batch(random, count)

    def batch(self, random: np.random.Generator, size: int, per_class: int) -> tuple[Tensor, Tensor]:
        """Inputs and class numbers: `per_class` examples of each of some classes, or any (`per_class` 1)."""
        if per_class == 1:
            rows = random.integers(0, len(self.labels), size)
        else:
            chosen = random.choice(self.outputs, min(self.outputs, size // per_class), replace=False)
            rows = np.concatenate([random.choice(self._members[k], per_class, replace=False) for k in chosen])
        x = self.inputs[rows]
        x = x[:, : int((x != 0).sum(1).max())].clone()
        hide = torch.from_numpy(random.random(x.shape) < self.hidden) & (x != 0) & ~torch.isin(x, self._marks)
        x[hide] = HIDDEN
        return x, self.labels[rows]


class Halves:
    """Two halves of one text, or two questions about one paragraph: what belongs together, without labels."""

    def __init__(self) -> None:
        pairs: list[tuple[list[str], list[str]]] = []
        for words in plain_texts(OTHER_TEXTS):
            for start in range(0, min(len(words), MOST), PIECE):
                piece = words[start : start + PIECE]
                if len(piece) >= LEAST:
                    pairs.append((piece[: len(piece) // 2], piece[len(piece) // 2 :]))
        for questions in _by_paragraph().values():
            pairs += list(zip(questions[::2], questions[1::2], strict=False))
        self._sides = [[[bucket_of(word, BUCKETS) for word in side] for side in pair] for pair in pairs]

    def batch(self, random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Token numbers of `count` first parts, and of their second parts."""
        chosen = [self._sides[i] for i in random.choice(len(self._sides), count, replace=False)]
        first, second = (_padded([pair[side] for pair in chosen]) for side in (0, 1))
        return first, second


def _by_paragraph() -> dict[str, list[list[str]]]:
    rows = load("squad_v2", "train")
    found: dict[str, list[list[str]]] = {}
    for question, paragraph in zip(rows["question"][:], rows["context"][:], strict=True):
        found.setdefault(paragraph, []).append(split_words(question)[:SEQUENCE])
    return found


def _padded(rows: list[list[int]]) -> Tensor:
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return table


def text() -> tuple[Relations, dict[str, ClassSet]]:
    """The 50 training relations to learn on; 14 others, and intents, to choose on."""
    relations = few_shot("few_rel_words")
    return Relations(relations.train), {"few_rel_words": relations.val, "clinc_words": few_shot("clinc_words").val}


def text_network(seed: int = 0, **sizes: Any) -> TextEncoder:
    """With the vectors of words in place, which the training leaves as they are."""
    network = TextEncoder(seed=seed, **sizes)
    table = word_table(network.words.shape[1])
    with torch.no_grad():
        known = table.norm(dim=1) > 0
        with _seeded(seed):
            network.words.copy_(0.3 * F.normalize(torch.randn(network.words.shape), dim=1))
        network.words[known] = table[known]
        network.words[0] = 0
    network.words.requires_grad_(False)
    return network


@lru_cache(maxsize=1)
def word_table(dim: int) -> Tensor:
    """`[BUCKETS, dim]`: vectors of length 1 of each bucket's words, by how often they occur; 0 where none is known.

    They are made of the sentences of the training relations and of the training text of AG News, IMDB and SQuAD.
    """
    texts = training_texts(None, OTHER_TEXTS)

    def make() -> np.ndarray[Any, Any]:
        found = word_vectors(texts, dim, vocabulary=WORDS)
        counts = dict.fromkeys(found.words, 0)
        for words in texts:
            for word in words:
                if word in counts:
                    counts[word] += 1
        table = torch.zeros(BUCKETS, dim)
        buckets = torch.tensor([bucket_of(word, BUCKETS) for word in found.words])
        often = torch.tensor([float(counts[word]) for word in found.words])
        table.index_add_(0, buckets, found.vectors * often[:, None])
        return F.normalize(table, dim=1).numpy()

    table = kept(
        "word-table",
        [f"{dim} {WORDS} {BUCKETS}".encode(), *(" ".join(words).encode() for words in texts)],
        make,
        lambda array: array.shape == (BUCKETS, dim) and array.dtype == np.float32,
    )
    return torch.from_numpy(table)
