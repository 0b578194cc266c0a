"""Splits: disjoint, complete, stratified, seeded."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import digits, split_validation


@given(st.lists(st.integers(0, 4), min_size=12, max_size=80), st.floats(0.05, 0.95), st.integers(0, 5))
def test_parts_are_disjoint_complete_and_stratified(labels, fraction, seed):
    labels = torch.tensor(labels)
    train, val = split_validation(labels, fraction, seed)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert val.tolist() == sorted(val.tolist())
    for value in labels.unique():
        count, chosen = int((labels == value).sum()), int((labels[val] == value).sum())
        if count > 1:
            assert 1 <= chosen < count
            assert abs(chosen - fraction * count) <= 1
    again = split_validation(labels, fraction, seed)
    assert torch.equal(train, again[0])
    assert torch.equal(val, again[1])


def test_another_seed_is_another_split():
    labels = torch.arange(10).repeat(20)
    assert not torch.equal(split_validation(labels, seed=0)[1], split_validation(labels, seed=1)[1])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([0, 1],), TypeError, "labels must be an integer tensor"),
        ((torch.zeros(4),), TypeError, "a tensor of torch.float32"),
        ((torch.zeros(4, dtype=torch.bool),), TypeError, "integer tensor"),
        ((torch.zeros(2, 2, dtype=torch.int64),), ValueError, r"one dimension \[N\]"),
        ((torch.arange(0),), ValueError, "too few"),
        ((torch.tensor([1]),), ValueError, "too few"),
        ((torch.zeros(9, dtype=torch.int64), 1.0), ValueError, "fraction must be above 0 and below 1"),
        ((torch.zeros(9, dtype=torch.int64), float("nan")), ValueError, "fraction must be"),
        ((torch.zeros(9, dtype=torch.int64), "half"), TypeError, "fraction must be a number"),
        ((torch.zeros(9, dtype=torch.int64), 0.5, None), TypeError, "seed must be an integer"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        split_validation(*arguments)


def test_digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    parts = digits(seed=0)
    assert sum(len(part.labels) for part in parts) == 1797
    rows = torch.cat([part.inputs for part in parts]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797  # no image twice, so the parts are disjoint
    assert (rows.min().item(), rows.max().item()) == (0.0, 1.0)
    for part in parts:
        assert part.inputs.shape[1:] == (1, 8, 8)
        share = part.labels.bincount(minlength=10) / len(part.labels)
        assert share.min() > 0.08
        assert share.max() < 0.12
    again, other, small = digits(seed=0), digits(seed=1), digits(dtype=torch.uint8)
    assert torch.equal(parts.val.inputs, again.val.inputs)
    assert not torch.equal(parts.val.inputs, other.val.inputs)
    assert small.train.inputs.dtype == torch.uint8
    assert int(small.train.inputs.max()) == 255
    with pytest.raises(ValueError, match=r"must be below 1, got 0.5 \+ 0.6"):
        digits(val_fraction=0.5, test_fraction=0.6)
    with pytest.raises(TypeError, match="dtype must be"):
        digits(dtype=torch.int32)


def test_without_scikit_learn_the_error_says_how_to_get_it():
    code = "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.datasets'] = None\n"
    code += "from metafast.data import digits\ntry:\n    digits()\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'metafast[demo]'" in done.stdout, done.stderr
