"""Text as numbers by hashing: no vocabulary to fit, no state to save, the same on every machine."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from metafast._checks import integer

PADDING = 0
_WORD = re.compile(r"\w+")


def hash_tokens(texts: Iterable[str], buckets: int = 2**15, length: int = 64, ngrams: int = 1) -> Tensor:
    """Each text as a row of bucket numbers, for an embedding with `padding_idx=0`.

    A word is lower-cased and falls into bucket `1 + crc32(word) mod (buckets - 1)`; 0 is padding.

    Args:
        texts: the texts.
        buckets: size of the embedding, at least 2.
        length: tokens per text; longer texts are cut, shorter ones padded.
        ngrams: 2 adds pairs of neighbouring words, 3 triples too; they come after the words.

    Returns:
        `[N, length]` int64.

    Raises:
        TypeError: a text that is no string.
        ValueError: an argument out of range.

    Example:
        >>> hash_tokens(["The cat", "the CAT sat", ""], buckets=100, length=3)
        tensor([[49, 92,  0],
                [49, 92, 67],
                [ 0,  0,  0]])
    """
    buckets, length = integer("buckets", buckets, minimum=2), integer("length", length, minimum=1)
    rows = [
        _buckets(text, index, buckets, integer("ngrams", ngrams, minimum=1)) for index, text in enumerate(_list(texts))
    ]
    table = torch.full((len(rows), length), PADDING, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        cut = tokens[:length]
        table[row, : len(cut)] = torch.tensor(cut, dtype=torch.int64)
    return table


def bag_of_words(texts: Iterable[str], buckets: int = 2**12, ngrams: int = 1) -> Tensor:
    """How often each bucket's words occur in each text, divided by the text's number of words.

    Args:
        texts: the texts.
        buckets: columns, at least 2; column 0 stays empty, as in `hash_tokens`.
        ngrams: as in `hash_tokens`.

    Returns:
        `[N, buckets]` float32; rows sum to 1, or to 0 where a text has no words.

    Raises:
        TypeError: a text that is no string.
        ValueError: an argument out of range.

    Example:
        >>> bag_of_words(["a b a a"], buckets=50).max().item()
        0.75
    """
    buckets, ngrams = integer("buckets", buckets, minimum=2), integer("ngrams", ngrams, minimum=1)
    rows = [_buckets(text, index, buckets, ngrams) for index, text in enumerate(_list(texts))]
    table = torch.zeros(len(rows), buckets)
    for row, tokens in enumerate(rows):
        if tokens:
            table[row].index_add_(0, torch.tensor(tokens), torch.full((len(tokens),), 1 / len(tokens)))
    return table


def _list(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string; write [text]")
    return list(texts)


def _buckets(text: str, index: int, buckets: int, ngrams: int) -> list[int]:
    if not isinstance(text, str):
        raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
    words = _WORD.findall(text.lower())
    grams = [" ".join(words[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(words) - n + 1)]
    return [bucket_of(gram, buckets) for gram in grams]


def bucket_of(word: str, buckets: int) -> int:
    """The number of a lower-case word."""
    return 1 + zlib.crc32(word.encode()) % (buckets - 1)
