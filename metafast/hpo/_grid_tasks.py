"""The meta-data set's tasks: a data set, an architecture, a budget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.hpo import _grid_data as data
from metafast.hpo._batched import Metric
from metafast.hpo._engines import Loss
from metafast.hpo._types import Config
from metafast.metrics import ctc_decode, word_error_rate
from metafast.models import DeepSpeech, LSTMForecaster, RNNClassifier, SequenceTransformer

POINTS = 8  # of a learning curve
GRID: dict[str, list[Any]] = {
    "lr": [1e-3, 1e-2, 1e-1],
    "batch_size": [32, 64, 128],
    "layers": [2, 3, 4],
    "width": [64, 128, 256],
    "dropout": [0.1, 0.3, 0.5],
    "optimizer": ["sgd", "adam"],
}
Build = Callable[[data.Parts, Config], nn.Module]


@dataclass(frozen=True)
class GridTask:
    """What one grid is trained on.

    Args:
        name: "data/architecture".
        dataset: what is left out as one.
        parts: gives the data.
        build: makes the model of a configuration.
        loss: as `batched_train` takes it.
        metric: its name: "accuracy", "mse" or "wer".
        epochs: of the whole budget, a multiple of 8.
        modality: as `task_features` names it.
    """

    name: str
    dataset: str
    parts: Callable[[], data.Parts]
    build: Build
    loss: str | Loss = "cross_entropy"
    metric: str = "accuracy"
    epochs: int = POINTS
    modality: str = "image"

    @property
    def direction(self) -> str:
        """ "maximize" for accuracy, "minimize" for errors."""
        return "maximize" if self.metric == "accuracy" else "minimize"

    @property
    def measure(self) -> str | Metric:
        """The metric as `batched_train` takes it."""
        if self.metric != "wer":
            return self.metric
        return spelled_wer if self.dataset == "librispeech" else wer


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """CTC loss per symbol of each utterance, `[N]`; 0 ends a shorter target."""
    count, steps, _ = outputs.shape
    lengths = (targets != 0).sum(1)
    log_probs, seen = outputs.log_softmax(2).transpose(0, 1), torch.full((count,), steps)
    return F.ctc_loss(log_probs, targets, seen, lengths, reduction="none", zero_infinity=True) / lengths.clamp(min=1)


def wer(outputs: Tensor, targets: Tensor) -> float:
    """Word error rate of best-path decoding, where every symbol is a word."""
    return word_error_rate(ctc_decode(outputs), [[word for word in row if word] for row in targets.tolist()])


def spelled_wer(outputs: Tensor, targets: Tensor) -> float:
    """Word error rate where symbols are characters, and number 1 stands between words."""
    numbers: dict[tuple[int, ...], int] = {}

    def words(symbols: list[int]) -> list[int]:
        found: list[list[int]] = [[]]
        for symbol in symbols:
            if symbol == data.SPACE:
                found.append([])
            elif symbol:
                found[-1].append(symbol)
        return [numbers.setdefault(tuple(word), len(numbers)) for word in found if word]

    decoded = [words(row) for row in ctc_decode(outputs)]
    return word_error_rate(decoded, [words(row) for row in targets.tolist()])


def grid_tasks() -> list[GridTask]:
    """All tasks; reading data is left until it is needed."""
    tasks = []
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "omniglot"):
        side = 16 if name.startswith("cifar") else 14
        parts = functools.partial(data.images, name, side, 1000, 1000)
        tasks += [GridTask(f"{name}/mlp", name, parts, _mlp), GridTask(f"{name}/cnn", name, parts, _cnn)]
    for name, length in (("ag_news", 16), ("clinc_oos", 10), ("few_rel", 16)):
        parts = functools.partial(data.texts, name, length, 600, 500)
        tasks += [
            GridTask(f"{name}/rnn", name, parts, _rnn, modality="text"),
            GridTask(f"{name}/transformer", name, parts, _transformer, modality="text"),
        ]
    for name, split, length, horizon, build, kind in (
        ("ett", "ETTh1", 24, 6, _lstm, "lstm"),
        ("ett", "ETTh1", 24, 6, _forecasting_transformer, "transformer"),
        ("ett", "ETTh2", 24, 6, _lstm, "lstm"),
        ("m4", "hourly", 24, 6, _lstm, "lstm"),
        ("m4", "hourly", 24, 6, _forecasting_transformer, "transformer"),
        ("m4", "weekly", 13, 4, _lstm, "lstm"),
    ):
        parts = functools.partial(data.series, name, split, length, horizon, 600, 500)
        tasks.append(GridTask(f"{name}_{split.lower()}/{kind}", name, parts, build, "mse", "mse", modality="series"))
    spoken = "free_spoken_digit"
    tasks.append(GridTask(f"{spoken}/cnn", spoken, data.spoken_digits, _cnn, modality="audio"))
    sequences = functools.partial(data.spoken_sequences, 600, 200)
    tasks.append(GridTask(f"{spoken}/deep_speech", spoken, sequences, _deep_speech, ctc, "wer", 3 * POINTS, "audio"))
    return tasks


def hub_tasks() -> list[GridTask]:
    """Two more data sets by the same recipes, which are read from the Hugging Face hub (or METAFAST_DATA)."""
    loads = functools.partial(data.series, "electricity", "train", 24, 6, 600, 500)
    speech = functools.partial(data.read_speech, "librispeech", 600, 200)
    return [
        GridTask("electricity/lstm", "electricity", loads, _lstm, "mse", "mse", modality="series"),
        GridTask(
            "electricity/transformer", "electricity", loads, _forecasting_transformer, "mse", "mse", modality="series"
        ),
        GridTask("librispeech/deep_speech", "librispeech", speech, _read_speech, ctc, "wer", 3 * POINTS, "audio"),
    ]


# ---- architectures: `width` is what an MLP has; a CNN has a quarter of it as channels and what reads sequences an
# eighth of it as units, since their cost grows with the number of positions too


def _mlp(parts: data.Parts, config: Config) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    before = parts.train.inputs[0].numel()
    for _ in range(config["layers"]):
        layers += [nn.Linear(before, config["width"]), nn.ReLU(), nn.Dropout(config["dropout"])]
        before = config["width"]
    return nn.Sequential(*layers, nn.Linear(before, _outputs(parts)))


def _cnn(parts: data.Parts, config: Config) -> nn.Module:
    layers: list[nn.Module] = []
    before, channels = parts.train.inputs.shape[1], config["width"] // 4
    for index in range(config["layers"]):
        layers += [nn.Conv2d(before, channels, 3, stride=2 if index < 2 else 1, padding=1), nn.ReLU()]
        before = channels
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(config["dropout"])]
    return nn.Sequential(*layers, nn.Linear(4 * channels, _outputs(parts)))


def _rnn(parts: data.Parts, config: Config) -> nn.Module:
    units = config["width"] // 8
    return RNNClassifier(
        data.BUCKETS, _outputs(parts), kind="gru", dim=units, hidden=units, layers=config["layers"],
        dropout=config["dropout"],
    )  # fmt: skip


def _transformer(parts: data.Parts, config: Config) -> nn.Module:
    return SequenceTransformer(
        _outputs(parts), parts.train.inputs.shape[1], buckets=data.BUCKETS, dim=config["width"] // 8,
        layers=config["layers"], heads=2, expansion=2, dropout=config["dropout"],
    )  # fmt: skip


def _forecasting_transformer(parts: data.Parts, config: Config) -> nn.Module:
    return SequenceTransformer(
        parts.train.targets.shape[1], parts.train.inputs.shape[1], dim=config["width"] // 8, layers=config["layers"],
        heads=2, expansion=2, dropout=config["dropout"],
    )  # fmt: skip


def _lstm(parts: data.Parts, config: Config) -> nn.Module:
    return LSTMForecaster(
        parts.train.targets.shape[1], hidden=config["width"] // 8, layers=config["layers"], dropout=config["dropout"]
    )


def _deep_speech(parts: data.Parts, config: Config) -> nn.Module:
    units = config["width"] // 4  # and 128 ms for each step of the output: with shorter ones CTC hardly starts
    return DeepSpeech(
        data.BANDS, 11, channels=units, hidden=units, layers=config["layers"], stride=8, dropout=config["dropout"]
    )


def _read_speech(parts: data.Parts, config: Config) -> nn.Module:
    units = config["width"]  # characters follow each other faster than digits
    return DeepSpeech(
        data.BANDS, len(data.CHARACTERS) + 1, channels=units, hidden=units, layers=config["layers"], stride=3,
        dropout=config["dropout"],
    )  # fmt: skip


def _outputs(parts: data.Parts) -> int:
    return int(max(part.targets.max() for part in (parts.train, parts.val, parts.test))) + 1
