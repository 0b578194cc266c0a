"""Ways to make a meta-batch, and what they are asked for."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from metafast.data import Augment, ClassSet, TaskBatch, episodes
from metafast.data import _prefetch as prefetch

Make = Callable[[], TaskBatch]


@dataclass(frozen=True)
class Workload:
    """A data set's shape and the tasks made of it; the pictures are noise, which costs the same."""

    name: str
    classes: int
    each: int
    shape: tuple[int, int, int]  # C, H, W
    tasks: int
    ways: int
    shots: int
    queries: int
    turned_classes: bool = False
    augment: Augment | None = None

    def source(self) -> ClassSet:
        """The examples, class by class."""
        count = self.classes * self.each
        pictures = np.random.default_rng(0).integers(0, 256, (count, *self.shape), dtype=np.uint8)
        names = tuple(f"class {i}" for i in range(self.classes))
        return ClassSet(pictures, np.arange(count) // self.each, names, mean=(0.5,), std=(0.25,), name=self.name)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("omniglot", 1100, 20, (1, 28, 28), 32, 5, 1, 15),
        Workload("omniglot turned", 1100, 20, (1, 28, 28), 32, 5, 1, 15, turned_classes=True),
        Workload("cifar", 64, 120, (3, 32, 32), 32, 5, 1, 15),
        Workload("cifar cropped, flipped", 64, 120, (3, 32, 32), 32, 5, 1, 15, augment=Augment(flip=True, crop=4)),
        Workload("84x84", 64, 60, (3, 84, 84), 4, 5, 5, 15),
    )
}
SMOKE = Workload("smoke", 8, 20, (1, 8, 8), 3, 4, 1, 5)


def metafast_native(source: ClassSet, w: Workload) -> Make:
    """C++ in the calling thread."""
    if prefetch.native() is None:
        raise NotImplementedError
    return _metafast(source, w)


def metafast_numpy(source: ClassSet, w: Workload) -> Make:
    """The fallback where the C++ library was not built."""
    make = _metafast(source, w)

    def without_library() -> TaskBatch:
        found = prefetch.native
        prefetch.native = lambda: None
        try:
            return make()
        finally:
            prefetch.native = found

    return without_library


def _metafast(source: ClassSet, w: Workload) -> Make:
    loader = episodes(
        source, ways=w.ways, shots=w.shots, queries=w.queries, tasks=w.tasks, prefetch=0,
        turned_classes=w.turned_classes, augment=w.augment,
    )  # fmt: skip
    made = iter(loader)

    def make() -> TaskBatch:
        nonlocal made
        batch = next(made)
        if prefetch.native() is None:  # a generator keeps the collator that it began with
            made = iter(loader)
        return batch

    return make


def torch_gather(source: ClassSet, w: Workload) -> Make:
    """Plain PyTorch at its best: draw all indices, gather once, normalize once."""
    if w.turned_classes or w.augment:
        raise NotImplementedError
    pictures = torch.from_numpy(source.examples)
    drawn = w.shots + w.queries
    y = torch.arange(w.ways).repeat_interleave(w.shots).repeat(w.tasks, 1)
    query_y = torch.arange(w.ways).repeat_interleave(w.queries).repeat(w.tasks, 1)

    def make() -> TaskBatch:
        classes = torch.rand(w.tasks, w.classes).topk(w.ways, dim=1).indices
        places = torch.rand(w.tasks, w.ways, w.each).topk(drawn, dim=2).indices
        at = classes[:, :, None] * w.each + places  # [T, W, drawn]
        x = (pictures[at].float() / 255 - 0.5) / 0.25
        return TaskBatch(x[:, :, : w.shots].flatten(1, 2), y, x[:, :, w.shots :].flatten(1, 2), query_y)

    return make


def torch_loop(source: ClassSet, w: Workload) -> Make:
    """A loop over tasks and classes, as most research code has it."""
    pictures = torch.from_numpy(source.examples)

    def make() -> TaskBatch:
        tasks: list[list[Tensor]] = []
        for _ in range(w.tasks):
            parts: list[list[Tensor]] = [[], [], [], []]
            for label, klass in enumerate(torch.randperm(w.classes)[: w.ways].tolist()):
                at = klass * w.each + torch.randperm(w.each)[: w.shots + w.queries]
                x = _changed((pictures[at].float() / 255 - 0.5) / 0.25, w)
                for index, rows in ((0, slice(w.shots)), (2, slice(w.shots, None))):
                    parts[index].append(x[rows])
                    parts[index + 1].append(torch.full((len(x[rows]),), label))
            tasks.append([torch.cat(part) for part in parts])
        return TaskBatch(*(torch.stack(part) for part in zip(*tasks, strict=True)))

    return make


class _OneByOne(Dataset[tuple[Tensor, int]]):
    """A data set as torchvision's: the transformation is applied to one example at a time."""

    def __init__(self, source: ClassSet, w: Workload) -> None:
        self.rows = TensorDataset(torch.from_numpy(source.examples), torch.from_numpy(source.labels))
        self.workload = w

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.rows[index]
        return _changed((x[None].float() / 255 - 0.5) / 0.25, self.workload)[0], int(y)

    def __len__(self) -> int:
        return len(self.rows)


def one_by_one(source: ClassSet, w: Workload) -> Make:
    """As learn2learn's TaskDataset with NWays, KShots, LoadData and RemapLabels: examples are loaded one by one."""
    data = _OneByOne(source, w)
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(source.labels.tolist()):
        by_label[label].append(index)
    generator = random.Random(0)
    drawn = w.shots + w.queries

    def make() -> TaskBatch:
        tasks: list[tuple[Tensor, ...]] = []
        for _ in range(w.tasks):
            classes = generator.sample(sorted(by_label), w.ways)
            chosen = [index for klass in classes for index in generator.sample(by_label[klass], drawn)]
            x, labels = default_collate([data[index] for index in chosen])
            y = torch.tensor([classes.index(int(label)) for label in labels])
            support = torch.arange(w.ways * drawn) % drawn < w.shots
            tasks.append((x[support], y[support], x[~support], y[~support]))
        return TaskBatch(*(torch.stack(part) for part in zip(*tasks, strict=True)))

    return make


def _changed(x: Tensor, w: Workload) -> Tensor:
    """The workload's augmentation of examples of one class: turned together, cropped and flipped by themselves."""
    if w.turned_classes:
        x = torch.rot90(x, int(torch.randint(4, ())), (2, 3))
    if w.augment is None:
        return x
    if w.augment.crop:
        padded = torch.nn.functional.pad(x, (w.augment.crop,) * 4, value=-2.0)
        height, width = x.shape[2:]
        at = torch.randint(2 * w.augment.crop + 1, (len(x), 2)).tolist()
        x = torch.stack([row[:, a : a + height, b : b + width] for row, (a, b) in zip(padded, at, strict=True)])
    if w.augment.flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    return x


CONTENDERS: dict[str, Callable[[ClassSet, Workload], Make]] = {
    "metafast, C++": metafast_native,
    "metafast, numpy": metafast_numpy,
    "PyTorch, one gather": torch_gather,
    "PyTorch, loop over classes": torch_loop,
    "one by one, as learn2learn": one_by_one,
}
