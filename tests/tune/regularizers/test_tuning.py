"""Hypergradients of every regularizer equal finite differences of plain training with the same noise, in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metafast.runs import Run
from metafast.tune import SAMA, Implicit, OnlineTuner, Tune
from metafast.tune.regularizers import (
    L2,
    Augment,
    ConcreteDropout,
    LabelSmoothingCrossEntropy,
    Mixup,
    _beta,
    replace_dropout,
)
from tests.tune.regularizers.regularizer_cases import (
    MAKE,
    STEPS,
    Problem,
    differences,
    plain_training,
    quantile_draw,
    settle,
)

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.8),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.03, eps=1e-2, weight_decay=0.05),
}


@pytest.fixture(autouse=True)
def quantiles(monkeypatch):
    """Rejection, by which PyTorch draws beta samples, has no path that follows a; quantiles have, at fixed noise."""
    monkeypatch.setattr(_beta, "draw", quantile_draw)


def tuned(problem, made, opt, method, every, batches):
    tuner = OnlineTuner(
        made.model, opt, made.tune, [problem.val], method, every, val_loss=lambda model, *_: problem.val_loss(model)
    )
    for batch in batches:
        tuner.step(lambda *batch: problem.loss(made, *batch), *batch)
    return {name: record.hypergradients[-1][1] for name, record in tuner.state.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MAKE)
def test_forward_and_reverse_over_steps(name, optimizer):
    problem, make = Problem(name), OPTIMIZERS[optimizer]
    expected = differences(problem, plain_training(problem, make, STEPS))
    for method in ("forward", "reverse"):
        made = problem.make()
        found = tuned(problem, made, make(made.model.parameters()), method, STEPS, problem.batches)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-9), (method, key)


@pytest.mark.parametrize("name", MAKE)
def test_sama_and_implicit_of_no_term_over_one_step(name):
    problem, make = Problem(name), OPTIMIZERS["SGD"]
    expected = differences(problem, plain_training(problem, make, 1))
    for method, limit in ((SAMA(radius=1e-3), 1e-4), (Implicit(terms=0), 1e-6)):
        made = problem.make()
        found = tuned(problem, made, make(made.model.parameters()), method, 1, problem.batches[:1])
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=limit, abs=1e-8), (method, key)


@pytest.mark.parametrize("name", MAKE)
def test_implicit_at_a_fixed_point(name):
    problem = Problem(name, convex=True)
    expected = differences(problem, lambda made: settle(problem, made))
    for method in (Implicit(terms=150), Implicit(terms=50, solver="cg")):
        made = problem.make()
        settle(problem, made)
        made.model.train()
        opt = torch.optim.SGD(made.model.parameters(), lr=0.7)
        found = tuned(problem, made, opt, method, 1, problem.batches[:1])
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-9), (method.solver, key)


def everything():
    """A network that uses all of them, in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(48, 3))
    tune = replace_dropout(model)
    augment, mixup, criterion = Augment(shift=0.1, cutout=0.3), Mixup(0.3, num_classes=3), LabelSmoothingCrossEntropy()
    penalty = L2(model, 1e-3)
    parts = nn.ModuleList([augment, mixup, criterion, penalty])
    tune = ["lr", *tune, *(spec for part in parts for spec in part.tune())]
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)

    def loss(x, y):
        mixed, targets = mixup(augment(x), y)
        return criterion(model(mixed), targets) + penalty()

    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, 1, 3, 4, generator=generator), torch.randint(3, (40,), generator=generator)
    return model, parts, opt, tune, loss, x, y


def tuner_of_everything(method, every=2):
    model, parts, opt, tune, loss, x, y = everything()
    return parts, OnlineTuner(model, opt, tune, [(x[32:], y[32:])], method, every), loss, x[:32], y[:32]


def go(tuner, loss, x, y, steps, start=0):
    for index in range(start, start + steps):
        rows = torch.arange(32).roll(5 * index)[:8]
        tuner.step(loss, x[rows], y[rows])


@pytest.mark.parametrize("method", ["forward", "reverse", "implicit", "one_step", "sama"])
def test_all_of_them_at_once_by_every_method(method):
    parts, tuner, loss, x, y = tuner_of_everything(method)
    names = ["lr", "2.p", "augment.shift", "augment.cutout", "mixup", "smoothing", "l2"]
    assert list(tuner.state) == names
    go(tuner, loss, x, y, 4)
    for name, record in tuner.state.items():
        assert record.history[0][1] != record.history[-1][1] and record.skipped == 0, name
    assert tuner.model[2].p.item() == pytest.approx(tuner.state["2.p"].values["all"])
    assert parts[3].weight.tolist() == pytest.approx(list(tuner.state["l2"].values.values()))


