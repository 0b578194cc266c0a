"""How rows become examples: which tokenizer makes token numbers, which size pictures have, how many are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metafast._checks import integer
from metafast.data._class_sets import ClassSet
from metafast.data._text import hash_tokens

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]
BUCKETS, LENGTH = 2**14, 32  # of hashed texts
SEQUENCE = 48  # words of a text as a sequence, as of a relation's sentence
TOKENS = 128  # of a tokenizer's texts
TEXT_COLUMNS = ("text", "sentence")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
Texts = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """What a caller asks of the examples; the defaults are those of each data set.

    Args:
        tokenizer: of transformers, or a callable that makes int64 `[N, L]` of a list of texts (of pairs of texts,
            where the data have two).
        length: tokens per text of a tokenizer of transformers.
        size: height and width of pictures, which then have three channels.
        limit: the most examples of a class.

    Raises:
        TypeError: a tokenizer that cannot be called, sizes that are no integers.
        ValueError: sizes below 1, a length without a tokenizer of transformers.
    """

    tokenizer: Any = None
    length: int | None = None
    size: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None and not callable(self.tokenizer):
            raise TypeError(
                "tokenizer must be one of transformers, or a function from texts to token numbers [N, L], "
                f"got {type(self.tokenizer).__name__}"
            )
        for name in ("length", "size", "limit"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), minimum=1)
        if self.length is not None and not self._of_transformers:
            raise ValueError(
                f"length={self.length} is for a tokenizer of transformers; "
                + ("a function chooses its own" if self.tokenizer is not None else "give one with tokenizer=")
            )

    @property
    def _of_transformers(self) -> bool:
        return hasattr(self.tokenizer, "pad_token_id")

    def tokens(self, given: Texts) -> Array:
        """Token numbers int32 `[N, L]` of texts, or of pairs of texts."""
        texts: list[Any] = list(given)
        if self.tokenizer is None:
            lines = [text if isinstance(text, str) else " sep ".join(text) for text in texts]
            return hash_tokens(lines, buckets=BUCKETS, length=LENGTH, ngrams=2).numpy().astype(np.int32)
        if self._of_transformers:
            return self._by_transformers(texts)
        found = self.tokenizer(texts)
        table = found.cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        if table.ndim != 2 or len(table) != len(texts) or table.dtype.kind not in "iu":
            raise ValueError(
                f"tokenizer must give token numbers [{len(texts)}, L], got shape {list(table.shape)} of {table.dtype}"
            )
        return table.astype(np.int32)

    def _by_transformers(self, texts: list[Any]) -> Array:
        if self.tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a padding token; tokenizer.pad_token = tokenizer.eos_token gives one")
        length = min(self.length or TOKENS, int(self.tokenizer.model_max_length))
        pairs = bool(texts) and not isinstance(texts[0], str)
        columns = [list(column) for column in zip(*texts, strict=True)] if pairs else [texts]
        found = self.tokenizer(*columns, truncation=True, padding="max_length", max_length=length, return_tensors="np")[
            "input_ids"
        ]
        return np.asarray(found).astype(np.int32)

    def finish(self, classes: ClassSet) -> ClassSet:
        """Pictures of the size asked for, no more of a class than asked for."""
        if self.limit is not None:
            classes = first(classes, self.limit)
        return classes if self.size is None else classes.resized(self.size, 3)


PLAIN = Reading()


def texts_of(rows: Dataset) -> Texts | None:
    """The texts of a data set, or its pairs of texts; None where it has neither."""
    columns = rows.column_names
    for one, two in PAIR_COLUMNS:
        if one in columns and two in columns:
            return list(zip(rows[one][:], rows[two][:], strict=True))
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    return None if column is None else list(rows[column][:])


def first_rows(labels: Array, limit: int) -> Array:
    """Numbers of the rows that are among the first `limit` of their class."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    return np.sort(order[np.arange(len(labels)) - starts < limit])


def first(classes: ClassSet, limit: int) -> ClassSet:
    """The first `limit` examples of each class."""
    kept = first_rows(classes.labels, limit)
    return replace(
        classes,
        examples=classes.examples[kept],
        labels=classes.labels[kept],
        order=None if classes.order is None else classes.order[kept],
    )


def joined(sets: Sequence[ClassSet]) -> ClassSet:
    """Examples of several parts of one data set, whose classes are those of the same name."""
    names = tuple(sorted({label for part in sets for label in part.names}))
    place = [np.array([names.index(label) for label in part.names])[part.labels] for part in sets]
    return replace(
        sets[0],
        examples=np.concatenate([part.examples for part in sets]),
        labels=np.concatenate(place),
        names=names,
    )
