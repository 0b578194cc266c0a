"""Methods that look at one step: exact where they claim to be, and aligned with the exact hypergradient elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tune.bias import METHODS, OPTIMIZERS, hypergradients
from metafast.tune import SAMA, Forward, Implicit, OnlineTuner, Reverse, Tune
from tests.tune.tune_cases import CASES, Problem, hypergradient, optimizer

SHORT = [CASES[0], CASES[1], CASES[5]]


def tensors():
    return {"l2": torch.tensor([0.05, 0.01, 0.03, 0.02], dtype=torch.float64, requires_grad=True)}


def everything(case, l2):
    return [*case.tuned, Tune(l2, space="log", name="l2")]


def last_step(case, method):
    """The hypergradient of the last of 20 steps alone."""
    problem, mine = Problem(), tensors()
    model = problem.model()
    opt = optimizer(case, model)
    tuner = OnlineTuner(
        model,
        opt,
        everything(case, mine["l2"]),
        [problem.val],
        method,
        every=1,
        hyper_lr=1e-300,
        val_loss=lambda model, x, y: problem.val_loss(model),
    )
    for x, y in problem.batches:
        tuner.step(lambda x, y: problem.loss(model, mine, x, y), x, y)
    return {name: tuned.hypergradients[-1][1] for name, tuned in tuner.state.items()}


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_one_step_is_exact_for_one_step_and_sama_is_its_difference(case):
    expected = last_step(case, "reverse")  # a window of one step
    for name, value in last_step(case, "one_step").items():
        assert value == pytest.approx(expected[name], rel=1e-10), name
    for name, value in last_step(case, SAMA(radius=1e-3)).items():
        assert value == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_differences_equal_second_derivatives(case):
    expected = last_step(case, Implicit(terms=3))
    for name, value in last_step(case, Implicit(terms=3, hvp="difference", radius=1e-3)).items():
        assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-8), name


def quadratic(method, momentum=0.5, rate=0.3, every=110):
    """L = (theta - t)' A (theta - t) / 2 + e^h |theta|^2 / 2, where the fixed point is known."""
    matrix = torch.tensor([[2.0, 0.3], [0.3, 0.7]], dtype=torch.float64)
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    h = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    model = nn.Linear(2, 1, bias=False).double()
    opt = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)

    def loss():
        theta = model.weight[0]
        return 0.5 * (theta - target) @ matrix @ (theta - target) + 0.5 * h * theta.square().sum()

    def val_loss(model, goal):
        return (model.weight[0] - goal).square().sum()

    goal = torch.tensor([0.5, 0.5], dtype=torch.float64)
    if isinstance(method, type):
        method = method()
    tuner = OnlineTuner(
        model, opt, Tune(h, space="log", name="h"), [(goal,)], method, every, val_loss=val_loss, normalize=False
    )
    for _ in range(every):
        tuner.step(lambda *_: loss(), 0)
    eye = torch.eye(2, dtype=torch.float64)
    fixed = torch.linalg.solve(matrix + 0.4 * eye, matrix @ target)
    slope = -torch.linalg.solve(matrix + 0.4 * eye, fixed)
    return tuner.state["h"].hypergradients[0][1][0], float(2 * (fixed - goal) @ slope * 0.4)


@pytest.mark.parametrize(
    "method",
    [Implicit(terms=100), Implicit(terms=2, solver="cg"), Forward, "reverse"],
    ids=["neumann", "cg", "f", "r"],
)
def test_at_a_fixed_point_all_find_the_implicit_gradient(method):
    found, expected = quadratic(method)
    assert found == pytest.approx(expected, rel=1e-8)


def test_conjugate_gradients_stop_at_negative_curvature():
    problem, case = Problem(-1.0), CASES[0]
    mine = tensors()
    found = hypergradient(problem, case, [Tune(mine["l2"], space="log", name="l2")], Implicit(3, "cg"), tensors=mine)
    assert all(torch.tensor(found["l2"]).isfinite())


# where the benchmark says so: benchmarks/results/tune_bias.json has all horizons
ALIGNED = {
    20: ["forward, no HVP", "forward, no HVP, decay 0.9", "implicit, 20 terms", "implicit, 5 terms"],
    5: ["one_step", "sama"],
}


@pytest.mark.parametrize("horizon", ALIGNED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cosine_of_options(optimizer, horizon):
    exact = hypergradients(optimizer, Reverse(), horizon, seed=0)["options"]
    for name in ALIGNED[horizon]:
        found = hypergradients(optimizer, METHODS[name](), horizon, seed=0)["options"]
        assert nn.functional.cosine_similarity(found, exact, dim=0) >= 0.9, name
