"""Precision, recall and F1 over classes; right and wrong ones of each class are counted by torchmetrics if present."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ClassScores(NamedTuple):
    """Measures of a classifier, from 0 to 1; the last three are means over classes."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def class_scores(logits: Tensor, labels: Tensor) -> ClassScores:
    """Accuracy, and the means over classes of precision, recall and F1.

    `precision = TP / (TP + FP)`, `recall = TP / (TP + FN)`, `F1 = 2 TP / (2 TP + FP + FN)`; a ratio of nothing is 0,
    and classes neither present nor predicted are left out.

    Args:
        logits: `[N, classes]` scores.
        labels: `[N]` class numbers.

    Returns:
        `ClassScores(accuracy, precision, recall, f1)`. Scores that are NaN count as wrong.

    Raises:
        ValueError: shapes that do not fit, no samples, or labels without a logit.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> class_scores(logits, torch.tensor([0, 1, 1]))
        ClassScores(accuracy=0.6666666666666666, precision=0.75, recall=0.75, f1=0.6666666666666666)
    """
    hits, predicted, present = _counts(logits, labels)
    known = (predicted + present) > 0

    def mean(below: Tensor, factor: float = 1.0) -> float:
        return float((factor * hits[known] / below[known].clamp(min=1)).mean())

    right = float(hits.sum()) / len(labels)
    return ClassScores(right, mean(predicted), mean(present), mean(predicted + present, 2.0))


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """The mean over classes of F1, as in `class_scores`.

    Args:
        logits: `[N, classes]` scores.
        labels: `[N]` class numbers.

    Returns:
        0 to 1. Scores that are NaN count as wrong.

    Raises:
        ValueError: shapes that do not fit, no samples, or labels without a logit.

    Example:
        >>> macro_f1(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    return class_scores(logits, labels).f1


def _counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class, in float64: right predictions, predictions, and samples."""
    if logits.dim() != 2 or labels.dim() != 1 or len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"logits must be [N, classes] and labels [N] with N of at least 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    # what is predicted from NaN is a class of its own, which is never right
    predicted = torch.where(logits.isnan().any(1), classes, logits.argmax(1))
    torchmetrics = _torchmetrics()
    if torchmetrics is not None:
        # columns: true positives, false positives, true negatives, false negatives, samples
        counts = torchmetrics.functional.classification.multiclass_stat_scores(
            predicted, labels, num_classes=classes + 1, average="none", validate_args=False
        )[:classes].double()
        return counts[:, 0], counts[:, 0] + counts[:, 1], counts[:, 4]
    hits, guesses, samples = (
        torch.bincount(numbers, minlength=classes + 1)[:classes].double()
        for numbers in (labels[predicted == labels], predicted, labels)
    )
    return hits, guesses, samples


@functools.cache
def _torchmetrics() -> Any:
    try:
        import torchmetrics.functional.classification
    except ImportError:
        return None
    return torchmetrics
