"""The fused step of `Forward`: the numbers of the step by autograd, and everything else as it was without it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

import metafast
from metafast.tune import Forward, OnlineTuner, Tune
from metafast.tune._fused import FusedStep
from tests.tune.tune_cases import CASES, SGD, Case, Problem, hypergradient, optimizer, option_difference

PACKAGES = [torch.optim, metafast.optim]
FITTING = [case for case in CASES if "amsgrad" not in case.flags]
FITTING += [Case("SGD", {**SGD, "dampening": 0.3}, ("lr", "dampening"), {"maximize": True})]


@pytest.fixture
def counted(monkeypatch):
    """How many steps the op has made; `counted.off()` leaves all to the optimizer."""

    class Counter:
        steps = 0

        def off(self):
            monkeypatch.setattr(FusedStep, "fits", lambda self, call: False)

    counter, plain = Counter(), FusedStep.step

    def step(self, *args):
        counter.steps += 1
        return plain(self, *args)

    monkeypatch.setattr(FusedStep, "step", step)
    return counter


def data(count=40):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 6, 6, generator=generator)
    return x, (x[:, 0].mean((1, 2)) > 0).long()


class Net(nn.Module):
    """A convolution in channels-last order, a bias of one element, and a layer that is used in some steps only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.sometimes = nn.Linear(5, 5)
        self.out = nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x, more=False):
        hidden = torch.tanh(self.conv(x)).mean((2, 3))
        return self.scale * self.out(self.sometimes(hidden) if more else hidden)


def run(case, package, method, steps=8, tune=None, every=4, **options):
    model, (x, y) = Net(), data()
    opt = optimizer(case, model, package)
    tuner = OnlineTuner(model, opt, list(tune or case.tuned), [(x[24:], y[24:])], method, every, **options)
    go(tuner, range(steps))
    return tuner


def go(tuner, steps):
    x, y = data()
    sign = -1 if tuner.optimizer.param_groups[0]["maximize"] else 1
    for index in steps:
        more = index % 3 == 1
        tuner.step(lambda x, y, more=more: sign * F.cross_entropy(tuner.model(x, more), y), x[:24], y[:24])


def compare(one, other, rel=2e-4):
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    for name, tuned in one.state.items():
        for (_, found), (_, expected) in zip(tuned.hypergradients, other.state[name].hypergradients, strict=True):
            assert found == pytest.approx(expected, rel=rel, abs=1e-7), name


