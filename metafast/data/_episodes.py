"""Meta-batches without end or by the epoch, the same for the same seed, whose position can be saved and restored."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metafast._checks import integer
from metafast.data._class_sets import ClassSet, class_set
from metafast.data._collate import PER, Arrays, Plan, task_keys
from metafast.data._episodes_base import Episodes
from metafast.data._few_shot import few_shot
from metafast.data._prefetch import Pool, stream
from metafast.data._regression import FAMILIES, Family, Harmonic, Sinusoid, Step, sample
from metafast.data._tasks import TaskBatch

if TYPE_CHECKING:
    from datasets import Dataset

Sizes = int | tuple[int, int]


@dataclass(frozen=True)
class Augment:
    """How pictures are changed at random.

    Args:
        rotate: by 0, 90, 180 or 270 degrees.
        flip: left and right, every second time.
        crop: a random window of the picture with this many pixels of black padding on each side.
        per: what is changed alike: each `"example"` by itself, all of a `"class"` in a task, or all of a `"task"`.

    Raises:
        TypeError: a crop that is no integer.
        ValueError: a negative crop, or an unknown `per`.
    """

    rotate: bool = False
    flip: bool = False
    crop: int = 0
    per: str = "example"

    def __post_init__(self) -> None:
        integer("crop", self.crop, minimum=0)
        if self.per not in PER:
            raise ValueError(f"per must be one of {list(PER)}, got {self.per!r}")


class ClassEpisodes(Episodes):
    """Tasks of several classes each; `episodes` makes them."""

    def __init__(
        self,
        source: ClassSet,
        *,
        ways: Sizes,
        shots: Sizes,
        queries: Sizes,
        augment: Augment | None,
        turned_classes: bool | None,
        disjoint_order: bool,
        workers: int,
        prefetch: int,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.source = source
        self.ways, self.shots, self.queries = (
            _sizes(name, value) for name, value in (("ways", ways), ("shots", shots), ("queries", queries))
        )
        self.augment = augment if augment is not None else Augment()
        self.turned_classes = source.turned_classes if turned_classes is None else bool(turned_classes)
        self.disjoint_order = bool(disjoint_order)
        self.workers = integer("workers", workers, minimum=1)
        self.prefetch = integer("prefetch", prefetch, minimum=0)
        self._check()
        self._plan = self._make_plan()
        # in use, being copied, and being made
        self._pool = Pool(self._plan, keep=self.prefetch + 4, pinned=self.device.type == "cuda")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in ("ways", "shots", "queries", "tasks", "seed"))
        return f"episodes({self.source.name!r}, {sizes})"

    def examples(self) -> tuple[Tensor, Tensor]:
        """All examples of the split as a model takes them, without augmentation, and their class numbers."""
        inputs, labels = self.source.tensors()
        return inputs.to(self.device), labels.to(self.device)

    def _check(self) -> None:
        source, pictures = self.source, self.source.examples.dtype == np.uint8
        classes = source.classes * (4 if self.turned_classes else 1)
        if self.ways[1] > classes:
            raise ValueError(f"ways must be at most {classes}, the classes of {source.name}, got {self.ways[1]}")
        drawn = self.shots[1] + self.queries[1]
        least = int(source.counts.argmin())
        if source.counts[least] < drawn:
            raise ValueError(
                f"class {source.names[least]!r} of {source.name} has {source.counts[least]} examples, fewer than "
                f"shots + queries = {self.shots[1]} + {self.queries[1]} = {drawn}; lower one of them, or leave the "
                "class out with ClassSet.select"
            )
        turns = self.augment.rotate or self.turned_classes
        if (turns or self.augment.flip or self.augment.crop) and not pictures:
            raise ValueError(
                f"augment and turned_classes are for pictures, and {source.name} has {source.examples.dtype}"
            )
        if turns and source.examples.shape[2] != source.examples.shape[3]:
            raise ValueError(f"only square pictures can be turned, and {source.name} has {source.examples.shape[2:]}")
        if self.disjoint_order:
            if source.order is None:
                raise ValueError(
                    f"disjoint_order needs ClassSet.order (such as the drawers), and {source.name} has none"
                )
            members, starts = source.members()
            orders = [source.order[members[a:b]].tolist() for a, b in pairwise(starts)]
            other = next(
                (i for i, order in enumerate(orders) if order != orders[0] or len({*order}) < len(order)), None
            )
            if other is not None:
                raise ValueError(
                    f"disjoint_order needs the same values of order in every class, each once, "
                    f"and class {source.names[other]!r} of {source.name} has others"
                )

    def _make_plan(self) -> Plan:
        members, starts = self.source.members()
        pictures = self.source.examples.dtype == np.uint8
        scale, shift = self.source.affine() if pictures else (np.ones(1, np.float32), np.zeros(1, np.float32))
        return Plan(
            self.source.examples,
            members,
            starts,
            seed=self.seed,
            tasks=self.tasks,
            first=self.first_task,
            count=self.own_tasks,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            same_positions=self.disjoint_order,
            class_rotations=self.turned_classes,
            rotate=self.augment.rotate,
            flip=self.augment.flip,
            crop=self.augment.crop,
            per=PER[self.augment.per],
            scale=scale,
            shift=shift,
        )

    def _identity(self) -> dict[str, Any]:
        source = self.source
        return {
            "source": source.name,
            "examples": list(source.examples.shape),
            "classes": f"{zlib.crc32(chr(0).join(source.names).encode()):08x}",
            "ways": list(self.ways),
            "shots": list(self.shots),
            "queries": list(self.queries),
            "augment": asdict(self.augment),
            "turned_classes": self.turned_classes,
            "disjoint_order": self.disjoint_order,
        }

    def _stream(self, first: int, stop: int | None, ahead: bool = True) -> Generator[TaskBatch, None, None]:
        copying: deque[tuple[Any, TaskBatch]] = deque()
        arrays = stream(self._plan, self._pool, first, stop, self.workers, self.prefetch if ahead else 0)
        with closing(arrays):
            for filled in arrays:
                batch = self._batch_of(filled)
                if self.device.type == "cpu":
                    yield batch
                    continue
                moved = batch.to(self.device)
                if self.device.type == "cuda":
                    # the host's memory stays taken until the copies from it are done
                    event = torch.cuda.Event()
                    event.record(torch.cuda.current_stream(self.device))
                    copying.append((event, batch))
                    while copying[0][0].query() and len(copying) > 1:
                        copying.popleft()
                del batch
                yield moved

    def _batch_of(self, arrays: Arrays) -> TaskBatch:
        support_x, support_y, query_x, query_y, *others = map(torch.from_numpy, arrays.all())
        padded = any(low < high for low, high in (self.ways, self.shots, self.queries))
        return TaskBatch(support_x, support_y, query_x, query_y, *(others if padded else ()))


class RegressionEpisodes(Episodes):
    """Tasks that are functions of one number; `episodes` makes them."""

    def __init__(self, family: Family, split: str, *, shots: int, queries: int, **common: Any) -> None:
        super().__init__(**common)
        self.source = family
        self.split = split
        self.shots = integer("shots", shots, minimum=1)
        self.queries = integer("queries", queries, minimum=1)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in ("shots", "queries", "tasks", "seed"))
        return f"episodes({self.source.name!r}, {sizes})"

    def _identity(self) -> dict[str, Any]:
        bounds = [list(bound) for bound in (*self.source.bounds(), self.source.x)]
        return {
            "source": f"{self.source.name} ({self.split})",
            "bounds": bounds,
            "noise": self.source.noise,
            "shots": self.shots,
            "queries": self.queries,
        }

    def _stream(self, first: int, stop: int | None, ahead: bool = True) -> Generator[TaskBatch, None, None]:
        # functions of the splits are drawn from streams of their own
        seed = self.seed + (zlib.crc32(self.split.encode()) << 32)
        points = self.shots + self.queries
        at_once = max(1, min(64, 2**16 // (self.tasks * points))) if ahead else 1
        while stop is None or first < stop:
            count = at_once if stop is None else min(at_once, stop - first)
            starts = [number * self.tasks + self.first_task for number in range(first, first + count)]
            keys = np.concatenate([task_keys(seed, start, self.own_tasks) for start in starts])
            x, y = (
                torch.from_numpy(values.reshape(count, self.own_tasks, points, 1)).to(self.device)
                for values in sample(self.source, keys, points)
            )
            for index in range(count):
                parts = [part.split([self.shots, self.queries], dim=1) for part in (x[index], y[index])]
                (support_x, query_x), (support_y, query_y) = ([half.contiguous() for half in pair] for pair in parts)
                yield TaskBatch(support_x, support_y, query_x, query_y)
            first += count


def episodes(
    source: str | ClassSet | Dataset | tuple[Any, Any] | Sinusoid | Harmonic | Step,
    *,
    split: str = "train",
    ways: Sizes = 5,
    shots: Sizes = 1,
    queries: Sizes = 15,
    tasks: int = 32,
    seed: int = 0,
    batches: int | None = None,
    fixed: bool | None = None,
    augment: Augment | None = None,
    turned_classes: bool | None = None,
    disjoint_order: bool = False,
    label: str | None = None,
    path: str | PathLike[str] | None = None,
    tokenizer: Any = None,
    length: int | None = None,
    size: int | None = None,
    limit: int | None = None,
    workers: int = 1,
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str | None = None,
) -> Episodes:
    """Meta-batches of tasks: few-shot classification of a data set by name or of your own, or families of curves.

    A task of a class-based set has `ways` classes, numbered from 0 in random order, with `shots` support and `queries`
    query examples of each; no example is in both. All of it is drawn from a hash of `seed` and the task's number in the
    run, so threads, ranks and interruptions change nothing.

    Args:
        source: a name (`"omniglot"`, `"cifar_fs"`, `"fewrel"`, `"clinc_oos"`, ...: see `few_shot`; `"sinusoid"`,
            `"harmonic"`, `"step"`), a `ClassSet`, `(examples, labels)`, a `datasets.Dataset` with a label column, or a
            family such as `Sinusoid(amplitude=(1, 2))`.
        split: "train", "val" or "test", for a name: their classes are disjoint.
        ways: classes per task, or the bounds between which each task draws its own number. Tasks are then padded to
            the largest size, and the batch has masks and `classes`.
        shots: support examples per class (per curve), or bounds.
        queries: query examples per class (per curve), or bounds.
        tasks: tasks per meta-batch.
        seed: of everything.
        batches: meta-batches per epoch; None: no end.
        fixed: every epoch has the same meta-batches; default True for "val" and "test", where `batches` is given.
        augment: random changes of pictures, in support and query.
        turned_classes: pictures turned by 90, 180 and 270 degrees are classes of their own; default True for Omniglot.
        disjoint_order: support and query share no value of `ClassSet.order` (Omniglot: no drawer).
        label: the label column of a `Dataset`.
        path: a folder of the data, as in `load`.
        tokenizer: makes the token numbers of texts, as in `few_shot`.
        length: tokens per text of a tokenizer of transformers.
        size: height and width that pictures are brought to, in three channels.
        limit: the most examples of a class that are used.
        workers: threads that fill meta-batches, without the interpreter's lock.
        prefetch: meta-batches made ahead; 0: none, and no threads.
        rank: of this process, out of `world_size`: it makes its share of each meta-batch.
        world_size: processes that share a meta-batch; it divides `tasks`.
        device: where the meta-batches go.

    Returns:
        An iterable of `TaskBatch` with `state_dict` and `load_state_dict`; `loader[i]` is meta-batch i of the run.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has the data.
        TypeError: an argument of the wrong type.
        ValueError: one that cannot be met, such as more shots and queries than a class has examples.

    Example:
        >>> loader = episodes("sinusoid", shots=10, queries=5, tasks=4, batches=3)
        >>> [batch.query_x.shape for batch in loader]
        [torch.Size([4, 5, 1]), torch.Size([4, 5, 1]), torch.Size([4, 5, 1])]
        >>> pictures, labels = np.zeros((40, 3, 8, 8), np.uint8), np.arange(40) % 4
        >>> next(iter(episodes((pictures, labels), ways=(2, 4), shots=1, queries=2, tasks=2))).classes
        tensor([2, 3])
    """
    common = {
        "tasks": tasks, "seed": seed, "batches": batches, "rank": rank, "world_size": world_size, "device": device,
        "fixed": (split != "train" and batches is not None) if fixed is None else fixed,
    }  # fmt: skip
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    if isinstance(source, str) and source in FAMILIES:
        source = FAMILIES[source]()
    if isinstance(source, Sinusoid | Harmonic | Step):
        return RegressionEpisodes(
            source, split, shots=integer("shots", shots), queries=integer("queries", queries), **common
        )
    classes: ClassSet
    reading = {"tokenizer": tokenizer, "length": length, "size": size, "limit": limit}
    if isinstance(source, str):
        classes = getattr(few_shot(source, path, **reading), split)
    else:
        if split != "train":
            raise ValueError(f"split={split!r} needs a data set by name; give the classes of that split as source")
        classes = class_set(source, label=label, **reading)
    return ClassEpisodes(
        classes,
        ways=ways,
        shots=shots,
        queries=queries,
        augment=augment,
        turned_classes=turned_classes,
        disjoint_order=disjoint_order,
        workers=workers,
        prefetch=prefetch,
        **common,
    )


def _sizes(name: str, value: Sizes) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or (lowest, highest), got {value!r}")
        low, high = (integer(f"{name}[{i}]", number, minimum=1) for i, number in enumerate(value))
        if low > high:
            raise ValueError(f"{name} must be (lowest, highest), got {value!r}")
    else:
        low = high = integer(name, value, minimum=1)
    if high >= 1 << 16:
        raise ValueError(f"{name} must be below {1 << 16}, got {high}")
    return low, high
