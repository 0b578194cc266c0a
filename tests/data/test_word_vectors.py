"""Word vectors from neighbours, and sentences made of them."""

import numpy as np
import pytest
import torch

from metafast.data import word_vectors
from metafast.data._word_vectors import PLACES, frequent_words, place_codes, vectors_of


def sentences(seed=0, count=400):
    """Two topics, whose words stand beside words of their own topic, and function words everywhere."""
    rng = np.random.default_rng(seed)
    topics = [[f"{topic}{i}" for i in range(20)] for topic in ("sea", "law")]
    return [
        [word for _ in range(6) for word in (topics[n % 2][rng.integers(20)], ("the", "of", "a")[rng.integers(3)])]
        for n in range(count)
    ]


def test_words_of_a_topic_lie_together():
    words, vectors = word_vectors(sentences(), dim=2)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(words)))
    sea, law = ([i for i, word in enumerate(words) if word.startswith(topic)] for topic in ("sea", "law"))
    likeness = vectors @ vectors.T
    assert len(sea) == len(law) == 20
    assert likeness[sea][:, sea].min() > 0.9 and likeness[law][:, law].min() > 0.9
    assert likeness[sea][:, law].max() < -0.5


def test_the_same_text_gives_the_same_vectors_and_leaves_the_generator():
    before = torch.get_rng_state()
    one, two = word_vectors(sentences(), dim=8), word_vectors(sentences(), dim=8)
    assert torch.equal(before, torch.get_rng_state())
    assert one.words == two.words == frequent_words(sentences())
    assert torch.equal(one.vectors, two.vectors)


def test_frequent_words_come_first_and_ties_by_name():
    texts = [["b", "a", "c", "c"], ["b", "a", "rare"]]
    assert frequent_words(texts, least=2) == ("a", "b", "c")
    assert frequent_words(texts, vocabulary=1, least=1) == ("a",)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 43}, ValueError, "more than dim=43 words that occur at least 3 times, got 43"),
        ({"window": 1.5}, TypeError, "window must be an integer"),
        ({"least": 10**6}, ValueError, "got 0"),
    ],
)
def test_wrong_arguments(options, error, text):
    with pytest.raises(error, match=text):
        word_vectors(sentences(), **{"dim": 8, **options})


def entity(*places):
    return {"indices": [list(places)]}


def test_places_and_vectors_of_a_sentence():
    words, vectors = ("in", "rome"), torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    sentence = ["Well", "Rome", "lies", "in", "Italy", "."]
    codes = place_codes([sentence] * 2, [entity(1), entity(4)], [entity(4), entity(1)], words, length=8)
    assert codes.dtype == np.int32 and codes[0, 6:].tolist() == [0, 0]
    assert ((codes[:, :6] - 1) % PLACES).tolist() == [[2, 0, 3, 3, 1, 5], [2, 1, 4, 4, 0, 5]]
    assert ((codes[0, :6] - 1) // PLACES).tolist() == [0, 2, 0, 1, 0, 0]
    made = vectors_of(codes, vectors)
    assert made.shape == (2, 4 + PLACES, 8, 1) and made.dtype == np.float32 and made.flags.c_contiguous
    assert made[0, :4, 1, 0].tolist() == [0, 1, 0, 0] and made[0, :4, 3, 0].tolist() == [1, 0, 0, 0]
    assert not made[0, :4, [0, 2, 4]].any() and not made[:, :, 6:].any()
    assert made[0, 4:, :6, 0].argmax(0).tolist() == [2, 0, 3, 3, 1, 5] and (made[:, 4:, :6].sum(1) == 1).all()


def test_long_sentences_are_cut_around_the_entities():
    sentence = [f"w{i}" for i in range(100)]
    codes = place_codes(
        [sentence] * 3, [entity(50), entity(0), entity(98)], [entity(60), entity(3), entity(99)], sentence, 32
    )
    first = ((codes[:, 0] - 1) // PLACES - 1).tolist()
    assert first == [46, 0, 68]
    with pytest.raises(ValueError, match=r"tails\[0\] must name words of its sentence \(0 to 99\), got \[100\]"):
        place_codes([sentence], [entity(0)], [entity(100)], sentence)
