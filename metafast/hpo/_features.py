"""Features of a data set: cheap numbers by which the predictor knows a task that is like another."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from metafast.hpo._features_inputs import KINDS, MODALITIES, Sample, sample_of
from metafast.hpo._features_landmarks import landmarks, views, words_of

Array = np.ndarray[Any, Any]
_LOOKED_AT = 100  # examples whose course over time is looked at
_LONGEST = 2048  # steps of it


def task_features(
    train: Any, val: Any = None, *, modality: str | None = None, columns: tuple[str, str] | None = None
) -> dict[str, float]:
    """Features of a data set; docs/hpo-features.md says what each is.

    At most 800 examples are looked at, always the same ones: it takes less than a second, and gives the same numbers
    again. Every feature is always there; what a modality does not have is 0.

    Args:
        train: what there is to learn from: `(inputs, targets)` such as `metafast.data.Samples` or `Windows`, of
            tensors, arrays or lists; a mapping or a `datasets.Dataset` of columns; or a data set of pairs.
            Inputs: pictures `[N, C, H, W]`, series `[N, T]` or `[N, T, channels]`, waveforms `[N, T]` or a list of
            them, token numbers `[N, T]`, a list of texts or of lists of words, or rows of a table. Targets: class
            numbers or names, numbers, or sequences of symbols.
        val: the validation part, in the same form.
        modality: "image", "text", "series", "audio" or "table". Default: told from the inputs. To be given where they
            could be either, such as spectrograms.
        columns: names of the columns of inputs and targets. Default: well-known names.

    Returns:
        Name to finite number, in a fixed order.

    Raises:
        TypeError: data in a form that cannot be read.
        ValueError: no examples, unequal lengths, missing columns, an unknown modality.

    Example:
        >>> found = task_features((["a good film", "a bad film"] * 20, [1, 0] * 20))
        >>> found["modality_text"], found["class_entropy"], found["linear_score"]
        (1.0, 1.0, 1.0)
    """
    sample = sample_of("train", train, modality, columns)
    other = None if val is None else sample_of("val", val, modality or sample.modality, columns)
    found = {f"modality_{name}": float(sample.modality == name) for name in MODALITIES}
    found |= {f"target_{name}": float(sample.kind == name) for name in KINDS}
    found |= _sizes(sample) | _targets(sample) | _values(sample) | _course(sample) | _text(sample, other)
    found |= landmarks(sample)
    found["log10_val_examples"] = 0.0 if other is None else math.log10(other.examples)
    return {
        name: round(float(np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)), 6) for name, value in found.items()
    }


def _sizes(sample: Sample) -> dict[str, float]:
    rows = words_of(sample.inputs) if sample.modality == "text" else sample.inputs
    shapes = [np.shape(row) for row in rows[: _LOOKED_AT * 8]]
    lengths, channels = zip(*(_length(shape, sample.modality) for shape in shapes), strict=True)
    sizes = [max(1, int(np.prod(shape))) for shape in shapes]
    return {
        "log10_examples": math.log10(sample.examples),
        "log10_dimension": math.log10(float(np.median(sizes))),
        "log10_length": math.log10(max(1.0, float(np.median(lengths)))),
        "length_spread": float(np.std(lengths) / max(np.mean(lengths), 1e-12)),
        "log10_channels": math.log10(max(channels)),
    }


def _length(shape: tuple[int, ...], modality: str) -> tuple[float, int]:
    """Steps (of a picture: its side; of a table: none) and numbers in each."""
    if modality == "image":
        return math.sqrt(shape[-1] * shape[-2]), shape[0]
    if modality == "table" or not shape:
        return 1.0, max(1, int(np.prod(shape)))
    return float(shape[0]), max(1, int(np.prod(shape[1:])))


def _targets(sample: Sample) -> dict[str, float]:
    if sample.kind == "numbers":
        values = sample.targets.astype(np.float64)
        return {
            "log10_classes": 0.0, "class_entropy": 0.0, "largest_class": 0.0, "log10_examples_per_class": 0.0,
            "log10_outputs": math.log10(values.shape[1]), "target_tails": _tails(values),
        }  # fmt: skip
    flat = sample.targets if sample.kind == "classes" else np.concatenate(list(sample.targets))
    counts = np.unique(flat, return_counts=True)[1] if len(flat) else np.ones(1)
    share = counts / counts.sum()
    lengths = [1.0] if sample.kind == "classes" else [max(1, len(row)) for row in sample.targets]
    return {
        "log10_classes": math.log10(len(counts)),
        "class_entropy": float(-(share * np.log(share)).sum() / math.log(len(counts))) if len(counts) > 1 else 0.0,
        "largest_class": float(share.max()),
        "log10_examples_per_class": math.log10(counts.sum() / len(counts)),
        "log10_outputs": math.log10(float(np.mean(lengths))),
        "target_tails": 0.0,
    }


def _values(sample: Sample) -> dict[str, float]:
    """How the numbers of the inputs are distributed, and how channels or columns hang together."""
    names = ("input_mean", "input_tails", "input_rest", "channel_spread", "channel_likeness", "effective_dimension")
    x = views(sample)
    found = dict.fromkeys(names, 0.0)
    weights = np.linalg.svd(x[:200], compute_uv=False) ** 2
    if weights.sum() > 0:
        found["effective_dimension"] = math.log10(float(weights.sum() ** 2 / (weights**2).sum()))
    if sample.modality == "text":
        return found
    table = [_by_channel(np.asarray(row, np.float64), sample.modality) for row in sample.inputs[:_LOOKED_AT]]
    width = min(row.shape[0] for row in table)
    flat = np.nan_to_num(np.concatenate([row[:width] for row in table], 1))  # [channels, values]
    spread = float(flat.std()) or 1.0
    found["input_mean"] = float(np.tanh(flat.mean() / spread))
    found["input_tails"] = _tails(flat)
    values, counts = np.unique(flat.ravel()[:200_000], return_counts=True)
    found["input_rest"] = float(counts.max() / counts.sum()) if len(values) > 1 else 1.0
    found["channel_spread"] = float(flat.mean(1).std() / spread)
    if 1 < width <= 256 and flat.shape[1] > 2:
        moving = flat[flat.std(1) > 0]
        if len(moving) > 1:
            likeness = np.corrcoef(moving)
            found["channel_likeness"] = float(np.abs(likeness[~np.eye(len(moving), dtype=bool)]).mean())
    return found


def _by_channel(row: Array, modality: str) -> Array:
    """`[channels, values]`."""
    if modality == "image":
        return row.reshape(row.shape[0], -1)
    if modality == "table":
        return row.reshape(-1, 1)
    return row.reshape(row.shape[0], -1).T if row.ndim > 1 else row.reshape(1, -1)


def _tails(values: Array) -> float:
    """How heavy the tails are: 0 for a normal distribution, near 1 for very heavy ones, below 0 for light ones."""
    centered = np.nan_to_num(values - values.mean())
    power = float((centered**2).mean())
    return float(np.tanh(((centered**4).mean() / power**2 - 3) / 10)) if power > 0 else 0.0


def _course(sample: Sample) -> dict[str, float]:
    """How neighbours in time or space are alike, and what comes back."""
    found = dict.fromkeys(("smoothness", "season", "log10_season", "trend", "flatness", "repeat_error"), 0.0)
    if sample.modality in ("text", "table"):
        return found
    if sample.modality == "image":
        x = np.nan_to_num(np.asarray(sample.inputs[:_LOOKED_AT], np.float64))
        x = x - x.mean((2, 3), keepdims=True)
        power = float((x**2).mean())
        if power > 0 and x.shape[-1] > 1:
            found["smoothness"] = float((x[..., 1:] * x[..., :-1]).mean() / power)
        return found
    rows = [np.nan_to_num(np.asarray(row, np.float64))[:_LONGEST] for row in sample.inputs[:_LOOKED_AT]]
    rows = [row if row.ndim == 1 else row.reshape(len(row), -1).mean(1) for row in rows]
    rows = [row for row in rows if len(row) >= 4 and row.std() > 0]
    if not rows:
        return found
    length = min(len(row) for row in rows)
    table = np.stack([row[:length] for row in rows])
    table = (table - table.mean(1, keepdims=True)) / np.maximum(table.std(1, keepdims=True), 1e-12)
    line = np.linspace(-1, 1, length) / np.sqrt((np.linspace(-1, 1, length) ** 2).sum())
    found["trend"] = float(((table @ line) ** 2).mean() / length)
    spectrum = (np.abs(np.fft.rfft(table, 2 * length, axis=1)) ** 2).mean(0)
    lags = np.fft.irfft(spectrum)[:length] / np.arange(length, 0, -1)  # without the bias of fewer terms
    lags = lags / lags[0]
    found["smoothness"] = float(lags[1])
    half = lags[: max(3, length // 2)]
    low = int(np.argmax(half < 0.5 * (1 + half.min()))) or 1
    peak = low + int(np.argmax(half[low:]))
    found["season"], found["log10_season"] = float(half[peak]), math.log10(peak)
    found["flatness"] = float(np.exp(np.log(spectrum + 1e-12).mean()) / (spectrum.mean() + 1e-12))
    if sample.kind == "numbers" and sample.targets.shape[1] >= 1 and isinstance(sample.inputs, np.ndarray):
        y = np.nan_to_num(sample.targets[sample.at].astype(np.float64))
        past = np.nan_to_num(sample.inputs.reshape(len(y), sample.inputs.shape[1], -1)[:, -1].mean(1))
        total = float(((y - y.mean()) ** 2).mean())
        found["repeat_error"] = min(float(((y - past[:, None]) ** 2).mean()) / total, 4.0) if total > 0 else 0.0
    return found


def _text(sample: Sample, other: Sample | None) -> dict[str, float]:
    """Words: how many different ones, and how many of those to come are known."""
    if sample.modality != "text":
        return dict.fromkeys(("log10_vocabulary", "vocabulary_coverage", "common_words"), 0.0)
    rows = words_of(sample.inputs)
    half = len(rows) // 2 or 1
    counts = Counter(word for row in rows for word in row)
    known = counts if other is not None else Counter(word for row in rows[:half] for word in row)
    new = [word for row in (words_of(other.inputs) if other is not None else rows[half:]) for word in row]
    return {
        "log10_vocabulary": math.log10(max(1, len(counts))),
        "vocabulary_coverage": sum(word in known for word in new) / len(new) if new else 1.0,
        "common_words": sum(n for _, n in counts.most_common(100)) / max(1, sum(counts.values())),
    }
