"""Sentences about two entities as token numbers: what words there are, and where they stand beside the entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from metafast._checks import integer
from metafast.data._text import bucket_of

Array = np.ndarray[Any, Any]
MARKS = ("<h>", "</h>", "<t>", "</t>")  # around head and tail
_NEAR = 3  # words beside an entity that are marked by their side


def encode_relations(
    tokens: Iterable[Sequence[str]],
    heads: Iterable[Mapping[str, Any]],
    tails: Iterable[Mapping[str, Any]],
    *,
    style: str = "bag",
    buckets: int = 2**14,
    length: int | None = None,
) -> Array:
    """Sentences with a head and a tail entity, in FewRel's columns, as rows of bucket numbers.

    Words are lower-cased and hashed as in `hash_tokens`. `style="sequence"` keeps their order and puts a marker on
    either side of each entity (S. Baldini Soares et al., Matching the Blanks, ACL 2019). `style="bag"` is for models
    that take the mean: each word, each pair of neighbours between the entities, and again the words of the entities,
    between them, and up to three beside them, marked by that place and by which entity comes first.

    Args:
        tokens: the words of each sentence.
        heads: for each, a mapping whose `"indices"` list the places of the entity's words, as lists of numbers.
        tails: likewise.
        style: `"bag"` or `"sequence"`.
        buckets: size of the embedding.
        length: tokens per row; default 96 for a bag, 48 for a sequence. Longer rows are cut.

    Returns:
        `[N, length]` int32, 0 for padding.

    Raises:
        ValueError: an unknown style, or an entity that is not in its sentence.

    Example:
        >>> head, tail = {"indices": [[0]]}, {"indices": [[3]]}
        >>> encode_relations([["Rome", "lies", "in", "Italy"]], [head], [tail], style="sequence").shape
        (1, 48)
    """
    if style not in ("bag", "sequence"):
        raise ValueError(f"style must be 'bag' or 'sequence', got {style!r}")
    buckets = integer("buckets", buckets, minimum=2)
    length = integer("length", length if length is not None else (96 if style == "bag" else 48), minimum=1)
    encode = _bag if style == "bag" else _sequence
    rows: list[list[str]] = []
    for index, (words, head, tail) in enumerate(zip(tokens, heads, tails, strict=True)):
        spans = [span_of(entity, len(words), index, name) for entity, name in ((head, "head"), (tail, "tail"))]
        rows.append(encode([word.lower() for word in words], *spans))
    table = np.zeros((len(rows), length), np.int32)
    for index, features in enumerate(rows):
        cut = features[:length]
        table[index, : len(cut)] = [bucket_of(feature, buckets) for feature in cut]
    return table


def marked_texts(
    tokens: Iterable[Sequence[str]], heads: Iterable[Mapping[str, Any]], tails: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Sentences with "$" on either side of the head and "#" on either side of the tail: marks that any tokenizer has.

    Args:
        tokens: as in `encode_relations`.
        heads: likewise.
        tails: likewise.

    Example:
        >>> marked_texts([["Rome", "lies", "in", "Italy"]], [{"indices": [[0]]}], [{"indices": [[3]]}])
        ['$ Rome $ lies in # Italy #']

    Source:
        S. Wu, Y. He, Enriching Pre-trained Language Model with Entity Information for Relation Classification, CIKM
        2019.
    """
    texts = []
    for index, (words, head, tail) in enumerate(zip(tokens, heads, tails, strict=True)):
        spans = [span_of(entity, len(words), index, name) for entity, name in ((head, "head"), (tail, "tail"))]
        texts.append(" ".join(_sequence(list(words), spans[0], spans[1], ("$", "$", "#", "#"))))
    return texts


def span_of(entity: Mapping[str, Any], words: int, index: int, name: str) -> tuple[int, int]:
    """First word and one past the last word of an entity's first mention."""
    places = entity["indices"][0] if entity["indices"] else []
    if not places or min(places) < 0 or max(places) >= words:
        raise ValueError(f"{name}s[{index}] must name words of its sentence (0 to {words - 1}), got {places}")
    return min(places), max(places) + 1


def _sequence(
    words: list[str], head: tuple[int, int], tail: tuple[int, int], marks: Sequence[str] = MARKS
) -> list[str]:
    out: list[str] = []
    for place in range(len(words) + 1):
        out += [mark for at, mark in ((head[1], marks[1]), (tail[1], marks[3])) if at == place]
        out += [mark for at, mark in ((head[0], marks[0]), (tail[0], marks[2])) if at == place]
        out += words[place : place + 1]
    return out


def _bag(words: list[str], head: tuple[int, int], tail: tuple[int, int]) -> list[str]:
    first, second = sorted((head, tail))
    order = "ht" if head <= tail else "th"
    between = words[first[1] : second[0]]
    # the marked words come first: a long sentence is cut at its end
    out = [f"{order} between {word}" for word in between[:16]]
    out += [f"{order} pair {a} {b}" for a, b in pairwise(between[:16])]
    out += [f"head {word}" for word in words[slice(*head)]] + [f"tail {word}" for word in words[slice(*tail)]]
    out += [f"{order} before {word}" for word in words[max(0, first[0] - _NEAR) : first[0]]]
    out += [f"{order} after {word}" for word in words[second[1] : second[1] + _NEAR]]
    return out + [word for i, word in enumerate(words) if not (head[0] <= i < head[1] or tail[0] <= i < tail[1])]
