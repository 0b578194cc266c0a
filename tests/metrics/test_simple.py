"""Accuracy and steps to a threshold."""

import numpy as np
import pytest
import torch

from metafast.metrics import accuracy, steps_to_threshold

NAN = float("nan")


def test_accuracy():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [NAN, 9.0], [0.0, 5.0]])
    assert accuracy(logits, torch.tensor([1, 1, 1, 1])) == 0.5
    assert accuracy(logits.bfloat16()[:1], torch.tensor([1])) == 1.0


@pytest.mark.parametrize(
    ("steps", "values", "threshold", "mode", "want"),
    [
        ([1, 2, 3], [0.1, 0.9, 0.8], 0.9, "above", 2),
        ([1, 2, 3], [0.1, 0.2, 0.3], 0.9, "above", None),
        ([1, 2, 3], [3.0, NAN, 1.0], 1.0, "below", 3),
        (np.array([5]), np.array([NAN]), 0.0, "above", None),
        ([], [], 0.5, "above", None),
    ],
)
def test_steps_to_threshold(steps, values, threshold, mode, want):
    assert steps_to_threshold(steps, values, threshold, mode=mode) == want


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: accuracy([1], torch.tensor([1])), TypeError, "must be tensors, got list"),
        (lambda: accuracy(torch.zeros(2, 3), torch.zeros(3)), ValueError, r"got \(2, 3\) and \(3,\)"),
        (lambda: accuracy(torch.zeros(0, 3), torch.zeros(0)), ValueError, "at least 1"),
        (lambda: steps_to_threshold([1], [1.0], 0.5, mode="over"), ValueError, "mode must be 'above' or 'below'"),
        (lambda: steps_to_threshold([1], [1.0, 2.0], 0.5), ValueError, "one equal length"),
        (lambda: steps_to_threshold([1], [1.0], NAN), ValueError, "threshold must be finite"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