@pytest.mark.parametrize("case", FITTING, ids=str)
@pytest.mark.parametrize(("package", "hvp"), [(torch.optim, True), (metafast.optim, False)], ids=["torch-hvp", "free"])
def test_equals_the_step_by_autograd(case, package, hvp, counted):
    method = {"hvp": hvp, "decay": 0.9 if hvp else 1.0, "carry": not hvp}
    fused = run(case, package, Forward(**method))
    stateless = package is torch.optim and case.optimizer == "SGD" and "momentum" not in case.options
    assert counted.steps == (8 if stateless else 6)
    counted.off()
    plain = run(case, package, Forward(**method))
    compare(fused, plain)
    for key, kept in plain.optimizer.state_dict()["state"].items():
        mine = fused.optimizer.state_dict()["state"][key]
        assert mine.keys() == kept.keys()
        for name, value in kept.items():
            torch.testing.assert_close(mine[name], value, rtol=2e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_without_the_op_options_equal_finite_differences_too(case, counted):
    counted.off()
    problem = Problem()
    found = hypergradient(problem, case, list(case.tuned), "forward")
    for name in case.tuned:
        assert found[name] == [pytest.approx(option_difference(problem, case, name, None), rel=1e-6)], name
    assert counted.steps == 0


def test_values_per_tensor_and_of_the_loss(counted):
    """Ten values, three calls of the kernel: each tensor's rate, and a tensor of the loss, whose gradient moves."""

    def one():
        model, (x, y) = Net(), data()
        weight = torch.tensor(0.01, requires_grad=True)
        opt = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
        tune = [Tune("lr", per="tensor"), Tune("weight_decay", per="group"), Tune(weight, space="log", name="l2")]
        tuner = OnlineTuner(model, opt, tune, [(x[24:], y[24:])], "forward", 2)

        def loss(x, y):
            return F.cross_entropy(model(x, True), y) + weight * sum(p.square().sum() for p in model.parameters())

        for _ in range(5):
            tuner.step(loss, x[:24], y[:24])
        return tuner

    fused = one()
    assert counted.steps == 4
    counted.off()
    compare(fused, one())


def test_groups_with_switches_of_their_own(counted):
    def one():
        model, (x, y) = Net(), data()
        groups = [
            {"params": [*model.conv.parameters()], "nesterov": True},
            {"params": [*model.out.parameters()], "maximize": True, "lr": 1e-3},
            {"params": [model.scale], "momentum": 0.0},
        ]
        opt = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        tuner = OnlineTuner(model, opt, [Tune("lr", per="group")], [(x[24:], y[24:])], Forward(hvp=False), 3)
        for _ in range(7):
            tuner.step(lambda x, y: F.cross_entropy(model(x), y), x[:24], y[:24])
        return tuner

    fused = one()
    assert counted.steps == 6
    counted.off()
    compare(fused, one())


@pytest.mark.parametrize("package", PACKAGES, ids=["torch", "metafast"])
def test_resumes_bit_for_bit(package, counted):
    """Also between a fused step and one that is not: at call 7 a layer has its first gradient."""

    class Late(Net):
        def forward(self, x, more=False):
            return super().forward(x, more and late[0])

    def fresh():
        model, (x, y) = Late(), data()
        opt = package.AdamW(model.parameters(), lr=0.01)
        tuner = OnlineTuner(model, opt, ["lr", "betas"], [(x[24:], y[24:])], Forward(decay=0.9, carry=True), 4)
        return model, opt, tuner

    late = [False]
    model, opt, tuner = fresh()
    go(tuner, range(6))
    kept = copy.deepcopy([part.state_dict() for part in (model, opt, tuner)])
    live = tuner.state_dict()["methods"][0]["state"]["tangents"][0][0]["theta"].clone()
    late[0] = True
    go(tuner, range(6, 11))
    made = counted.steps
    model2, opt2, tuner2 = fresh()
    for part, state in zip((model2, opt2, tuner2), kept, strict=True):
        part.load_state_dict(state)
    assert torch.equal(kept[2]["methods"][0]["state"]["tangents"][0][0]["theta"], live)
    go(tuner2, range(6, 11))
    assert made > 0 and counted.steps == made + 4  # not the first with the layer
    for a, b in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(a, b)
    assert tuner.state == tuner2.state


def test_a_state_that_was_taken_does_not_move_on():
    tuner = run(CASES[5], torch.optim, Forward(hvp=False), steps=6)
    state = tuner.state_dict()["methods"][0]["state"]["tangents"]
    before = [{name: value.clone() for name, value in slot.items()} for slot in state[0]]
    go(tuner, [6])
    assert all(torch.equal(slot[name], value) for slot, old in zip(state[0], before, strict=True)
               for name, value in old.items())  # fmt: skip


def test_a_scheduler_sees_the_steps(counted):
    model, (x, y) = Net(), data()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = lr_scheduler.StepLR(opt, 2, 0.5)
        tuner = OnlineTuner(model, opt, "lr", [(x, y)], Forward(hvp=False), 50, scheduler=scheduler)
        for _ in range(4):
            tuner.step(lambda x, y: F.cross_entropy(model(x), y), x, y)
            scheduler.step()
    assert counted.steps == 3 and opt.param_groups[0]["lr"] == pytest.approx(0.025)


def prepared(case):
    """A tuner after a first step, and what stands in the way of a fused second one."""
    model = Net()
    options = {"amsgrad": True} if case == "amsgrad" else {}
    if case == "bfloat16":
        model.bfloat16()
    opt = (metafast.optim if case == "backend" else torch.optim).AdamW(model.parameters(), lr=0.01, **options)
    if case == "backend":
        opt.param_groups[0]["backend"] = "reference"
    if case == "hook":
        opt.register_step_post_hook(lambda *_: None)
    if case == "wrapped":
        step = opt.step
        opt.step = lambda *args: step(*args)
    x, y = data()
    x = x.to(model.scale.dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if case == "scaler" else None
    tuner = OnlineTuner(model, opt, "lr", [(x, y)], Forward(hvp=False), 2, scaler=scaler)
    return tuner, x, y


@pytest.mark.parametrize("case", ["amsgrad", "bfloat16", "backend", "hook", "wrapped", "scaler"])
def test_the_optimizer_makes_the_other_steps(case, counted):
    tuner, x, y = prepared(case)
    for _ in range(4):
        tuner.step(lambda x, y: F.cross_entropy(tuner.model(x), y), x, y)
    assert counted.steps == 0 and len(tuner.state["lr"].hypergradients) == 2


def test_update_fuses_and_a_trainers_own_step_does_not(counted):
    found = {}
    for way in ("step", "update", "trainer"):
        counted.steps = 0
        tuner, x, y = prepared(way)
        for _ in range(5):
            if way == "step":
                tuner.step(lambda x, y, tuner=tuner: F.cross_entropy(tuner.model(x), y), x, y)
                continue
            tuner.optimizer.zero_grad()
            F.cross_entropy(tuner.model(x), y).backward()
            if way == "update":
                tuner.update()
            else:
                tuner.before_step()
                tuner.optimizer.step()
                tuner.after_step()
        found[way] = tuner
        assert counted.steps == (0 if way == "trainer" else 4)
    compare(found["step"], found["update"])
    compare(found["step"], found["trainer"])


def test_gradients_stay_visible_and_statistics_are_unknown(counted):
    tuner = run(CASES[5], metafast.optim, Forward(hvp=False), steps=3)
    assert counted.steps > 0
    assert tuner.model.out.weight.grad is not None and tuner.model.unused.grad is None
    assert bool(tuner.optimizer.tensor_stats().isnan().all())
    assert tuner.optimizer.lr_history[-1][0] == 3
