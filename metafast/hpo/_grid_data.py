"""Data of the meta-data set's tasks: small subsets of real data sets, in memory, the same on every call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metafast.data import forecast_splits, hash_tokens, labels_of, load, load_series
from metafast.data._pictures import pictures
from metafast.hpo._batched import Pair

BUCKETS = 1024  # of hashed words
FRAMES, BANDS = 96, 16  # of a joined utterance: 16 ms each
WORDS = 3  # digits of an utterance
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"  # symbols 1 and up of read speech; 0 is CTC's blank
SPACE = 1
READ_FRAMES = 256  # of read speech: 4 s


class Parts(NamedTuple):
    """Three parts, and what a predictor that has learned nothing scores on validation data."""

    train: Pair
    val: Pair
    test: Pair
    reference: float


@functools.cache
def images(name: str, side: int, train: int, held: int) -> Parts:
    """Pictures averaged down to `side`, scaled to mean 0 and variance 1.

    Args:
        name: of the data set; of "cifar100" the 20 coarse classes, of "omniglot" the alphabet.
        side: height and width.
        train: examples to learn from.
        held: examples of validation and of test each.
    """
    if name == "omniglot":
        table = load(name, "background")
        labels = _numbered(table["alphabet"][:])
        x = _scaled_down(table, "image", side)
        rows = _shuffled(len(labels))
        at = rows[:train], rows[train : train + held], rows[train + held : train + 2 * held]
        return _classes([Pair(x[i], labels[i]) for i in at])
    column = "img" if name.startswith("cifar") else "image"
    label = "coarse_label" if name == "cifar100" else "label"
    table, last = load(name, "train"), load(name, "test")
    rows = _shuffled(len(table))[: train + held]
    x, y = _scaled_down(table, column, side), labels_of(table, label)
    seen = _shuffled(len(last))[:held]
    test = Pair(_scaled_down(last, column, side)[seen], labels_of(last, label)[seen])
    return _classes([Pair(x[rows[:train]], y[rows[:train]]), Pair(x[rows[train:]], y[rows[train:]]), test])


@functools.cache
def texts(name: str, length: int, train: int, held: int) -> Parts:
    """Texts as rows of hashed words.

    Args:
        name: of the data set; of "clinc_oos" the domains, of "few_rel" twelve relations.
        length: words of a text.
        train: examples to learn from.
        held: examples of validation and of test each.
    """
    if name == "few_rel":
        table = load(name, "train_wiki_subset")
        relations = table["relation"][:]
        kept = set(sorted(set(relations))[:12])
        rows = [i for i, relation in enumerate(relations) if relation in kept]
        tokens = table["tokens"][:]
        x = hash_tokens([" ".join(tokens[i]) for i in rows], BUCKETS, length)
        y = _numbered([relations[i] for i in rows])
        order = _shuffled(len(y))
        at = order[:train], order[train : train + held], order[train + held : train + 2 * held]
        return _classes([Pair(x[i], y[i]) for i in at], scale=False)
    label = "domain" if name == "clinc_oos" else "label"
    found = []
    for split, count in (("train", train + held), ("test", held)):
        table = load(name, split)
        rows = _shuffled(len(table))[:count].tolist()
        chosen = table.select(rows)
        found.append((hash_tokens(chosen["text"][:], BUCKETS, length), chosen[label][:]))
    names = sorted(set(found[0][1]), key=str)
    (x, y), (test_x, test_y) = ((tokens, torch.tensor([names.index(v) for v in labels])) for tokens, labels in found)
    return _classes([Pair(x[:train], y[:train]), Pair(x[train:], y[train:]), Pair(test_x, test_y)], scale=False)


@functools.cache
def series(name: str, split: str, length: int, horizon: int, train: int, held: int) -> Parts:
    """Windows of series, scaled, split by time.

    Args:
        name: of the data set.
        split: of it, such as "ETTh1" or "weekly".
        length: steps of the past.
        horizon: steps to forecast.
        train: windows to learn from.
        held: windows of validation and of test each.
    """
    found = load_series(name, [split])
    long = {key: values for key, values in found.items() if len(values) >= 8 * (length + horizon)}
    parts = forecast_splits(long, length, horizon, stride=3)
    pairs = []
    for part, count in zip(parts, (train, held, held), strict=True):
        rows = _shuffled(len(part.inputs))[:count]
        pairs.append(Pair(part.inputs[rows].contiguous(), part.targets[rows].contiguous()))
    return _parts(pairs, float(pairs[1].targets.square().mean()))


@functools.cache
def spoken_digits() -> Parts:
    """Spectrograms of single digits, `[N, 1, 16, 16]`; recordings 25 to 29 of each speaker and digit validate."""
    parts = []
    for sounds, labels, _ in _recordings():
        pictures_ = [F.adaptive_avg_pool2d(_spectrogram(sound)[None], (BANDS, 16)) for sound in sounds]
        parts.append(Pair(torch.stack(pictures_), torch.tensor(labels)))
    return _classes(parts)


@functools.cache
def spoken_sequences(train: int, held: int) -> Parts:
    """Utterances of three digits by one speaker, joined from recordings of one part; targets are digits + 1.

    Args:
        train: utterances to learn from.
        held: of validation and of test each.
    """
    pairs = []
    for part, ((sounds, labels, speakers), count) in enumerate(zip(_recordings(), (train, held, held), strict=True)):
        generator = torch.Generator().manual_seed(part)
        inputs, targets = [], []
        spectra = [F.adaptive_avg_pool1d(_spectrogram(sound).T, BANDS) for sound in sounds]
        by_speaker = {name: [i for i, s in enumerate(speakers) if s == name] for name in sorted(set(speakers))}
        names = sorted(by_speaker)
        for _ in range(count):
            own = by_speaker[names[int(torch.randint(len(names), (), generator=generator))]]
            chosen = [own[i] for i in torch.randint(len(own), (WORDS,), generator=generator).tolist()]
            joined = torch.cat([spectra[i] for i in chosen])[:FRAMES]
            inputs.append(F.pad(joined, (0, 0, 0, FRAMES - len(joined)), value=float(joined.min())))
            targets.append([labels[i] + 1 for i in chosen])
        pairs.append(Pair(torch.stack(inputs), torch.tensor(targets)))
    return _parts(_standardized(pairs), 1.0)


def read_speech(name: str, train: int, held: int) -> Parts:
    """Short utterances of read speech as spectrograms `[N, 256, 16]`, and their characters, 0 after the end.

    Args:
        name: of a data set with splits "train.100", "validation" and "test", and columns `audio` (as `datasets`
            decodes it: samples and their rate) and `text`.
        train: utterances to learn from.
        held: of validation and of test each.

    Raises:
        ValueError: a split with too few utterances of at most four seconds.
    """
    order = {character: number for number, character in enumerate(CHARACTERS, 1)}
    pairs, longest = [], 0
    found: list[list[tuple[Tensor, list[int]]]] = []
    for split, count in (("train.100", train), ("validation", held), ("test", held)):
        rows: list[tuple[Tensor, list[int]]] = []
        for row in load(name, split):
            wave, rate = _waveform(row["audio"])
            symbols = [order[c] for c in row["text"].lower() if c in order]
            if symbols and len(wave) / rate <= 0.016 * READ_FRAMES:
                spectrum = _spectrogram(wave, rate)
                rows.append((F.adaptive_avg_pool1d(spectrum.T, BANDS)[:READ_FRAMES], symbols))
                longest = max(longest, len(symbols))
            if len(rows) == count:
                break
        if len(rows) < count:
            raise ValueError(f"{name} {split} has {len(rows)} utterances of at most 4 s, {count} are needed")
        found.append(rows)
    for rows in found:
        inputs = [F.pad(x, (0, 0, 0, READ_FRAMES - len(x)), value=float(x.min())) for x, _ in rows]
        targets = [symbols + [0] * (longest - len(symbols)) for _, symbols in rows]
        pairs.append(Pair(torch.stack(inputs), torch.tensor(targets)))
    return _parts(_standardized(pairs), 1.0)


# ---- inside


def _parts(pairs: Sequence[Pair], reference: float) -> Parts:
    train, val, test = pairs
    return Parts(train, val, test, reference)


def _waveform(audio: Any) -> tuple[Tensor, int]:
    """Samples of one channel, and their rate: `datasets` gives a mapping, or a decoder in its newer versions."""
    if hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        return samples.data.mean(0).float(), int(samples.sample_rate)
    return torch.as_tensor(audio["array"], dtype=torch.float32), int(audio["sampling_rate"])


@functools.cache
def _recordings() -> list[tuple[list[Tensor], list[int], list[str]]]:
    """Sounds, digits and speakers of the three parts."""
    table, last = load("free_spoken_digit", "train"), load("free_spoken_digit", "test")
    numbers = [int(file.rsplit("_", 1)[1].split(".")[0]) for file in table["file"][:]]
    cut = sorted(set(numbers))[-5]
    parts = []
    for rows in (
        table.select([i for i, n in enumerate(numbers) if n < cut]),
        table.select([i for i, n in enumerate(numbers) if n >= cut]),
        last,
    ):
        sounds = [torch.tensor(sound, dtype=torch.float32) for sound in rows["array"][:]]
        parts.append((sounds, rows["label"][:], rows["speaker"][:]))
    return parts


def _spectrogram(sound: Tensor, rate: int = 8000) -> Tensor:
    """Log energies, `[bins, frames]`, of 32 ms windows every 16 ms."""
    size = round(0.032 * rate)
    spectrum = torch.stft(sound, size, size // 2, window=torch.hann_window(size), return_complex=True).abs().square()
    return (spectrum + 1.0).log()


def _scaled_down(table: Any, column: str, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(torch.from_numpy(pictures(table, column)).float() / 255, side)


def _classes(pairs: Sequence[Pair], scale: bool = True) -> Parts:
    train, val, test = _standardized(pairs) if scale else pairs
    most = int(train.targets.bincount().argmax())
    return Parts(train, val, test, reference=float((val.targets == most).double().mean()))


def _standardized(pairs: Sequence[Pair]) -> list[Pair]:
    mean, spread = pairs[0].inputs.mean(), pairs[0].inputs.std()
    return [Pair((pair.inputs - mean) / spread, pair.targets) for pair in pairs]


def _numbered(names: Sequence[str]) -> Tensor:
    order = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([order[name] for name in names])


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
