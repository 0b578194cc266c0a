"""Many configurations trained side by side: one program where the architecture allows it."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.hpo import _engines
from metafast.hpo._engines import Engine, Loss, make_engine
from metafast.hpo._types import Config
from metafast.metrics import accuracy
from metafast.models._small import _seeded
from metafast.optim import SGD, Adam, AdamW

LOSSES: dict[str, Loss] = {"cross_entropy": _engines.cross_entropy, "mse": _engines.mse}
Metric = Callable[[Tensor, Tensor], float]
OnEpoch = Callable[[int, np.ndarray], Iterable[int] | None]


class Pair(NamedTuple):
    """Inputs `[N, ...]` and targets `[N, ...]`."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TrainedBatch:
    """How the trainings went.

    Args:
        configs: K configurations, as they were given.
        scores: float64 `[K, epochs]`, the metric on validation data after each epoch; NaN from the epoch on in which a
            training diverged, and after one was stopped.
        train_losses: likewise, the mean training loss of each epoch.
        test_scores: float64 `[K]`, at the end; NaN where there is none, or no test data.
        seconds: float64 `[K]`, CPU time, shared equally by trainings of one program.
        failed: bool `[K]`, diverged.
        stopped: bool `[K]`, ended early by `on_epoch`.
        engines: of each training: "compiled", "stacked" or "loop".
        reasons: why it was not a faster one; empty where it was the fastest.
    """

    configs: list[Config]
    scores: np.ndarray
    train_losses: np.ndarray
    test_scores: np.ndarray
    seconds: np.ndarray
    failed: np.ndarray
    stopped: np.ndarray
    engines: list[str]
    reasons: list[str]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    """Mean over examples and outputs."""
    return float((outputs.double() - targets.double()).square().mean())


METRICS: dict[str, Metric] = {"accuracy": accuracy, "mse": mean_squared_error}
DEFAULT_METRICS = {"cross_entropy": "accuracy", "mse": "mse"}  # what fits a loss


def batched_train(
    build: Callable[[Config], nn.Module],
    configs: Sequence[Config],
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    epochs: int = 10,
    loss: str | Loss = "cross_entropy",
    metric: str | Metric | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    engine: str = "auto",
    on_epoch: OnEpoch | None = None,
) -> TrainedBatch:
    """Trains a model for every configuration; those of one architecture and batch size in one program.

    Models that `metafast.innerloop` compiles (linear, convolutional, normalized by layer or group) run natively; others
    whose layers can be stacked (embeddings, GRU and LSTM, transformers written with linear layers) as one stacked
    module; the rest in turn. The steps of all are one call of a fused optimizer.

    A configuration is read for `lr` (default 0.001), `optimizer` ("adam", "adamw" or "sgd"), `momentum` (of SGD,
    default 0.9), `beta1`, `beta2`, `epsilon`, `weight_decay`, `batch_size` (default 32) and `seed`; everything else is
    for `build`.

    Args:
        build: makes the model of a configuration. What it draws depends on the seed alone.
        configs: K configurations.
        train: inputs `[N, ...]` and targets, in memory.
        val: what `scores` are measured on.
        epochs: passes over the training data; the last batch of a pass may be smaller.
        loss: "cross_entropy", "mse", or a function of (outputs `[N, ...]`, targets `[N, ...]`) to losses `[N]`.
        metric: "accuracy", "mse", or a function of (outputs, targets) to a float. Default: what fits the loss.
        test: measured once, at the end.
        seed: of the initial weights, the order of the data and dropout. Configurations of one batch size see the data
            in one order.
        engine: "auto", or one of "compiled", "stacked" and "loop" for all.
        on_epoch: called after each epoch of a program with its number (from 1) and the scores so far, `[K, epochs]`
            (NaN: not trained yet); returns numbers of configurations to stop.

    Returns:
        A `TrainedBatch`; a training that diverges fails alone.

    Raises:
        TypeError: something that is no configuration, or data that are no tensors.
        ValueError: no configurations, an unknown optimizer, loss, metric or engine, or data of different lengths.

    Example:
        >>> x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
        >>> def build(config):
        ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(config["dropout"]), nn.Linear(16, 3))
        >>> configs = [{"lr": lr, "dropout": p} for lr in (1e-3, 1e-2) for p in (0.1, 0.5)]
        >>> done = batched_train(build, configs, (x, y), (x, y), epochs=2)
        >>> done.scores.shape, done.engines[0]
        ((4, 2), 'compiled')

    Source:
        S. Wang et al., Horizontally Fused Training Array, MLSys 2021.
    """
    epochs = integer("epochs", epochs, minimum=1)
    configs = [_config(index, config) for index, config in enumerate(configs)]
    if not configs:
        raise ValueError("configs must have at least one configuration, got none")
    if engine not in ("auto", "compiled", "stacked", "loop"):
        raise ValueError(f"engine must be 'auto', 'compiled', 'stacked' or 'loop', got {engine!r}")
    parts = [_pair(name, part) for name, part in (("train", train), ("val", val))]
    last = None if test is None else _pair("test", test)
    per_example = _loss(loss)
    measure = _metric(metric, per_example)
    models = [_built(build, config, seed) for config in configs]
    count = len(configs)
    scores = np.full((count, epochs), np.nan)
    done = TrainedBatch(
        configs, scores, scores.copy(), np.full(count, np.nan), np.zeros(count), np.zeros(count, bool),
        np.zeros(count, bool), [""] * count, [""] * count,
    )  # fmt: skip
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, (config, model) in enumerate(zip(configs, models, strict=True)):
        groups[(int(config.get("batch_size", 32)), _architecture(model))].append(index)
    for (batch, _), rows in groups.items():
        few = slice(0, min(batch, 8))
        made, reason = make_engine(
            [models[i] for i in rows], per_example, parts[0].inputs[few], parts[0].targets[few], seed, engine
        )
        for i in rows:
            done.engines[i], done.reasons[i] = made.name, reason
        _train(made, rows, done, parts[0], parts[1], last, batch, epochs, measure, seed, on_epoch)
    return done


