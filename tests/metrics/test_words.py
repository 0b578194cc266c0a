"""Word error rate against torchmetrics, and CTC's best path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metafast.metrics import ctc_decode, word_error_rate

WORDS = st.lists(st.integers(1, 4), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(st.integers(1, 4), min_size=1, max_size=6)), min_size=1, max_size=4))
def test_equals_torchmetrics(pairs):
    text = pytest.importorskip("torchmetrics.functional.text")
    found, wanted = zip(*pairs, strict=True)
    theirs = text.word_error_rate([" ".join(map(str, w)) for w in found], [" ".join(map(str, w)) for w in wanted])
    assert word_error_rate(found, wanted) == pytest.approx(float(theirs), abs=1e-6)


def test_ctc_decode_merges_repetitions_and_drops_blanks():
    paths = torch.tensor([[0, 1, 1, 0, 1, 2], [0, 0, 0, 0, 0, 0], [3, 3, 3, 2, 2, 3]])
    assert ctc_decode(torch.eye(4)[paths]) == [[1, 1, 2], [], [3, 2, 3]]
    assert ctc_decode(torch.eye(4)[paths], blank=3) == [[0, 1, 0, 1, 2], [0], [2]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="as many"):
        word_error_rate([[1]], [])
    with pytest.raises(ValueError, match="at least one word"):
        word_error_rate([[1]], [[]])
    with pytest.raises(ValueError, match="steps, symbols"):
        ctc_decode(torch.zeros(2, 3))
