"""How far the simplest learners come on a few examples."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np

from metafast.hpo._features_inputs import Sample

Array = np.ndarray[Any, Any]
LEARNED = 200  # examples that they learn from, and as many to be judged on
FEW = 50
BUCKETS = 256  # columns of a bag of words
_SIDE = 8  # pictures are averaged to so many rows and columns
_STEPS = 64  # series to so many steps
_RIDGE = 1.0


def views(sample: Sample) -> Array:
    """`[n, d]` float64: the inputs of the sample as plain vectors, each column with mean 0 and variance 1 or 0."""
    inputs = sample.inputs
    if sample.modality == "text":
        rows = words_of(inputs)
        found = np.stack([_bag(row) for row in rows])
    elif sample.modality == "image":
        found = np.stack([_pooled(_pooled(x, 1, _SIDE), 2, _SIDE).ravel() for x in np.asarray(inputs, np.float64)])
    else:
        equal = isinstance(inputs, np.ndarray)
        found = np.stack([_vector(np.asarray(row, np.float64), sample.modality, equal) for row in inputs])
    found = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
    spread = found.std(0)
    return (found - found.mean(0)) / np.where(spread > 1e-12 * (1 + np.abs(found).max(0)), spread, np.inf)


def words_of(inputs: Any) -> list[list[Any]]:
    """The words of each text; of rows of token numbers, those that are not 0, which is padding."""
    if isinstance(inputs, np.ndarray):
        return [row[row != 0].tolist() for row in inputs.reshape(len(inputs), -1)]
    return [list(row) for row in inputs]


def landmarks(sample: Sample) -> dict[str, float]:
    """Scores of one nearest neighbour and of ridge regression; all 0 where targets are sequences."""
    names = ("nearest_error", "nearest_gain", "linear_score", "linear_gain", "linear_slope")
    nothing = dict.fromkeys(names, 0.0)
    if sample.kind == "sequences":
        return nothing
    targets = np.asarray(sample.targets)[sample.at]
    count = min(LEARNED, len(targets) // 2)
    if count < 4:
        return nothing
    order = np.random.default_rng(0).permutation(len(targets))
    learn, judge = order[:count], order[count : 2 * count]
    x = views(sample)
    apart = (x[judge] ** 2).sum(1)[:, None] + (x[learn] ** 2).sum(1) - 2 * x[judge] @ x[learn].T
    nearest = targets[learn][apart.argmin(1)]
    few = learn[: max(2, min(FEW, count // 2))]
    if sample.kind == "classes":
        classes = int(targets.max()) + 1
        known = np.eye(classes)[targets]
        chance = float(np.bincount(targets, minlength=classes).max() / len(targets))
        error = float((nearest != targets[judge]).mean())
        scores = [float((_ridge(x[at], known[at], x[judge]).argmax(1) == targets[judge]).mean()) for at in (learn, few)]
        room = max(1 - chance, 1e-12)
        gain, nearest_gain = (scores[0] - chance) / room, (1 - error - chance) / room
    else:
        y = np.nan_to_num(targets.astype(np.float64))
        y = (y - y.mean()) / (y.std() or 1.0)
        total = float(((y[judge] - y[learn].mean(0)) ** 2).sum()) or 1.0
        error = min(float(((y[learn][apart.argmin(1)] - y[judge]) ** 2).sum()) / total, 2.0)
        left = [float(((_ridge(x[at], y[at], x[judge]) - y[judge]) ** 2).sum()) / total for at in (learn, few)]
        scores = [max(1 - each, -1.0) for each in left]
        gain, nearest_gain = scores[0], 1 - error
    return dict(zip(names, (error, nearest_gain, scores[0], gain, scores[0] - scores[1]), strict=True))


def _ridge(x: Array, y: Array, new: Array) -> Array:
    """Predictions of ridge regression in its dual form, for few examples with many columns."""
    center = y.mean(0)
    kernel = x @ x.T
    weight = np.linalg.solve(kernel + _RIDGE * max(float(np.trace(kernel)) / len(x), 1e-9) * np.eye(len(x)), y - center)
    found: Array = new @ (x.T @ weight) + center
    return found


def _bag(words: list[Any]) -> Array:
    found = np.zeros(BUCKETS)
    for word in words:
        found[zlib.crc32(str(word).encode()) % BUCKETS] += 1
    return np.sqrt(found / max(len(words), 1))


def _vector(row: Array, modality: str, equal: bool) -> Array:
    """A row of a table as it is; a series at fewer steps; of a waveform the strength of its bands in 8 parts."""
    if modality == "audio" and row.ndim == 1:
        return _bands(row)
    if modality == "table" or (equal and row.size <= 4 * _STEPS):
        return row.ravel() if row.size else np.zeros(1)
    if equal:
        axis = int(np.argmax(row.shape))
        return _pooled(row, axis, max(8, 4 * _STEPS * row.shape[axis] // row.size)).ravel()
    flat = row.reshape(len(row), -1).mean(1) if row.size else np.zeros(1)
    return np.interp(np.linspace(0, len(flat) - 1, _STEPS), np.arange(len(flat)), flat)


def _bands(wave: Array, parts: int = 8, frame: int = 256, bands: int = 16) -> Array:
    frames = max(parts, len(wave) // frame)
    wave = np.pad(wave, (0, max(0, frames * frame - len(wave))))[: frames * frame].reshape(frames, frame)
    power = _pooled(np.abs(np.fft.rfft(wave * np.hanning(frame), axis=1)) ** 2, 0, parts)
    edges = np.unique(np.geomspace(1, frame // 2, bands + 1).astype(int))
    strength = np.stack([power[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], 1)
    return np.log(strength + 1e-6 * strength.max() + 1e-12).ravel()


def _pooled(x: Array, axis: int, count: int) -> Array:
    """Means of `count` parts along an axis that is longer."""
    length = x.shape[axis]
    if length <= count:
        return x
    starts = np.linspace(0, length, count, endpoint=False).astype(int)
    sizes = np.diff([*starts, length]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    found: Array = np.add.reduceat(x, starts, axis=axis) / sizes
    return found
