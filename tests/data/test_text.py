"""Text by hashing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import bag_of_words, hash_tokens


@given(st.lists(st.text(), max_size=5), st.integers(2, 300), st.integers(1, 9), st.integers(1, 3))
def test_any_text_gives_buckets_in_range(texts, buckets, length, ngrams):
    tokens = hash_tokens(texts, buckets, length, ngrams)
    assert tokens.shape == (len(texts), length)
    if tokens.numel():
        assert tokens.min() >= 0
        assert tokens.max() < buckets
    bags = bag_of_words(texts, buckets, ngrams)
    assert bags.shape == (len(texts), buckets)
    sums = bags.sum(1)
    assert torch.all((sums - 1).abs().lt(1e-5) | sums.eq(0))


def test_the_same_words_fall_into_the_same_buckets_on_every_machine():
    assert hash_tokens(["stocks rose"], buckets=1000, length=3).tolist() == [[413, 294, 0]]
    assert torch.equal(hash_tokens(["A b"], 50, 4), hash_tokens(["a, B!"], 50, 4))
    one, two = (hash_tokens(["a b c"], 1000, 8, ngrams=n)[0] for n in (1, 2))
    assert two[:3].tolist() == one[:3].tolist()
    assert int((two > 0).sum()) == 5


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: hash_tokens("one text"), TypeError, r"write \[text\]"),
        (lambda: hash_tokens(["a", None]), TypeError, r"texts\[1\] must be a string, got NoneType"),
        (lambda: hash_tokens(["a"], buckets=1), ValueError, "buckets must be at least 2"),
        (lambda: hash_tokens(["a"], length=0), ValueError, "length must be at least 1"),
        (lambda: hash_tokens(["a"], ngrams=0), ValueError, "ngrams must be at least 1"),
        (lambda: bag_of_words(["a"], ngrams=0.5), TypeError, "ngrams must be an integer"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