@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_resumes_bit_for_bit(method, tmp_path):
    parts, tuner, loss, x, y = tuner_of_everything(method, every=3)
    with Run.create(tmp_path, seed=0, name="run") as run:
        go(tuner, loss, x, y, 4)
        run.save(4, tuner.model, tuner.optimizer, tuner=tuner, regularizers=parts)
        go(tuner, loss, x, y, 5, 4)
    parts2, again, loss2, *_ = tuner_of_everything(method, every=3)
    go(again, loss2, x, y, 1)  # whatever it did before
    resumed = Run.resume(tmp_path / "run")
    resumed.restore(again.model, again.optimizer, tuner=again, regularizers=parts2)
    go(again, loss2, x, y, 5, 4)
    resumed.finish()
    assert tuner.state == again.state and tuner.validation == again.validation
    for ours, theirs in ((tuner.model, again.model), (parts, parts2)):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key


def test_the_bare_tensor_can_be_tuned():
    dropout = ConcreteDropout(0.3)
    model = nn.Sequential(nn.Linear(4, 8), dropout, nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(12, 4), torch.randint(2, (12,))
    tuner = OnlineTuner(model, opt, [dropout.p], [(x[8:], y[8:])], every=1)
    tuner.step(lambda: F.cross_entropy(model(x[:8]), y[:8]))
    assert tuner.state["1.p"].values["all"] == dropout.p.item() != pytest.approx(0.3)
    spec = Tune(dropout.p, rate=0.5)
    assert (spec.space, spec.bounds, spec.rate) == ("logit", (1e-3, 0.9), 0.5)
    assert Tune(dropout.p, space="linear").space == "linear"


def test_loading_and_moving_keep_the_tensor_that_is_tuned():
    """Identity, leaf and gradient stay; one who tunes it sees what the module has."""
    source, made = ConcreteDropout(0.3), ConcreteDropout(0.6)
    tensor = made.p
    made.load_state_dict(source.state_dict())
    assert made.p is tensor and tensor.item() == pytest.approx(0.3)
    made(torch.ones(4)).sum().backward()
    for moved in (made.double(), made.half(), made.to("cpu"), made.to(torch.bfloat16)):
        assert moved.p is tensor and tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float64
    twin = copy.deepcopy(made)
    assert twin.p is not tensor and twin.p.is_leaf and twin.tune()[0].space == "logit"
    restored = pickle.loads(pickle.dumps(made))
    assert restored.p.requires_grad and restored.tune()[0].space == "logit"
    made.p.grad = torch.ones_like(made.p)
    assert made.cpu().p.grad is None


def test_compiles_without_a_break():
    model, parts, *_, x, y = everything()
    criterion, penalty = parts[2], parts[3]

    def loss(x, y):
        return criterion(model(x), y) + penalty()

    values = []
    for run in (loss, torch.compile(loss, backend="eager", fullgraph=True)):
        torch.manual_seed(1)
        values.append(run(x, y))
    assert torch.equal(*values)


@pytest.mark.gpu
def test_on_a_gpu():
    model, parts, opt, tune, loss, x, y = everything()
    tensors = [spec.what for spec in tune[1:]]
    model.cuda(), parts.cuda()
    assert all(tensor.is_cuda and tensor.is_leaf for tensor in tensors)
    for method in ("forward", "reverse", "implicit", "sama"):
        tuner = OnlineTuner(model, opt, tune, [(x[32:], y[32:])], method, every=2)
        go(tuner, loss, x[:32].cuda(), y[:32].cuda(), 4)
        assert all(record.skipped == 0 for record in tuner.state.values())


@pytest.mark.gpu
def test_magnitudes_that_have_stayed_on_the_cpu():
    """A loss module is easily forgotten: its 0-d tensors work beside tensors of a GPU."""
    x, y = torch.randn(6, 1, 4, 4).cuda(), torch.randint(3, (6,)).cuda()
    mixed, targets = Mixup(0.3, num_classes=3)(Augment(shift=0.1, cutout=0.3)(x), y)
    loss = LabelSmoothingCrossEntropy()(ConcreteDropout(0.2)(mixed).flatten(1)[:, :3], targets)
    assert loss.is_cuda and loss.isfinite()
