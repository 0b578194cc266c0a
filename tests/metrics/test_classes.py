"""Precision, recall and F1, counted by torchmetrics or by us."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.metrics import _classes, accuracy, class_scores, macro_f1

NAN = float("nan")


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 3), st.booleans())
def test_scores_are_those_of_scikit_learn(n, classes, seed, own):
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        if own:
            patch.setattr(_classes, "_torchmetrics", lambda: None)
        found = class_scores(logits, labels)
    guesses = logits.argmax(1)
    want = sklearn.precision_recall_fscore_support(
        labels.numpy(), guesses.numpy(), labels=sorted({*labels.tolist(), *guesses.tolist()}), average="macro",
        zero_division=0.0,
    )[:3]  # fmt: skip
    assert found[1:] == pytest.approx(want)
    assert found.accuracy == accuracy(logits, labels)
    assert macro_f1(logits, labels) == found.f1


@pytest.mark.parametrize("own", [False, True])
def test_nan_counts_as_wrong_and_as_no_guess(own, monkeypatch):
    if own:
        monkeypatch.setattr(_classes, "_torchmetrics", lambda: None)
    assert class_scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])) == (1.0, 1.0, 1.0, 1.0)
    assert class_scores(torch.tensor([[1.0, 0.0], [0.0, NAN]]), torch.tensor([0, 1])) == (0.5, 0.5, 0.5, 0.5)
    assert class_scores(torch.full((2, 2), NAN), torch.tensor([0, 0])) == (0.0, 0.0, 0.0, 0.0)
    assert math.isfinite(class_scores(torch.zeros(3, 5), torch.tensor([4, 4, 4])).f1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: macro_f1(torch.zeros(2, 3), torch.zeros(3)), r"got \(2, 3\) and \(3,\)"),
        (lambda: class_scores(torch.zeros(2, 3), torch.tensor([0, 3])), "labels must be from 0 to 2, got 0 to 3"),
        (lambda: class_scores(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), "N of at least 1"),
    ],
)
def test_wrong_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()
