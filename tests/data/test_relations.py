"""Sentences about two entities as numbers."""

import numpy as np
import pytest

from metafast.data import encode_relations, hash_tokens

WORDS = ["Rome", "is", "the", "capital", "of", "Italy", "."]


def entity(*places):
    return {"text": "", "type": "", "indices": [list(places)]}


def words_of(row, vocabulary):
    numbers = {int(hash_tokens([word], buckets=2**14, length=1)[0, 0]): word for word in vocabulary}
    return [numbers.get(int(token), "?") for token in row if token]


def test_a_sequence_keeps_the_words_and_marks_the_entities():
    row = encode_relations([WORDS], [entity(0)], [entity(5)], style="sequence")[0]
    assert row.shape == (48,) and row.dtype == np.int32
    words = [word.lower() for word in WORDS[:-1]]
    assert words_of(row, words) == ["?", "rome", "?", "is", "the", "capital", "of", "?", "italy", "?", "?"]
    other = encode_relations([WORDS], [entity(5)], [entity(0)], style="sequence")[0]
    changed = (row != other).nonzero()[0].tolist()
    assert changed == [0, 2, 7, 9]  # the four markers


def test_a_bag_tells_which_entity_comes_first_and_what_is_between():
    one, other = (
        set(encode_relations([WORDS], [entity(head)], [entity(tail)])[0].tolist()) for head, tail in ((0, 5), (5, 0))
    )
    assert one != other
    assert {int(n) for n in hash_tokens(["is the capital of"], buckets=2**14, length=4)[0]} <= one & other
    swapped = WORDS.copy()
    swapped[1:4] = ["the", "is", "capital"]
    third = set(encode_relations([swapped], [entity(0)], [entity(5)])[0].tolist())
    assert third != one  # pairs of neighbours


def test_case_does_not_matter_and_long_sentences_are_cut():
    upper = [word.upper() for word in WORDS]
    for style in ("bag", "sequence"):
        a, b = encode_relations([WORDS, upper], [entity(0)] * 2, [entity(5)] * 2, style=style)
        assert np.array_equal(a, b)
        long = encode_relations([WORDS * 50], [entity(0)], [entity(5)], style=style, length=10)
        assert long.shape == (1, 10) and long.all()
        assert long.max() < 2**14
    assert encode_relations([WORDS], [entity(0)], [entity(5)], buckets=7).max() < 7


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (([WORDS], [entity(0)], [entity(7)]), {}, r"tails\[0\] must name words of its sentence \(0 to 6\), got \[7\]"),
        (([WORDS], [entity()], [entity(1)]), {}, r"heads\[0\] must name words"),
        (([WORDS], [{"indices": []}], [entity(1)]), {}, r"heads\[0\] must name words"),
        (([WORDS], [entity(0)], [entity(1)]), {"style": "tree"}, "style must be 'bag' or 'sequence', got 'tree'"),
        (([WORDS], [entity(0)], [entity(1)]), {"buckets": 1}, "buckets must be at least 2"),
        (([WORDS], [entity(0)], [entity(1)]), {"length": 0}, "length must be at least 1"),
        (([WORDS], [entity(0)], []), {}, "zip"),
    ],
)
def test_wrong_arguments(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        encode_relations(*arguments, **options)