def _train(
    engine: Engine,
    rows: list[int],
    done: TrainedBatch,
    train: Pair,
    val: Pair,
    test: Pair | None,
    batch: int,
    epochs: int,
    measure: Metric,
    seed: int,
    on_epoch: OnEpoch | None,
) -> None:
    steppers = _optimizers(engine, [done.configs[i] for i in rows])
    order = torch.Generator().manual_seed(seed)
    alive, step = list(range(len(rows))), 0
    for epoch in range(epochs):
        began = time.process_time()
        sums, seen = torch.zeros(len(rows), dtype=torch.float64), 0
        for index in torch.randperm(len(train.inputs), generator=order).split(batch):
            losses = engine.gradient(train.inputs[index], train.targets[index], alive, step)
            for stepper in steppers:
                stepper.step()
            sums[alive] += len(index) * losses.double()
            seen, step = seen + len(index), step + 1
        outputs = engine.outputs(val.inputs, alive)
        for place, out in zip(list(alive), outputs, strict=True):
            row = rows[place]
            mean, score = float(sums[place]) / seen, measure(out, val.targets)
            if np.isfinite(mean) and bool(out.isfinite().all()) and np.isfinite(score):
                done.scores[row, epoch], done.train_losses[row, epoch] = score, mean
            else:
                done.failed[row] = True
        spent = (time.process_time() - began) / len(alive)
        done.seconds[[rows[place] for place in alive]] += spent
        asked = set(on_epoch(epoch + 1, done.scores) or ()) if on_epoch is not None else set()
        stop = [p for p in alive if done.failed[rows[p]] or rows[p] in asked]
        if stop and epoch + 1 < epochs:
            for place in stop:
                done.stopped[rows[place]] = not done.failed[rows[place]]
                for param in engine.params[place]:
                    param.grad = None  # the optimizer passes over it from now on
            alive = [p for p in alive if p not in stop]
            if not alive:
                return
    if test is not None:
        living = [p for p in alive if not done.failed[rows[p]]]
        if living:
            for place, out in zip(living, engine.outputs(test.inputs, living), strict=True):
                done.test_scores[rows[place]] = measure(out, test.targets)


