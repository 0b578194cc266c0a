"""Data sets by name, as tensors, split and batched reproducibly."""

from metafast.data._batches import Batches
from metafast.data._load import DatasetNotFoundError, load
from metafast.data._splits import Samples, Splits, digits, split_validation
from metafast.data._tasks import Task, TaskBatch
from metafast.data._tensors import labels_of, to_tensors
from metafast.data._text import bag_of_words, hash_tokens

__all__ = [
    "Batches",
    "DatasetNotFoundError",
    "Samples",
    "Splits",
    "Task",
    "TaskBatch",
    "bag_of_words",
    "digits",
    "hash_tokens",
    "labels_of",
    "load",
    "split_validation",
    "to_tensors",
]
