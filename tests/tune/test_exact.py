"""Forward and reverse equal finite differences through 20 steps of plain PyTorch in float64, to 1e-6."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metafast
from metafast.tune import Forward, OnlineTuner, Reverse, Tune
from tests.tune.tune_cases import (
    CASES,
    SGD,
    STEPS,
    Case,
    Problem,
    hypergradient,
    optimizer,
    option_difference,
    tensor_difference,
)

METHODS = {
    "forward": lambda: "forward",
    "reverse": lambda: "reverse",
    "sqrt": lambda: Reverse(memory_budget="sqrt"),
}
LIMIT = 1e-6
TENSOR_CASES = [CASES[1], CASES[5]]


def problem_of(case):
    return Problem(-1.0 if case.flags.get("maximize") else 1.0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_options(case):
    problem = problem_of(case)
    step = 1e-5 if "amsgrad" in case.flags else 2e-3  # a maximum has kinks, which a difference must not straddle
    expected = {name: option_difference(problem, case, name, None, step) for name in case.tuned}
    for method in METHODS.values():
        found = hypergradient(problem, case, list(case.tuned), method())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == [pytest.approx(value, rel=LIMIT)], name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_optimizers(case):
    problem = problem_of(case)
    expected = hypergradient(problem, case, list(case.tuned), "reverse")
    found = hypergradient(problem, case, list(case.tuned), "reverse", package=metafast.optim)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=LIMIT), name


def test_a_fused_optimizer_forward():
    problem, case = Problem(), CASES[1]
    expected = hypergradient(problem, case, ["momentum"], "reverse")["momentum"]
    found = hypergradient(problem, case, ["momentum"], "forward", package=metafast.optim)["momentum"]
    assert found == pytest.approx(expected, rel=LIMIT)


@pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
def test_options_per_tensor_and_per_layer(case):
    problem = Problem()
    tune = [Tune("lr", per="tensor"), Tune("weight_decay", per="layer")]
    rates = [option_difference(problem, case, "lr", unit) for unit in range(4)]
    decays = [option_difference(problem, case, "weight_decay", unit) for unit in range(4)]
    for method in ("forward", "reverse") if case.optimizer == "SGD" else ("reverse",):
        found = hypergradient(problem, case, tune, method)
        assert found["lr"] == pytest.approx(rates, rel=LIMIT)
        assert found["weight_decay"] == pytest.approx(
            [decays[0] + decays[1], decays[2] + decays[3]], rel=LIMIT
        )  # weights and biases of the two layers


@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensors_of_the_loss(case):
    problem = Problem()
    tensors = {
        "l2": torch.tensor([0.05, 0.01, 0.03, 0.02], dtype=torch.float64, requires_grad=True),
        "shift": torch.tensor(0.2, dtype=torch.float64, requires_grad=True),
    }
    expected = {
        "l2": [tensor_difference(problem, case, tensors, "l2", unit, "log") for unit in range(4)],
        "shift": [tensor_difference(problem, case, tensors, "shift", 0, "logit")],
    }
    for method in ("forward", "reverse"):
        fresh = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
        tune = ["lr", Tune(fresh["l2"], space="log", name="l2"), Tune(fresh["shift"], space="logit", name="shift")]
        found = hypergradient(problem, case, tune, method, tensors=fresh)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=LIMIT), name


def test_a_tensor_that_the_validation_loss_uses_too():
    weight = torch.tensor(0.3, dtype=torch.float64)

    def run(shift, method=None):
        scale = (weight + shift).requires_grad_()
        model = nn.Linear(2, 1, bias=False).double()
        nn.init.constant_(model.weight, 0.5)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)

        def loss():
            return (scale * model(x) - 1).square().mean()

        if method is None:
            for _ in range(3):
                opt.zero_grad()
                loss().backward()
                opt.step()
            return (model(x) * scale.exp() - 1).square().mean().item()
        tuner = OnlineTuner(
            model,
            opt,
            Tune(scale, name="s"),
            [x],
            method,
            3,
            val_loss=lambda m, x: (m(x) * scale.exp() - 1).square().mean(),
        )
        for _ in range(3):
            tuner.step(lambda x: loss(), x)
        return tuner.state["s"].hypergradients[0][1][0]

    expected = (run(1e-5) - run(-1e-5)) / 2e-5
    assert run(0.0, "forward") == pytest.approx(expected, rel=LIMIT)
    assert run(0.0, "reverse") == pytest.approx(expected, rel=LIMIT)


def test_window_budget_and_carry_agree():
    """The last 8 of 20 steps: forward that begins anew there, reverse with a window, with whatever it stores."""
    case, problem = Case("SGD", SGD, ("lr",)), Problem()
    found = [
        hypergradient(problem, case, ["lr", "momentum"], Reverse(window=8, memory_budget=budget))
        for budget in (None, "sqrt", 23 * 2 * 8 * 5)
    ]
    assert found[1] == {k: pytest.approx(v, rel=1e-12) for k, v in found[0].items()}
    assert found[2] == {k: pytest.approx(v, rel=1e-12) for k, v in found[0].items()}
    model = problem.model()
    tuner = OnlineTuner(
        model,
        optimizer(case, model),
        ["lr", "momentum"],
        [problem.val],
        Forward(),
        every=12,
        hyper_lr=1e-300,
        val_loss=lambda model, x, y: problem.val_loss(model),
    )
    for index, (x, y) in enumerate(problem.batches):
        if index == 12:
            tuner.every = 20
        tuner.step(lambda x, y: problem.loss(model, {}, x, y), x, y)
    assert tuner.state["lr"].hypergradients[-1][1] == pytest.approx(found[0]["lr"], rel=1e-9)


def test_what_is_not_tuned_may_follow_a_schedule_and_dropout_is_replayed():
    """Forward sees each step once, reverse makes it again: they agree only if noise and options are those of then."""

    def run(method):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.4), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
        opt = torch.optim.AdamW(model.parameters(), lr=0.02, eps=1e-3, weight_decay=0.1)
        problem = Problem()
        tuner = OnlineTuner(model, opt, ["weight_decay", "betas"], [problem.val], method, every=10)
        for index, (x, y) in enumerate(problem.batches[:10]):
            opt.param_groups[0]["lr"] = 0.02 * (1 + math.cos(index / 10)) / 2
            tuner.step(lambda x, y: F.mse_loss(model(x), y), x, y)
        gradients = {name: tuned.hypergradients[0][1] for name, tuned in tuner.state.items()}
        return gradients, model.state_dict(), torch.rand(1)

    (forward, weights, noise), (reverse, same, again) = run("forward"), run(Reverse(memory_budget="sqrt"))
    for name, value in forward.items():
        assert reverse[name] == pytest.approx(value, rel=1e-9), name
    for key, value in weights.items():  # batch-norm statistics too; forward makes the optimizer's step itself
        torch.testing.assert_close(same[key], value, rtol=1e-12, atol=1e-14, msg=key)
    assert torch.equal(noise, again)


def test_a_whole_run_has_one_hypergradient_per_update():
    problem, case = Problem(), CASES[2]
    model = problem.model()
    tuner = OnlineTuner(model, optimizer(case, model), ["lr"], [problem.val], every=6)
    for x, y in problem.batches:
        tuner.step(lambda x, y: problem.loss(model, {}, x, y), x, y)
    assert [calls for calls, _ in tuner.state["lr"].hypergradients] == [6, 12, 18]
    assert [calls for calls, _ in tuner.validation] == [6, 12, 18] and tuner.calls == STEPS
