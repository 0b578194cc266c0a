"""Answers to questions as SQuAD counts them: exact match and F1 of words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation)


class AnswerScores(NamedTuple):
    """Shares from 0 to 1 over `n` questions."""

    exact: float
    f1: float
    n: int


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, but for case, signs, articles and spaces; else 0.

    Args:
        prediction: "" says that there is no answer.
        answers: that people gave; none: the question has no answer.

    Example:
        >>> exact_match("The Normans.", ["Normans", "the Norse"]), exact_match("", []), exact_match("x", [])
        (1.0, 1.0, 0.0)

    Source:
        P. Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018.
    """
    found = _normal(prediction)
    return float(any(found == _normal(answer) for answer in answers or [""]))


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the words, with the answer that fits best.

    Args:
        prediction: as in `exact_match`.
        answers: likewise.

    Example:
        >>> round(answer_f1("in the 10th century", ["10th century"]), 2)
        0.8

    Source:
        P. Rajpurkar et al., SQuAD, EMNLP 2016; for no answer, as the second version does.
    """
    return max(_f1(_normal(prediction).split(), _normal(answer).split()) for answer in answers or [""])


def answer_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> AnswerScores:
    """Means over questions.

    Args:
        predictions: one for each question.
        answers: of each question.

    Raises:
        ValueError: different numbers of them, or none.

    Example:
        >>> answer_scores(["rome", ""], [["Rome"], ["Italy"]])
        AnswerScores(exact=0.5, f1=0.5, n=2)
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(
            f"predictions and answers must be as many, at least one, got {len(predictions)}, {len(answers)}"
        )
    pairs = list(zip(predictions, answers, strict=True))
    exact, f1 = (sum(score(*pair) for pair in pairs) / len(pairs) for score in (exact_match, answer_f1))
    return AnswerScores(exact, f1, len(pairs))


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_SIGNS)).split())


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
