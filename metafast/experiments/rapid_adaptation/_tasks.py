"""Episodes of the experiment: to meta-train on, to choose a rate on, and to test on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metafast._trainings import StoppedError
from metafast.data import Augment, ClassSet, ClassSplits, TaskBatch, all_classes, episodes, few_shot
from metafast.experiments.rapid_adaptation._backbones import OWN
from metafast.experiments.rapid_adaptation._recipes import Setup, Target

if TYPE_CHECKING:
    from metafast.data._episodes_base import Episodes

TEXTS = {"few_rel_words": "few_rel", "clinc_words": "clinc_oos"}  # without the numbers of the own backbone's words
PICTURE, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what models of ImageNet were trained on
VAL_SEED, TEST_SEED = 1_000_003, 2_000_003  # those of a seed are the same for every method


def training_tasks(setup: Setup, shots: int, seed: int) -> Episodes:
    """Meta-batches of the training classes."""
    augment = Augment(flip=True, crop=4) if setup.flip else None
    return episodes(
        _splits(setup.data, setup.backbone).train,
        ways=setup.ways,
        shots=shots,
        queries=setup.meta_queries,
        tasks=setup.tasks,
        seed=seed,
        augment=augment,
    )


def validation_tasks(setup: Setup, ways: int, shots: int) -> Episodes:
    """Tasks of the validation classes, the same for every method and seed."""
    return _still(_splits(setup.data, setup.backbone).val, setup, ways, shots, VAL_SEED)


def held_out_tasks(setup: Setup, shots: int, seed: int, target: Target | None = None) -> Episodes:
    """Tasks of the test classes, or of a target, the same for every method.

    Args:
        setup: the data set.
        shots: support examples per class.
        seed: which episodes.
        target: of the transfer; None: the data set's own test classes.
    """
    if target is None:
        return _still(_splits(setup.data, setup.backbone).test, setup, setup.ways, shots, TEST_SEED + seed)
    return _still(_target(setup, target), setup, target.ways, shots, TEST_SEED + seed)


def prepared(batch: TaskBatch, ways: int) -> TaskBatch:
    """The batch for a head that may be wider than its tasks, and without columns of nothing but padding.

    Args:
        batch: of tasks.
        ways: their classes.
    """
    classes = torch.full((len(batch),), ways, dtype=torch.int64, device=batch.query_y.device)
    if batch.query_x.dtype != torch.int64:
        return replace(batch, classes=classes)
    words = max(int((x != 0).any((0, 1)).nonzero().max()) for x in (batch.support_x, batch.query_x)) + 1
    support, query = batch.support_x[..., :words], batch.query_x[..., :words]
    return replace(batch, support_x=support.contiguous(), query_x=query.contiguous(), classes=classes)


class Watched:
    """Training episodes that tell how far they are, and that end where the whole is interrupted.

    Args:
        inner: the episodes.
        ways: classes of a task.
        progress: called with the number of meta-batches handed out before.
        stop: whether to leave.

    Raises:
        StoppedError: from the loop, when `stop()` is true.
    """

    def __init__(self, inner: Episodes, ways: int, progress: Callable[[int], None], stop: Callable[[], bool]) -> None:
        self.inner, self._ways, self._progress, self._stop = inner, ways, progress, stop

    def __iter__(self) -> Iterator[TaskBatch]:
        done = int(self.inner.state_dict()["batch"])
        for number, batch in enumerate(self.inner, done):
            if self._stop():
                raise StoppedError
            self._progress(number)
            yield prepared(batch, self._ways)

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self.inner.load_state_dict(state)


def _splits(data: str, backbone: str) -> ClassSplits:
    """The classes in the form that the backbone takes: hashed words, its own tokens, or its own pictures."""
    if backbone in OWN:
        return few_shot(data)
    if data in TEXTS:
        return few_shot(TEXTS[data], tokenizer=_tokenizer(backbone))
    parts = few_shot(data, size=PICTURE)
    return ClassSplits(*(replace(part, mean=MEAN, std=STD) for part in parts))


@lru_cache(maxsize=2)
def _tokenizer(backbone: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone)


def _still(classes: ClassSet, setup: Setup, ways: int, shots: int, seed: int) -> Episodes:
    return episodes(
        classes,
        ways=ways,
        shots=shots,
        queries=setup.queries,
        tasks=setup.at_once,
        seed=seed,
        turned_classes=False,  # a letter lying on its side is no letter of an alphabet
    )


def _target(setup: Setup, target: Target) -> ClassSet:
    """The target's classes in the form that the backbone knows: size, channels and scale of its own pictures."""
    if target.part == "test":
        return _splits(target.data, setup.backbone).test
    found, own = all_classes(target.data, "test"), _splits(setup.data, setup.backbone).test
    if own.examples.dtype != np.uint8:
        return found
    size, channels = own.examples.shape[2], own.examples.shape[1]
    return replace(found.resized(size, channels), mean=own.mean, std=own.std)
