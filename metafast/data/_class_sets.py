"""Examples by class, and splits of the classes that share none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metafast._checks import integer
from metafast.data._collate import choose, draw, mix

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ClassSet:
    """Examples of several classes, from which few-shot tasks are drawn.

    Args:
        examples: `[M, C, H, W]` uint8 pictures, `[M, L]` int32 token numbers (0 is padding), or `[M, ...]` float32.
        labels: `[M]` class numbers from 0 on.
        names: a name for each class, different from each other; they tell whether two sets share a class.
        groups: a group for each class (an alphabet, a superclass), or empty.
        order: `[M]` numbers by which the examples of a class are ordered (such as its drawers), or None.
        mean: per channel of pictures, of values from 0 to 1; one number serves all channels.
        std: likewise.
        turned_classes: a picture turned by a quarter is of another class, so that there are four times as many.
        name: for messages.

    Raises:
        TypeError: arrays of another dtype.
        ValueError: lengths that differ, labels without a name, names that are not unique.

    Example:
        >>> pictures = np.zeros((6, 1, 4, 4), np.uint8)
        >>> letters = ClassSet(pictures, np.array([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), name="letters")
        >>> letters.classes, letters.counts.tolist(), letters.select(["c", "a"]).names
        (3, [2, 2, 2], ('c', 'a'))
    """

    examples: Array
    labels: Array
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    order: Array | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    turned_classes: bool = False
    name: str = "examples"

    def __post_init__(self) -> None:
        kinds = {np.dtype(np.uint8): (4,), np.dtype(np.int32): (2,), np.dtype(np.float32): range(2, 9)}
        dtype = getattr(self.examples, "dtype", None)
        if dtype not in kinds:
            raise TypeError(f"examples must be an array of uint8, int32 or float32, got {dtype or type(self.examples)}")
        if self.examples.ndim not in kinds[dtype]:
            raise ValueError(
                f"examples must be [M, C, H, W] uint8, [M, L] int32 or [M, ...] float32, "
                f"got shape {self.examples.shape} of {dtype}"
            )
        labels = np.asarray(self.labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != (len(self.examples),) or not len(labels):
            raise ValueError(f"labels must be [{len(self.examples)}] with at least one, got shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(self.names):
            raise ValueError(
                f"labels must be from 0 to {len(self.names) - 1} (there are {len(self.names)} names), "
                f"got {labels.min()} to {labels.max()}"
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"names must differ from each other, got {twice!r} twice")
        if self.groups and len(self.groups) != len(self.names):
            raise ValueError(f"groups must be one for each of {len(self.names)} classes, got {len(self.groups)}")
        if self.order is not None and np.shape(self.order) != labels.shape:
            raise ValueError(f"order must be [{len(labels)}] as labels, got shape {np.shape(self.order)}")
        for field in ("mean", "std"):
            if len(getattr(self, field)) not in (1, self.examples.shape[1]):
                raise ValueError(
                    f"{field} must be one number or {self.examples.shape[1]} (channels), got {getattr(self, field)}"
                )
        object.__setattr__(self, "examples", np.ascontiguousarray(self.examples))
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __repr__(self) -> str:
        shape = list(self.examples.shape)
        return f"ClassSet({self.name!r}: {self.classes} classes, {shape} {self.examples.dtype})"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def counts(self) -> Array:
        """int64 `[classes]`: examples of each class."""
        return np.bincount(self.labels, minlength=self.classes)

    def members(self) -> tuple[Array, Array]:
        """Indices of the examples ordered by class, then by `order`; and where each class starts, `[classes + 1]`."""
        within = np.arange(len(self.labels)) if self.order is None else self.order
        return np.lexsort((within, self.labels)), np.concatenate(([0], np.cumsum(self.counts)))

    def select(self, classes: Sequence[int] | Sequence[str] | Callable[[str, str], bool]) -> ClassSet:
        """The set of some classes, numbered anew in the order given.

        Args:
            classes: numbers, names, or a function of a class's name and group that says whether it is wanted.

        Raises:
            ValueError: no class, one that is not there, or one twice.

        Example:
            >>> two = ClassSet(np.zeros((2, 3), np.float32), np.arange(2), ("cat", "oak"), groups=("animal", "tree"))
            >>> two.select(lambda name, group: group == "tree").names
            ('oak',)
        """
        if callable(classes):
            groups = self.groups or ("",) * self.classes
            wanted = [i for i, (name, group) in enumerate(zip(self.names, groups, strict=True)) if classes(name, group)]
        else:
            wanted = [self._number(item) for item in classes]
        if not wanted or len(set(wanted)) < len(wanted):
            raise ValueError(f"classes must name at least one class of {self.name}, and none twice, got {len(wanted)}")
        place = np.full(self.classes, -1)
        place[wanted] = np.arange(len(wanted))
        kept = place[self.labels] >= 0
        return replace(
            self,
            examples=self.examples[kept],
            labels=place[self.labels[kept]],
            names=tuple(self.names[i] for i in wanted),
            groups=tuple(self.groups[i] for i in wanted) if self.groups else (),
            order=None if self.order is None else self.order[kept],
        )

    def split(self, train: float = 0.64, val: float = 0.16, seed: int = 0, *, by_group: bool = False) -> ClassSplits:
        """Three sets without common classes; the test set has what remains.

        Args:
            train: share of the classes.
            val: likewise.
            seed: of the choice.
            by_group: keep the classes of a group together; the shares are then of the groups.

        Raises:
            ValueError: a part would be empty, or there are no groups.
        """
        if by_group and not self.groups:
            raise ValueError(f"by_group needs groups, and {self.name} has none")
        units = sorted(set(self.groups)) if by_group else list(self.names)
        first, second = round(len(units) * train), round(len(units) * (train + val))
        if not 0 < first < second < len(units):
            raise ValueError(
                f"train={train} and val={val} leave a part without classes, out of {len(units)} "
                f"{'groups' if by_group else 'classes'} of {self.name}"
            )
        chosen = [units[i] for i in permutation(len(units), seed)]
        labels = self.groups if by_group else self.names
        parts = []
        for name, part in (("train", chosen[:first]), ("val", chosen[first:second]), ("test", chosen[second:])):
            wanted = set(part)
            numbers = [i for i, label in enumerate(labels) if label in wanted]
            parts.append(replace(self.select(numbers), name=f"{self.name} ({name})"))
        return ClassSplits(*parts)

    def resized(self, size: int | None = None, channels: int | None = None) -> ClassSet:
        """Pictures of another size or number of channels, so that models take several data sets.

        Args:
            size: new height and width (bilinear, with antialiasing); None: as they are.
            channels: 3 from 1 by repetition, 1 from 3 by the mean; None: as they are.

        Raises:
            ValueError: not pictures, or channels that cannot be had.
        """
        if self.examples.dtype != np.uint8:
            raise ValueError(f"only pictures can be resized, and {self.name} has {self.examples.dtype}")
        pictures, mean, std = self.examples, self.mean, self.std
        here = pictures.shape[1]
        if channels is not None and channels != here:
            if (here, channels) == (1, 3):
                pictures = np.repeat(pictures, 3, axis=1)
            elif (here, channels) == (3, 1):
                pictures = np.round(pictures.mean(1, keepdims=True, dtype=np.float32)).astype(np.uint8)
                mean, std = (float(np.mean(mean)),), (float(np.mean(std)),)
            else:
                raise ValueError(f"channels must be 1 or 3, from 1 or 3, got {channels} from {here}")
        if size is not None and pictures.shape[2:] != (size, size):
            size = integer("size", size, minimum=1)
            parts = [
                torch.nn.functional.interpolate(
                    torch.from_numpy(part).float(), (size, size), mode="bilinear", align_corners=False, antialias=True
                )
                for part in np.array_split(pictures, max(1, len(pictures) // 1024))
            ]
            pictures = torch.cat([part.round().clamp(0, 255).byte() for part in parts]).numpy()
        return replace(self, examples=pictures, mean=mean, std=std)

    def affine(self) -> tuple[Array, Array]:
        """float32 `scale` and `shift` per channel: what makes numbers of bytes is `scale * byte + shift`."""
        channels = self.examples.shape[1]
        mean, std = (np.broadcast_to(np.array(v, np.float64), channels) for v in (self.mean, self.std))
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All examples as a model takes them, and their labels: for supervised training.

        Returns:
            `(inputs, labels)`: float32 `[M, ...]` normalized as in tasks (int64 token numbers), and int64 `[M]`.
        """
        labels = torch.from_numpy(self.labels.copy())
        if self.examples.dtype == np.uint8:
            scale, shift = (values[:, None, None] for values in self.affine())
            return torch.from_numpy(self.examples.astype(np.float32) * scale + shift), labels
        wide = np.int64 if self.examples.dtype == np.int32 else np.float32
        return torch.from_numpy(self.examples.astype(wide)), labels

    def _number(self, item: int | str) -> int:
        if isinstance(item, str):
            if item not in self.names:
                raise ValueError(f"classes must be among the {self.classes} of {self.name}, got {item!r}")
            return self.names.index(item)
        number = integer("classes", item)
        if not 0 <= number < self.classes:
            raise ValueError(f"classes must be numbers from 0 to {self.classes - 1}, got {number}")
        return number


class ClassSplits(NamedTuple):
    """Three sets without common classes: learn on `train`, choose on `val`, report on `test`, once."""

    train: ClassSet
    val: ClassSet
    test: ClassSet


def check_disjoint(**sets: ClassSet) -> None:
    """Makes sure that no class is in two sets.

    Args:
        sets: by the name that the message shall use, such as `train=`, `val=`, `test=`.

    Raises:
        ValueError: names the sets and the classes that they share.

    Example:
        >>> one = ClassSet(np.zeros((2, 3), np.float32), np.arange(2), ("cat", "dog"))
        >>> check_disjoint(train=one, test=one.select(["dog"]))
        Traceback (most recent call last):
        ...
        ValueError: train and test must not share classes, but 1 class is in both: 'dog'; ...
    """
    for (first, a), (second, b) in combinations(sets.items(), 2):
        known = set(b.names)
        both = [name for name in a.names if name in known]
        if both:
            shown = ", ".join(map(repr, both[:5])) + (", ..." if len(both) > 5 else "")
            count = f"{len(both)} class is" if len(both) == 1 else f"{len(both)} classes are"
            raise ValueError(
                f"{first} and {second} must not share classes, but {count} in both: {shown}; "
                "results on classes that were trained on say nothing about new ones: see ClassSet.split"
            )


def class_set(
    source: ClassSet | Dataset | tuple[Any, Any] | Mapping[str, Any],
    *,
    label: str | None = None,
    name: str = "examples",
    tokenizer: Any = None,
    length: int | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> ClassSet:
    """A `ClassSet` of arrays, tensors, or a split of a data set with a label column.

    Args:
        source: `(examples, labels)` as arrays or tensors (pictures `[M, C, H, W]` uint8, token numbers `[M, L]` of an
            integer type, or `[M, ...]` floating), or a `datasets.Dataset` with pictures or texts.
        label: the label column of a `Dataset`; default as in `to_tensors`.
        name: for messages, and the beginning of class names where the data have none.
        tokenizer: of a `Dataset`'s texts, as in `few_shot`.
        length: likewise.
        size: of a `Dataset`'s pictures, as in `few_shot`.
        limit: the most examples of a class of a `Dataset`.

    Raises:
        TypeError: something else.
        ValueError: arrays that do not fit.

    Example:
        >>> class_set((torch.zeros(4, 8), torch.tensor([3, 3, 7, 7])), name="toy").names
        ('toy 3', 'toy 7')
    """
    rows = isinstance(getattr(source, "column_names", None), list)
    if not rows and any(option is not None for option in (tokenizer, length, size, limit)):
        raise ValueError(
            "tokenizer, length, size and limit are for data sets by name or with rows; the source has examples of its "
            "own already"
        )
    if isinstance(source, ClassSet):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        return _of_arrays(source[0], source[1], name)
    if rows:
        from metafast.data._few_shot import of_dataset
        from metafast.data._reading import Reading

        reading = Reading(tokenizer, length, size, limit)
        return reading.finish(of_dataset(source, label, name, reading))
    raise TypeError(
        f"source must be a ClassSet, (examples, labels) or a datasets.Dataset, got {type(source).__name__}"
        f"{f' of {len(source)}' if isinstance(source, tuple) else ''}"
    )


def _of_arrays(examples: Any, labels: Any, name: str) -> ClassSet:
    x = examples.detach().cpu().numpy() if isinstance(examples, Tensor) else np.asarray(examples)
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x) or not len(y):
        raise ValueError(f"labels must be [{len(x)}] integers, at least one, got shape {y.shape} of {y.dtype}")
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
    elif x.dtype != np.uint8 and x.dtype.kind in "iu":
        if x.size and (x.min() < 0 or x.max() > np.iinfo(np.int32).max):
            raise ValueError(f"token numbers must be from 0 to 2**31 - 1, got {x.min()} to {x.max()}")
        x = x.astype(np.int32)
    values, numbers = np.unique(y, return_inverse=True)
    return ClassSet(x, numbers, tuple(f"{name} {value}" for value in values), name=name)


def permutation(count: int, seed: int) -> list[int]:
    """All numbers below `count`, shuffled by `seed` alone."""
    key = mix(np.array([seed % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return [int(i) for i in choose(draw(key, 0), np.array([count]), count)[0]]
