"""Batched trainings are those of torch.optim, one at a time; failures and early ends stay alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metafast.hpo import batched_train
from metafast.models import RNNClassifier

G = torch.Generator().manual_seed(0)
X = torch.randn(90, 6, generator=G)
Y = (X @ torch.randn(6, 3, generator=G)).argmax(1)
TRAIN, VAL, TEST = (X[:50], Y[:50]), (X[50:70], Y[50:70]), (X[70:], Y[70:])
ENGINES = ("compiled", "stacked", "loop")
GRID = [
    {"lr": 0.01, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.01},
    {"lr": 0.003, "optimizer": "adam", "beta1": 0.8, "epsilon": 1e-6},
    {"lr": 0.01, "optimizer": "adamw", "weight_decay": 0.1},
    {"lr": 0.1, "optimizer": "sgd", "momentum": 0.0, "batch_size": 20},
    {"lr": 0.01, "seed": 3},
]


def build(config):
    return nn.Sequential(
        nn.Linear(6, config.get("width", 8)), nn.ReLU(), nn.Dropout(config.get("dropout", 0.0)),
        nn.Linear(config.get("width", 8), 3),
    )  # fmt: skip


def by_torch(config, epochs, seed=0):
    """The same training as plain PyTorch: what batched_train promises."""
    torch.manual_seed(config.get("seed", seed))
    model = build(config)
    lr, decay = config["lr"], config.get("weight_decay", 0.0)
    betas, eps = (config.get("beta1", 0.9), 0.999), config.get("epsilon", 1e-8)
    kind = config.get("optimizer", "adam")
    if kind == "sgd":
        opt = torch.optim.SGD(model.parameters(), lr, momentum=config.get("momentum", 0.9), weight_decay=decay)
    else:
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        opt = make(model.parameters(), lr, betas=betas, eps=eps, weight_decay=decay)
    order, losses, scores = torch.Generator().manual_seed(seed), [], []
    for _ in range(epochs):
        total = 0.0
        for index in torch.randperm(50, generator=order).split(config.get("batch_size", 32)):
            opt.zero_grad()
            loss = F.cross_entropy(model(TRAIN[0][index]), TRAIN[1][index])
            loss.backward()
            opt.step()
            total += len(index) * loss.item()
        losses.append(total / 50)
        scores.append((model(VAL[0]).argmax(1) == VAL[1]).double().mean().item())
    return losses, scores, (model(TEST[0]).argmax(1) == TEST[1]).double().mean().item()


@pytest.mark.parametrize("engine", ENGINES)
def test_equals_torch_optim_one_at_a_time(engine):
    done = batched_train(build, GRID, TRAIN, VAL, epochs=3, test=TEST, engine=engine)
    assert done.engines == [engine] * len(GRID)
    for row, config in enumerate(GRID):
        losses, scores, test = by_torch(config, 3)
        assert done.train_losses[row] == pytest.approx(losses, rel=2e-5)
        assert done.scores[row] == pytest.approx(scores, abs=1e-9)
        assert done.test_scores[row] == pytest.approx(test, abs=1e-9)
    assert (done.seconds > 0).all() and not done.failed.any() and not done.stopped.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_that_diverges_fails_alone(engine):
    good = [{"lr": 0.01}, {"lr": 0.003}]
    alone = batched_train(build, good, TRAIN, VAL, epochs=3, test=TEST, engine=engine)
    configs = [good[0], {"lr": 1e20, "optimizer": "sgd"}, good[1]]
    done = batched_train(build, configs, TRAIN, VAL, epochs=3, test=TEST, engine=engine)
    assert done.failed.tolist() == [False, True, False]
    assert np.isnan(done.scores[1]).any() and np.isnan(done.test_scores[1])
    np.testing.assert_allclose(done.train_losses[[0, 2]], alone.train_losses, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_trainings_leave_the_others_as_they_are(engine):
    configs = [{"lr": lr, "dropout": 0.3} for lr in (0.001, 0.003, 0.01)]
    whole = batched_train(build, configs, TRAIN, VAL, epochs=4, engine=engine)
    seen = []

    def on_epoch(epoch, scores):
        seen.append((epoch, np.isfinite(scores).sum()))
        return [1] if epoch == 2 else None

    done = batched_train(build, configs, TRAIN, VAL, epochs=4, engine=engine, on_epoch=on_epoch)
    assert done.stopped.tolist() == [False, True, False] and not done.failed.any()
    assert np.isfinite(done.scores[1]).tolist() == [True, True, False, False]
    np.testing.assert_allclose(done.train_losses[[0, 2]], whole.train_losses[[0, 2]], rtol=1e-5)
    assert seen == [(1, 3), (2, 6), (3, 8), (4, 10)]


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_acts_in_training_alone_and_is_seeded(engine):
    configs = [{"lr": 0.01, "dropout": p} for p in (0.0, 0.5)]
    done, again = (batched_train(build, configs, TRAIN, VAL, epochs=3, engine=engine) for _ in range(2))
    assert np.array_equal(done.train_losses, again.train_losses)
    assert abs(done.train_losses[0] - done.train_losses[1]).max() > 1e-3
    other = batched_train(build, configs, TRAIN, VAL, epochs=3, engine=engine, seed=1)
    assert not np.array_equal(done.train_losses, other.train_losses)


def test_architectures_are_programs_of_their_own_and_sequences_are_stacked():
    configs = [{"lr": 0.01, "width": w, "batch_size": b} for w in (4, 8) for b in (16, 32)]
    done = batched_train(build, configs, TRAIN, VAL, epochs=1)
    assert set(done.engines) == {"compiled"} and set(done.reasons) == {""}
    for row, config in enumerate(configs):
        assert done.train_losses[row, 0] == pytest.approx(by_torch(config, 1)[0][0], rel=2e-5)

    tokens = torch.randint(1, 30, (40, 5), generator=G)
    labels = tokens[:, 0] % 3

    def text(config):
        return RNNClassifier(30, 3, kind="gru", dim=4, hidden=4)

    found = [
        batched_train(text, [{"lr": 0.01}, {"lr": 0.1}], (tokens, labels), (tokens, labels), epochs=2, engine=engine)
        for engine in ("auto", "loop")
    ]
    assert found[0].engines == ["stacked"] * 2 and "not compiled" in found[0].reasons[0]
    np.testing.assert_allclose(found[0].train_losses, found[1].train_losses, rtol=1e-4)


def test_own_losses_and_metrics():
    def absolute(outputs, targets):
        return (outputs - targets).abs().mean(1)

    def line(config):
        return nn.Sequential(nn.Linear(6, 2))

    pair = (X, X[:, :2])
    done = batched_train(line, [{"lr": 0.05}] * 2, pair, pair, epochs=30, loss=absolute, metric="mse")
    assert done.engines == ["stacked"] * 2 and (done.scores[:, -1] < 0.05).all()
    own = batched_train(line, [{}], pair, pair, epochs=1, loss="mse", metric=lambda out, y: 7.0)
    assert own.scores.tolist() == [[7.0]] and own.engines == ["compiled"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"configs": []}, ValueError, "configs must have at least one"),
        ({"configs": [3]}, TypeError, r"configs\[0\] must be a dict"),
        ({"configs": [{"batch_size": 0}]}, ValueError, "batch_size"),
        ({"configs": [{"optimizer": "lion"}]}, ValueError, "optimizer must be one of .*'lion'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"metric": "f1"}, ValueError, "metric must be one of"),
        ({"loss": lambda out, y: out.sum(1)}, ValueError, "metric must be given"),
        ({"engine": "fast"}, ValueError, "engine must be"),
        ({"train": (X[:3], Y[:2])}, ValueError, "train must have as many targets"),
        ({"val": X}, TypeError, "val must be a pair"),
        ({"build": lambda config: 3}, TypeError, "build must return"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"build": build, "configs": [{}], "train": TRAIN, "val": VAL, **change}
    with pytest.raises(error, match=message):
        batched_train(**arguments)
