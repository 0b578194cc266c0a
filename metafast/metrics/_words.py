"""Word error rate of sequences of numbers, and what CTC's outputs say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def ctc_decode(scores: Tensor, blank: int = 0) -> list[list[int]]:
    """The best symbol of each step, repetitions merged, then blanks dropped.

    Args:
        scores: `[N, steps, symbols]`.
        blank: number of CTC's blank.

    Returns:
        N sequences of symbol numbers.

    Raises:
        ValueError: scores of another shape.

    Example:
        >>> import torch
        >>> ctc_decode(torch.eye(3)[torch.tensor([[1, 1, 0, 1, 2, 2]])])
        [[1, 1, 2]]

    Source:
        A. Graves et al., Connectionist Temporal Classification, ICML 2006, best-path decoding.
    """
    if scores.dim() != 3:
        raise ValueError(f"scores must be [N, steps, symbols], got {list(scores.shape)}")
    best = scores.argmax(2).cpu().numpy()
    fresh = np.ones_like(best, dtype=bool)
    fresh[:, 1:] = best[:, 1:] != best[:, :-1]
    kept = fresh & (best != blank)
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]


def word_error_rate(predictions: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> float:
    """Insertions, deletions and substitutions that turn the predictions into the targets, per word of the targets.

    Args:
        predictions: N sequences of word numbers.
        targets: likewise, with at least one word in all.

    Returns:
        0 where all is right; above 1 where more words are wrong than there are.

    Raises:
        ValueError: different numbers of sequences, or no words.

    Example:
        >>> word_error_rate([[1, 2], [3]], [[1, 2], [3, 4]])
        0.25

    Source:
        The measure of speech recognition; distance of V. Levenshtein, 1966. torchmetrics has it for text.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"predictions and targets must be as many, got {len(predictions)} and {len(targets)}")
    words = sum(len(target) for target in targets)
    if not words:
        raise ValueError("targets must have at least one word, got none")
    return sum(_distance(p, t) for p, t in zip(predictions, targets, strict=True)) / words


def _distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]
