"""What a run reached and how fast; for anything bigger, torchmetrics (`pip install 'metafast[metrics]'`)."""

from metafast.metrics._answers import AnswerScores, answer_f1, answer_scores, exact_match
from metafast.metrics._classes import ClassScores, class_scores, macro_f1
from metafast.metrics._episodes import Interval, episode_accuracy, mean_interval
from metafast.metrics._simple import accuracy, steps_to_threshold
from metafast.metrics._words import ctc_decode, word_error_rate

__all__ = [
    "AnswerScores",
    "ClassScores",
    "Interval",
    "accuracy",
    "answer_f1",
    "answer_scores",
    "class_scores",
    "ctc_decode",
    "episode_accuracy",
    "exact_match",
    "macro_f1",
    "mean_interval",
    "steps_to_threshold",
    "word_error_rate",
]
