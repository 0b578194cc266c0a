"""The tuner around a method: training as without it, bounds, records, resuming, and what it leaves alone."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import metafast
from metafast.data import Batches
from metafast.runs import Run
from metafast.tune import METHODS, Forward, Implicit, OnlineTuner, Reverse, Tune
from metafast.tune._feedback import Feedback
from tests.tune.tune_cases import CASES, Problem, optimizer

STILL = {"hyper_lr": 1e-300}  # hyperparameters that do not move


def data(count=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3].sum(1) > 0).long()


def small(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def make(method="forward", opt=None, model=None, tune=("lr", "momentum"), every=3, **options):
    model = model or small(0.2)
    opt = opt or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = data()
    val = DataLoader(TensorDataset(x[48:], y[48:]), batch_size=8, shuffle=True)
    return OnlineTuner(model, opt, list(tune), val, method, every, **options)


def go(tuner, steps, start=0):
    x, y = data()
    losses = []
    for index in range(start, start + steps):
        rows = torch.arange(48).roll(7 * index)[:12]
        losses.append(tuner.step(lambda x, y: F.cross_entropy(tuner.model(x), y), x[rows], y[rows]).item())
    return losses


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("package", [torch.optim, metafast.optim], ids=["torch", "metafast"])
def test_trains_as_without_it_while_nothing_moves(method, package):
    """Weights, batch-norm statistics and random numbers are those of a plain loop."""

    def run(tuned):
        model = small(0.3)
        # eps: the bias before a batch norm has a gradient of rounding errors alone, which Adam would blow up
        opt = package.AdamW(model.parameters(), lr=0.01, eps=1e-2)
        tuner = make(method, opt, model, ["lr", "betas"], **STILL) if tuned else None
        torch.manual_seed(7)
        if tuner:
            go(tuner, 7)
        else:
            x, y = data()
            for index in range(7):
                rows = torch.arange(48).roll(7 * index)[:12]
                opt.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                opt.step()
        return {**model.state_dict(), "noise": torch.rand(2)}

    plain, tuned = run(False), run(True)
    for name, value in plain.items():
        torch.testing.assert_close(tuned[name], value, rtol=2e-5, atol=1e-7, msg=name)
    assert torch.equal(plain["noise"], tuned["noise"])


@pytest.mark.parametrize("method", METHODS)
def test_start_waits_and_then_sees_what_a_new_tuner_sees(method):
    model = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tuner = make(method, opt, model, ["lr"], every=3, start=4)
    go(tuner, 4)
    assert tuner.state["lr"].history == [(0, [0.05])] and not tuner.validation
    other = small()
    other.load_state_dict(model.state_dict())
    again = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))  # which shares tensors
    later = make(method, again, other, ["lr"], every=3)
    for each in (tuner, later):
        torch.manual_seed(7)
        go(each, 3, start=4)
    (call, (found,)), (own, (expected,)) = tuner.state["lr"].hypergradients[0], later.state["lr"].hypergradients[0]
    assert (call, own) == (7, 3)
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="start=4, this tuner 0"):
        later.load_state_dict(tuner.state_dict())


@pytest.mark.parametrize("method", ["forward", "reverse", "implicit"])
def test_resumes_bit_for_bit(method, tmp_path):
    def fresh():
        model = small(0.2)
        model.register_parameter("regularizer", nn.Parameter(torch.tensor([1e-3, 1e-3])))
        weights = [p for name, p in model.named_parameters() if name != "regularizer"]
        opt = torch.optim.AdamW(weights, lr=0.01)
        tune = [Tune("lr", per="layer"), "betas", Tune(model.regularizer, space="log")]
        tuner = make(method, opt, model, tune, every=4)
        return model, opt, tuner

    def train(tuner, steps, start):
        x, y = data()
        for index in range(start, start + steps):
            rows = torch.arange(48).roll(7 * index)[:12]

            def loss(x, y):
                a, b = (tuner.model[i].weight.square().sum() for i in (0, 4))
                return F.cross_entropy(tuner.model(x), y) + tuner.model.regularizer @ torch.stack([a, b])

            tuner.step(loss, x[rows], y[rows])

    model, opt, tuner = fresh()
    with Run.create(tmp_path, seed=0, name="run") as run:
        train(tuner, 6, 0)  # in the middle of a window, and of a validation epoch
        run.save(6, model, opt, tuner=tuner)
        train(tuner, 6, 6)
    again, opt2, tuner2 = fresh()
    train(tuner2, 1, 0)  # whatever it did before
    resumed = Run.resume(tmp_path / "run")
    resumed.restore(again, opt2, tuner=tuner2)
    train(tuner2, 6, 6)
    resumed.finish()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert tuner.state == tuner2.state
    assert tuner.validation == tuner2.validation
    assert [g["lr"] for g in opt.param_groups] == [g["lr"] for g in opt2.param_groups]


def test_state_tells_values_and_history_per_unit():
    model = small()
    tuner = make("forward", tune=[Tune("lr", per="tensor"), Tune("momentum", rate=0.5)], model=model, every=2)
    go(tuner, 5)
    rates = tuner.state["lr"]
    assert list(rates.values) == [name for name, _ in model.named_parameters()]
    assert [calls for calls, _ in rates.history] == [0, 2, 4]
    assert rates.history[-1][1] == pytest.approx(list(rates.values.values()))
    assert [g["lr"] for g in tuner.optimizer.param_groups] == list(rates.values.values())
    assert {g["momentum"] for g in tuner.optimizer.param_groups} == set(tuner.state["momentum"].values.values())
    assert "momentum=0." in repr(tuner) and "lr: 6" in repr(tuner)


def test_per_group_names_come_from_the_groups():
    model = small()
    groups = [{"params": model[0].parameters(), "lr": 0.1, "name": "body"}, {"params": model[4].parameters()}]
    tuner = make(opt=torch.optim.SGD(groups, lr=0.01, momentum=0.9), model=model, tune=[Tune("lr", per="group")])
    go(tuner, 3)
    assert list(tuner.state["lr"].values) == ["body", "group1"]
    assert tuner.state["lr"].history[0][1] == pytest.approx([0.1, 0.01])


def test_values_stay_inside_bounds_and_steps_inside_their_limit():
    tuner = make(tune=[Tune("lr", bounds=(0.009, 0.011), rate=10.0), Tune("momentum", rate=10.0, max_step=0.05)])
    go(tuner, 9)
    assert all(0.009 * 0.999 <= v[0] <= 0.011 * 1.001 for _, v in tuner.state["lr"].history)
    raws = [math.log(1 - v[0]) for _, v in tuner.state["momentum"].history]
    assert all(abs(b - a) <= 0.05 + 1e-9 for a, b in itertools.pairwise(raws)) and raws[1] != raws[0]


def test_methods_mix_in_one_tuner():
    problem, case = Problem(), CASES[2]
    found = {}
    for name, tune in {
        "mixed": ["momentum", Tune("lr", method=Implicit(terms=3)), Tune("weight_decay", method="reverse")],
        "forward": ["momentum"],
        "reverse": ["weight_decay"],
        "implicit": ["lr"],
    }.items():
        model = problem.model()
        method = {"mixed": "forward", "implicit": Implicit(terms=3)}.get(name, name)
        tuner = OnlineTuner(model, optimizer(case, model), tune, [problem.val], method, every=10)
        for x, y in problem.batches[:10]:
            tuner.step(lambda x, y, m=model: problem.loss(m, {}, x, y), x, y)
        found |= {(name, knob): tuned.hypergradients for knob, tuned in tuner.state.items()}
    for name, knob in (("forward", "momentum"), ("reverse", "weight_decay"), ("implicit", "lr")):
        assert found["mixed", knob][0][1] == pytest.approx(found[name, knob][0][1], rel=1e-9)


@pytest.mark.parametrize("method", ["forward", "reverse", "implicit", "sama"])
def test_non_finite_hypergradients_are_skipped_counted_and_recorded(method):
    bad = [True]

    def val_loss(model, x, y):
        return F.cross_entropy(model(x), y) * (float("nan") if bad[0] else 1.0)

    tuner = make(method, val_loss=val_loss)
    go(tuner, 3)
    tuned = tuner.state["lr"]
    assert tuned.skipped == 1 and math.isnan(tuned.hypergradients[0][1][0]) and tuned.values["all"] == 0.01
    bad[0] = False
    go(tuner, 3, 3)
    assert tuner.state["lr"].skipped == 1 and tuner.state["lr"].values["all"] != 0.01


def test_a_failing_loss_changes_nothing():
    for method in METHODS:
        fail = [False]

        def val_loss(model, x, y, fail=fail):
            if fail[0]:
                raise RuntimeError("no validation today")
            return F.cross_entropy(model(x), y)

        tuner, other = make(method, val_loss=val_loss), make(method, val_loss=val_loss)
        losses = []
        for each in (tuner, other):
            torch.manual_seed(3)
            go(each, 2)
            if each is tuner:
                fail[0] = True
                weights = {k: v.clone() for k, v in each.model.named_parameters()}
                state = torch.get_rng_state()
                with pytest.raises(RuntimeError, match="today"):
                    go(each, 1, 2)
                torch.set_rng_state(state)
                assert all(torch.equal(weights[k], v) for k, v in each.model.named_parameters())
                assert each.model.training and each.calls == 2
                each._feedback.load_state_dict({"epoch": -1, "position": 0, "own": None})
                fail[0] = False
            losses.append(go(each, 4, 2))
        assert losses[0] == losses[1], method


def test_validation_batches_do_not_depend_on_the_training_noise():
    x, y = data()
    for val in (
        DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True),
        DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)),
        Batches(x, y, batch_size=24, seed=1),
        [(x[:5], y[:5]), (x[5:], y[5:])],
    ):
        feedback = Feedback(val, 2, seed=3)
        state = torch.get_rng_state()
        first = [feedback.take() for _ in range(4)]
        saved = feedback.state_dict()
        rest = [feedback.take() for _ in range(4)]
        assert torch.equal(state, torch.get_rng_state())
        resumed = Feedback(val, 2, seed=3)
        torch.rand(3)
        resumed.load_state_dict(saved)
        for a, b in zip(rest, [resumed.take() for _ in range(4)], strict=True):
            assert all(torch.equal(p[0], q[0]) for p, q in zip(a, b, strict=True))
        assert len(first) == 4


def test_all_validation_batches_are_one_epoch():
    x, y = data()
    tuner = make(val_batches="all", every=1)
    go(tuner, 1)
    with torch.no_grad():
        expected = F.cross_entropy(tuner.model.eval()(x[48:]), y[48:])
    assert tuner.validation[0][1] == pytest.approx(expected.item(), rel=1e-5)


def test_another_hyper_optimizer():
    tuner = make(hyper_optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.5), hyper_lr=0.2, clip=None)
    go(tuner, 3)
    assert tuner.state["lr"].values["all"] == pytest.approx(0.01 * math.exp(0.2), rel=1e-5) or tuner.state["lr"].values[
        "all"
    ] == pytest.approx(0.01 * math.exp(-0.2), rel=1e-5)


def test_a_learning_rate_that_is_a_tensor_stays_one():
    model = small()
    lr = torch.tensor(0.01)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, foreach=False)
    tuner = make(opt=opt, model=model, tune=["lr"])
    go(tuner, 3)
    assert opt.param_groups[0]["lr"] is lr and lr.item() != 0.01


def test_frozen_and_unused_parameters():
    model = small()
    model.unused = nn.Parameter(torch.ones(2))
    model[0].bias.requires_grad_(False)
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    for method in ("forward", "reverse", Implicit(terms=2)):
        tuner = make(method, torch.optim.AdamW(model.parameters(), lr=0.01), model, ["lr"])
        go(tuner, 3)
        assert math.isfinite(tuner.state["lr"].hypergradients[0][1][0])
    assert model.unused.tolist() == [1.0, 1.0] and model.unused not in opt.state


def test_large_tensors_have_their_mean_in_the_history():
    weights = torch.zeros(300, requires_grad=True)
    model = small()
    x, y = data(300)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    tuner = OnlineTuner(model, opt, Tune(weights, name="examples"), [(x, y)], "implicit", 1)
    tuner.step(lambda: (torch.exp(weights) * F.cross_entropy(model(x), y, reduction="none")).mean())
    tuned = tuner.state["examples"]
    assert len(tuned.values) == 300 and len(tuned.history[-1][1]) == 1 and tuned.per == "element"


def test_forward_without_hvp_needs_no_second_derivative():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * 2

    model = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = data()
    for method in (Forward(hvp=False), "sama", "one_step"):
        tuner = OnlineTuner(model, opt, ["lr", "momentum"], [(x, y)], method, every=2)
        for _ in range(2):
            tuner.step(lambda: F.cross_entropy(Once.apply(model(x)), y))
        assert tuner.state["lr"].hypergradients[0][1][0] != 0
    assert Reverse.keeps and not Forward.keeps
