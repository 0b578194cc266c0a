"""Which examples a task has, and their gathering into a meta-batch: numpy, and the same in C++ where that was built.

Everything is drawn from a counter-based hash (splitmix64) of seed and task number, so a meta-batch depends neither on
those before it nor on threads. `csrc/host/collate.cpp` follows this file draw for draw.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from metafast._build import _host

Array = np.ndarray[Any, Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# what is drawn for a task: 0 its sizes and classes, 1 + slot the examples of a class, and from here on the augmentation
_AUGMENT_TASK, _AUGMENT_CLASS, _AUGMENT_EXAMPLE = 1 << 32, 1 << 33, 1 << 34
PER = {"example": 0, "class": 1, "task": 2}


def mix(z: Array) -> Array:
    """The output function of splitmix64: S. Vigna, 2015."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(key: Array, counter: Array | int) -> Array:
    """64 random bits for each key and counter."""
    return mix(
        key + (np.atleast_1d(counter).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    )  # scalars would warn of overflow


def task_keys(seed: int, first_task: int, tasks: int) -> Array:
    """One key for each task of a run, counted from its first meta-batch on."""
    root = mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    return draw(root, np.uint64(first_task % 2**64) + np.arange(tasks, dtype=np.uint64))


def bounded(bits: Array, limit: Array | int) -> Array:
    """Integers from 0 to `limit - 1`; `limit` is below 2**32, and no value is favoured by more than 2**-32."""
    high = bits >> np.uint64(32)
    return ((high * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def uniform(bits: Array) -> Array:
    """Doubles in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(keys: Array, counts: Array, width: int, first: int = 0) -> Array:
    """`width` different numbers below `counts` for each key: the first steps of Fisher and Yates' shuffle.

    Row r draws from counter `first` on. Where `width` is above `counts[r]`, the rest of the row is meaningless.
    """
    rows = np.arange(len(keys))
    order = np.tile(np.arange(int(counts.max()) if len(counts) else 0), (len(keys), 1))
    width = min(width, order.shape[1])
    for step in range(width):
        left = np.maximum(counts - step, 1)
        other = np.minimum(step + bounded(draw(keys, first + step), left), order.shape[1] - 1)
        order[rows, step], order[rows, other] = order[rows, other], order[rows, step].copy()
    return order[:, :width]


@dataclass(frozen=True)
class Plan:
    """All that decides what a meta-batch holds, but for its number."""

    examples: Array  # [M, C, H, W] uint8, [M, L] int32, or [M, ...] float32
    members: Array  # int64 [M']: examples ordered by class
    starts: Array  # int64 [classes + 1]: class c has members[starts[c]:starts[c + 1]]
    seed: int
    tasks: int  # of a whole meta-batch
    first: int  # this process makes tasks first to first + count - 1 of it
    count: int
    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: tuple[int, int]
    same_positions: bool  # all classes of a task take the examples at the same places
    class_rotations: bool  # class c + r * classes is class c turned by r quarters
    rotate: bool
    flip: bool
    crop: int  # pixels of padding that the crop is taken from
    per: int  # value of PER
    scale: Array = field(default_factory=lambda: np.ones(1, np.float32))  # float32 [C]: number = scale * byte + shift
    shift: Array = field(default_factory=lambda: np.zeros(1, np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.examples.shape[1:]

    @property
    def support(self) -> int:
        """Width of a task's support, padding included."""
        return self.ways[1] * self.shots[1]

    @property
    def query(self) -> int:
        """Width of a task's query part, padding included."""
        return self.ways[1] * self.queries[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the gathered examples."""
        return np.dtype(np.int64 if self.examples.dtype == np.int32 else np.float32)

    @property
    def augments(self) -> bool:
        """Whether examples are changed on the way."""
        return self.class_rotations or self.rotate or self.flip or self.crop > 0


@dataclass(frozen=True)
class Arrays:
    """Where a meta-batch is written: the fields of `TaskBatch` as numpy arrays."""

    support_x: Array
    support_y: Array
    query_x: Array
    query_y: Array
    support_mask: Array
    query_mask: Array
    classes: Array

    def all(self) -> list[Array]:
        """Every field, in the order of the C++ collator."""
        return [getattr(self, item.name) for item in fields(self)]


def native() -> Any:
    """The class of the C++ collator, or None."""
    return getattr(_host, "Collator", None)


def native_collator(plan: Plan, workers: int) -> Any:
    """The C++ collator of a plan; it starts `workers` threads when the first batch is submitted."""
    signed_seed = (plan.seed + 2**63) % 2**64 - 2**63
    sizes = [*plan.ways, *plan.shots, *plan.queries]
    switches = [plan.same_positions, plan.class_rotations, plan.rotate, plan.flip]
    return native()(
        plan.examples,
        plan.members,
        plan.starts,
        [signed_seed, plan.tasks, plan.first, plan.count, *sizes, *map(int, switches), plan.crop, plan.per],
        plan.scale,
        plan.shift,
        workers,
    )


def collate(plan: Plan, batch: int, out: Arrays) -> None:
    """Writes meta-batch number `batch` into `out`; every element is written."""
    keys = task_keys(plan.seed, batch * plan.tasks + plan.first, plan.count)
    real = len(plan.starts) - 1
    sizes = draw(keys, 0)
    ways = _between(draw(sizes, 0), plan.ways)
    shots = _between(draw(sizes, 1), plan.shots)
    queries = _between(draw(sizes, 2), plan.queries)
    limit = np.full(plan.count, real * (4 if plan.class_rotations else 1))
    classes = choose(sizes, limit, plan.ways[1], first=3)  # [T, W]
    slots = np.zeros_like(classes) + np.arange(plan.ways[1])
    held = np.diff(plan.starts)[classes % real]
    slot_keys = draw(keys[:, None], 1 + (slots * 0 if plan.same_positions else slots))
    width = plan.shots[1] + plan.queries[1]
    places = choose(slot_keys.reshape(-1), held.reshape(-1), width).reshape(plan.count, plan.ways[1], -1)
    places = np.pad(places, ((0, 0), (0, 0), (0, width - places.shape[2])))
    for task in range(plan.count):
        for part, counts, skip in (("support", shots, 0), ("query", queries, int(shots[task]))):
            x, y, mask = (getattr(out, f"{part}_{name}")[task] for name in ("x", "y", "mask"))
            slot = np.repeat(np.arange(ways[task]), counts[task])
            place = skip + np.tile(np.arange(counts[task]), ways[task])
            chosen = classes[task, slot]
            at = plan.members[plan.starts[chosen % real] + places[task, slot, place]]
            x[: len(at)] = _gather(plan, keys[task], at, slot, place, chosen // real)
            y[: len(at)], mask[: len(at)] = slot, True
            x[len(at) :], y[len(at) :], mask[len(at) :] = 0, 0, False
    out.classes[:] = ways


def _between(bits: Array, bounds: tuple[int, int]) -> Array:
    return bounds[0] + bounded(bits, bounds[1] - bounds[0] + 1)


def _gather(plan: Plan, key: Array, at: Array, slot: Array, place: Array, turned: Array) -> Array:
    picked = plan.examples[at]
    if plan.examples.dtype != np.uint8:
        return picked
    if plan.augments:
        bits = _augment_bits(plan, key, slot, place)
        turns = (turned + (bits & np.uint64(3)).astype(np.int64) * plan.rotate) % 4
        span = np.uint64(2 * plan.crop + 1)
        down, right = (
            ((((bits >> np.uint64(by)) & np.uint64(0xFFFFFF)) * span) >> np.uint64(24)).astype(np.int64)
            for by in (8, 32)
        )
        flips = ((bits >> np.uint64(2)) & np.uint64(1)).astype(bool) & plan.flip
        if plan.crop:
            edge = ((0, 0), (0, 0), (plan.crop, plan.crop), (plan.crop, plan.crop))
            rows, columns = (
                offset[:, None] + np.arange(side) for offset, side in zip((down, right), plan.shape[1:], strict=True)
            )
            every, channels = np.arange(len(picked))[:, None, None, None], np.arange(plan.shape[0])[:, None, None]
            picked = np.pad(picked, edge)[every, channels, rows[:, None, :, None], columns[:, None, None, :]]
        picked[flips] = picked[flips][..., ::-1]
        for quarters in np.unique(turns[turns > 0]):
            picked[turns == quarters] = np.rot90(picked[turns == quarters], quarters, axes=(2, 3))
    return picked.astype(np.float32) * plan.scale[:, None, None] + plan.shift[:, None, None]


def _augment_bits(plan: Plan, key: Array, slot: Array, place: Array) -> Array:
    if plan.per == PER["task"]:
        return draw(key, np.full(len(slot), _AUGMENT_TASK))
    if plan.per == PER["class"]:
        return draw(key, _AUGMENT_CLASS + slot)
    return draw(key, _AUGMENT_EXAMPLE + slot * (1 << 16) + place)
