"""Word vectors from plain text: which words stand beside which, factorized. No download, a few seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metafast._checks import integer
from metafast.data._relations import span_of

Array = np.ndarray[Any, Any]
PLACES = (
    6  # channels that say where a word stands: head, tail, before both, between (head first, tail first), after both
)


class WordVectors(NamedTuple):
    """Words, the most frequent first, and a vector of length 1 for each, `[len(words), dim]`."""

    words: tuple[str, ...]
    vectors: Tensor


def word_vectors(
    texts: Iterable[Sequence[str]],
    dim: int = 50,
    *,
    vocabulary: int = 20_000,
    window: int = 5,
    least: int = 3,
    seed: int = 0,
) -> WordVectors:
    """Vectors under which words that are used alike lie close together.

    Counts of neighbours `n(w, c)`, weighted by 1 / distance, become `max(0, log n(w, c) Σn^¾ / (n(w) n(c)^¾))`:
    positive pointwise mutual information with a smoothed context. Of its leading singular vectors `U √S` is taken,
    centred and scaled to length 1. Rounding may differ between machines in the last digits.

    Args:
        texts: words of each text.
        dim: numbers per word.
        vocabulary: at most this many words, the most frequent ones.
        window: how far apart neighbours may be.
        least: words that occur less often have no vector.
        seed: of the randomized factorization.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or fewer words than `dim`.

    Example:
        >>> texts = [["the", pet, "sleeps"] for pet in ("cat", "dog")] + [["a", "tree", "grows"]]
        >>> found = word_vectors(texts * 3, dim=2)
        >>> cat, dog, tree = (found.vectors[found.words.index(word)] for word in ("cat", "dog", "tree"))
        >>> bool(cat @ dog > cat @ tree)
        True

    Source:
        O. Levy, Y. Goldberg, Neural Word Embedding as Implicit Matrix Factorization, NeurIPS 2014;
        O. Levy et al., Improving Distributional Similarity with Lessons Learned from Word Embeddings, TACL 2015.
    """
    dim, vocabulary = integer("dim", dim, minimum=1), integer("vocabulary", vocabulary, minimum=1)
    window, least = integer("window", window, minimum=1), integer("least", least, minimum=1)
    lists = [list(text) for text in texts]
    words = frequent_words(lists, vocabulary, least)
    if len(words) <= dim:
        raise ValueError(
            f"texts must have more than dim={dim} words that occur at least {least} times, got {len(words)}"
        )
    left, right, weight = _neighbours(lists, words, window)
    row = torch.zeros(len(words), dtype=torch.float64).index_add_(0, left, weight)
    context = row**0.75
    information = (weight * context.sum() / (row[left] * context[right])).log()
    kept = information > 0
    matrix = torch.sparse_coo_tensor(
        torch.stack([left[kept], right[kept]]),
        information[kept].float(),
        (len(words), len(words)),
        check_invariants=True,
    ).coalesce()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer("seed", seed, minimum=0))
        u, s, _ = torch.svd_lowrank(matrix, q=min(len(words), dim + 20), niter=4)
    vectors = u[:, :dim] * s[:dim].sqrt()
    vectors = vectors - vectors.mean(0)
    return WordVectors(words, vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12))


def frequent_words(texts: Iterable[Sequence[str]], vocabulary: int = 20_000, least: int = 3) -> tuple[str, ...]:
    """The words that `word_vectors` has vectors for, in its order."""
    counts = Counter(word for text in texts for word in text)
    # ties by the word itself, so that the order of the texts does not matter
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary]
    return tuple(word for word in frequent if counts[word] >= least)


def _neighbours(texts: list[list[str]], words: tuple[str, ...], window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of word numbers, each once in either direction, and their weights."""
    number = {word: index for index, word in enumerate(words)}
    apart = [-1] * window  # no neighbours across texts
    line = np.array([n for text in texts for n in [*(number.get(word, -1) for word in text), *apart]], dtype=np.int64)
    codes, weights = [], []
    for distance in range(1, window + 1):
        a, b = line[:-distance], line[distance:]
        both = (a >= 0) & (b >= 0)
        code, count = np.unique(a[both] * len(words) + b[both], return_counts=True)
        codes += [code, code % len(words) * len(words) + code // len(words)]
        weights += [count / distance] * 2
    pairs, place = np.unique(np.concatenate(codes), return_inverse=True)
    weight = np.bincount(place, np.concatenate(weights), minlength=len(pairs))
    return torch.from_numpy(pairs // len(words)), torch.from_numpy(pairs % len(words)), torch.from_numpy(weight)


def place_codes(
    tokens: Iterable[Sequence[str]],
    heads: Iterable[Mapping[str, Any]],
    tails: Iterable[Mapping[str, Any]],
    words: Sequence[str],
    length: int = 32,
) -> Array:
    """Sentences with two entities as numbers: `1 + place + 6 word`, 0 for padding; word 0 is any that `words` lacks.

    Longer sentences are cut to `length` words from a little before the first entity on.

    Args:
        tokens: the words of each sentence.
        heads: as in `encode_relations`.
        tails: likewise.
        words: that have a vector.
        length: words per row.

    Returns:
        int32 `[N, length]`.

    Raises:
        ValueError: an entity that is not in its sentence.
    """
    number = {word: 1 + index for index, word in enumerate(words)}
    rows = []
    for index, (sentence, head, tail) in enumerate(zip(tokens, heads, tails, strict=True)):
        h, t = (span_of(entity, len(sentence), index, name) for entity, name in ((head, "head"), (tail, "tail")))
        begin = max(0, min(min(h[0], t[0]) - 4, len(sentence) - length))
        row = [
            1 + _place(at, h, t) + PLACES * number.get(sentence[at].lower(), 0)
            for at in range(begin, min(len(sentence), begin + length))
        ]
        rows.append(row + [0] * (length - len(row)))
    return np.array(rows, dtype=np.int32).reshape(len(rows), length)


def _place(at: int, head: tuple[int, int], tail: tuple[int, int]) -> int:
    if head[0] <= at < head[1]:
        return 0
    if tail[0] <= at < tail[1]:
        return 1
    if at < min(head[0], tail[0]):
        return 2
    if at >= max(head[1], tail[1]):
        return 5
    return 3 if head[0] < tail[0] else 4


def vectors_of(codes: Array, vectors: Tensor) -> Array:
    """`place_codes` as inputs of a convolution: float32 `[N, dim + 6, length, 1]`.

    A word's vector has a mean square of about a quarter; then come six channels of 0 and 1 for its place.

    Args:
        codes: int32 `[N, length]`.
        vectors: `[words, dim]`.
    """
    dim = vectors.shape[1]
    table = np.concatenate([np.zeros((1, dim), np.float32), vectors.numpy() * np.float32(0.5 * dim**0.5)])
    out = np.zeros((*codes.shape, dim + PLACES), np.float32)
    there = codes > 0
    out[..., :dim] = table[np.where(there, (codes - 1) // PLACES, 0)]
    row, column = there.nonzero()
    out[row, column, dim + (codes[there] - 1) % PLACES] = 1
    return np.ascontiguousarray(out.transpose(0, 2, 1)[..., None])