def _optimizers(engine: Engine, configs: list[Config]) -> list[torch.optim.Optimizer]:
    """One fused optimizer of each kind, with the rates as factors, so that all tensors of a kind step in one call."""
    kinds: defaultdict[str, defaultdict[tuple[tuple[str, Any], ...], list[int]]]
    kinds = defaultdict(lambda: defaultdict(list))
    for place, config in enumerate(configs):
        name = str(config.get("optimizer", "adam"))
        if name not in _OPTIONS:
            raise ValueError(f"optimizer must be one of {sorted(_OPTIONS)}, got {config['optimizer']!r}")
        kinds[name][tuple(sorted(_OPTIONS[name](config).items()))].append(place)
    made: list[torch.optim.Optimizer] = []
    for name, groups in kinds.items():
        params = [
            {"params": [p for place in places for p in engine.params[place]], **dict(options)}
            for options, places in groups.items()
        ]
        opt = _MAKERS[name](params, lr=1.0)
        rates = [
            float(configs[place].get("lr", 1e-3)) for places in groups.values() for place in places
            for _ in engine.params[place]
        ]  # fmt: skip
        opt.scale_rates(torch.tensor(rates, dtype=torch.float64))
        made.append(opt)
    return made


def _adam(config: Config) -> dict[str, Any]:
    return {
        "betas": (float(config.get("beta1", 0.9)), float(config.get("beta2", 0.999))),
        "eps": float(config.get("epsilon", 1e-8)),
        "weight_decay": float(config.get("weight_decay", 0.0)),
    }


def _sgd(config: Config) -> dict[str, Any]:
    return {
        "momentum": float(config.get("momentum", 0.9)),
        "weight_decay": float(config.get("weight_decay", 0.0)),
    }


_MAKERS: dict[str, Callable[..., Any]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
_OPTIONS: dict[str, Callable[[Config], dict[str, Any]]] = {"adam": _adam, "adamw": _adam, "sgd": _sgd}


def _architecture(model: nn.Module) -> str:
    """What models of one program have in common: everything but the weights and the probabilities of dropout."""
    text = re.sub(r"(Dropout\(p=|dropout=)[0-9.e+-]+", r"\1", repr(model))
    shapes = [(name, tuple(param.shape)) for name, param in model.named_parameters()]
    return f"{text} {shapes}"


def _built(build: Callable[[Config], nn.Module], config: Config, seed: int) -> nn.Module:
    with _seeded(int(config.get("seed", seed))):
        model = build(config)
    if not isinstance(model, nn.Module):
        raise TypeError(f"build must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _config(index: int, config: Any) -> Config:
    if not isinstance(config, dict):
        raise TypeError(f"configs[{index}] must be a dict of hyperparameters, got {type(config).__name__}")
    integer(f"configs[{index}]['batch_size']", config.get("batch_size", 32), minimum=1)
    return dict(config)


def _pair(name: str, part: Any) -> Pair:
    if not isinstance(part, tuple) or len(part) != 2 or not all(isinstance(x, Tensor) for x in part):
        raise TypeError(f"{name} must be a pair of tensors (inputs, targets), got {type(part).__name__}")
    if len(part[0]) != len(part[1]) or not len(part[0]):
        raise ValueError(f"{name} must have as many targets as inputs, and some, got {len(part[0])}, {len(part[1])}")
    return Pair(*part)


def _loss(loss: Any) -> Loss:
    if callable(loss):
        found: Loss = loss
        return found
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)} or a function to losses [N], got {loss!r}")
    return LOSSES[loss]


def _metric(metric: Any, loss: Loss) -> Metric:
    if callable(metric):
        found: Metric = metric
        return found
    if metric is None:
        metric = next((DEFAULT_METRICS[name] for name, known in LOSSES.items() if known is loss), None)
        if metric is None:
            raise ValueError("metric must be given with a loss of your own")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {sorted(METRICS)} or a function of (outputs, targets), got {metric!r}")
    return METRICS[metric]
