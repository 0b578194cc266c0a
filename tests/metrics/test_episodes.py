"""Means with intervals, accuracy per task."""

import math

import numpy as np
import pytest
import torch

from metafast.metrics import episode_accuracy, mean_interval

NAN = float("nan")


@pytest.mark.parametrize(("n", "t"), [(2, 12.706205), (5, 2.776445), (31, 2.042272), (32, 2.039513), (600, 1.963909)])
def test_the_interval_is_students(n, t):
    values = np.random.default_rng(0).random(n)
    found = mean_interval(values)
    assert found.n == n
    assert found.mean == pytest.approx(values.mean())
    assert found.half == pytest.approx(t * values.std(ddof=1) / math.sqrt(n), rel=3e-4)
    assert mean_interval(torch.from_numpy(values)) == mean_interval(values.tolist()) == found


def test_the_interval_holds_the_mean_19_times_in_20():
    rng = np.random.default_rng(1)
    hits = [abs((found := mean_interval(rng.normal(0.7, 0.1, 8))).mean - 0.7) <= found.half for _ in range(2000)]
    assert 0.935 < np.mean(hits) < 0.965


def test_one_value_has_no_interval():
    assert math.isnan(mean_interval([0.5]).half)
    assert mean_interval([1.0, 1.0]).half == 0.0


def test_episode_accuracy_counts_neither_padding_nor_missing_classes():
    logits = torch.tensor([[[3.0, 1, 0], [0, 1, 9], [0, 5, 1]], [[0, 1.0, 2], [NAN, 0, 5], [9, 0, 0]]])
    labels = torch.tensor([[0, 1, 1], [2, 2, 0]])
    assert episode_accuracy(logits, labels).tolist() == pytest.approx([2 / 3, 2 / 3])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert episode_accuracy(logits, labels, mask).tolist() == pytest.approx([1 / 2, 2 / 3])
    classes = torch.tensor([2, 3])
    assert episode_accuracy(logits, labels, classes=classes).tolist() == pytest.approx([1.0, 2 / 3])
    assert episode_accuracy(logits, labels, torch.zeros_like(mask)).isnan().all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mean_interval([]), r"at least one, got shape \(0,\)"),
        (lambda: mean_interval([[1.0]]), r"got shape \(1, 1\)"),
        (lambda: mean_interval([1.0, NAN]), "values must be finite, got 1 that are not"),
        (lambda: episode_accuracy(torch.zeros(2, 3), torch.zeros(2)), r"logits must be \[T, Q, classes\]"),
        (
            lambda: episode_accuracy(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.ones(2, 4)),
            r"mask must be \[2, 3\] as labels, got \[2, 4\]",
        ),
        (
            lambda: episode_accuracy(torch.zeros(2, 3, 4), torch.zeros(2, 3), classes=torch.ones(3)),
            r"classes must be \[2\], got \[3\]",
        ),
    ],
)
def test_wrong_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()
