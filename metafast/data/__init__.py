"""Data sets by name, as tensors, split and batched reproducibly; series to forecast; few-shot tasks, also of curves."""

from metafast.data._batches import Batches
from metafast.data._class_sets import ClassSet, ClassSplits, check_disjoint, class_set
from metafast.data._episodes import Augment, ClassEpisodes, RegressionEpisodes, episodes
from metafast.data._episodes_base import Episodes
from metafast.data._few_shot import all_classes, few_shot
from metafast.data._load import DatasetNotFoundError, load
from metafast.data._regression import Harmonic, Sinusoid, Step
from metafast.data._relations import encode_relations
from metafast.data._series import ForecastSplits, Windows, forecast_splits, load_series, seasonal_naive
from metafast.data._splits import Samples, Splits, digits, split_validation
from metafast.data._tasks import Task, TaskBatch
from metafast.data._tensors import labels_of, to_tensors
from metafast.data._text import bag_of_words, hash_tokens
from metafast.data._word_vectors import WordVectors, word_vectors

__all__ = [
    "Augment",
    "Batches",
    "ClassEpisodes",
    "ClassSet",
    "ClassSplits",
    "DatasetNotFoundError",
    "Episodes",
    "ForecastSplits",
    "Harmonic",
    "RegressionEpisodes",
    "Samples",
    "Sinusoid",
    "Splits",
    "Step",
    "Task",
    "TaskBatch",
    "Windows",
    "WordVectors",
    "all_classes",
    "bag_of_words",
    "check_disjoint",
    "class_set",
    "digits",
    "encode_relations",
    "episodes",
    "few_shot",
    "forecast_splits",
    "hash_tokens",
    "labels_of",
    "load",
    "load_series",
    "seasonal_naive",
    "split_validation",
    "to_tensors",
    "word_vectors",
]
