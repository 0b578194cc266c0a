"""The differentiable updates are those of the optimizers, step by step."""

from __future__ import annotations

import pytest
import torch

import metafast
from metafast.tune._dynamics import THETA, Dynamics
from metafast.tune._updates import RULES
from tests.helpers import assert_close
from tests.tune.tune_cases import CASES, Case

MORE = [Case("SGD", {"lr": 0.1}, ()), Case("SGD", {"lr": 0.1, "momentum": 0.9}, (), {"maximize": True})]
MORE += [Case("Adam", {"lr": 0.1, "weight_decay": 0.1}, (), {"maximize": True}), Case("AdamW", {"lr": 0.1}, ())]
PACKAGES = [torch.optim, metafast.optim]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("case", [*CASES, *MORE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_the_optimizer(case, package, dtype):
    params = [torch.randn(3, 4, dtype=dtype).requires_grad_(), torch.randn(5, dtype=dtype).requires_grad_()]
    idle = torch.randn(2, dtype=dtype).requires_grad_()
    opt = getattr(package, case.optimizer)([*params, idle], **case.options, **case.flags)
    dynamics = Dynamics(opt, opt.param_groups, [])
    state = dynamics.state().clone()
    before = idle.detach().clone()
    for index in range(15):
        grads = [torch.randn_like(p) for p in params]
        grads[1][0] = 0.0
        if index % 4 == 3:
            grads[0] = None  # this parameter sits a step out
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        state = dynamics.step(state, [*grads, None], dynamics.options())
        opt.step()
        found = dynamics.state()
        for mine, theirs in zip(state.slots, found.slots, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert_close(mine[name], theirs[name], f"{name} at step {index}", factor=10)
    assert torch.equal(state.slots[2][THETA], before)


def test_half_precision_parameters_are_computed_in_float32():
    param = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    opt = torch.optim.SGD([param], lr=0.5)
    dynamics = Dynamics(opt, opt.param_groups, [])
    new = dynamics.step(dynamics.state(), [torch.ones(4, dtype=torch.bfloat16)], dynamics.options())
    assert new.slots[0][THETA].dtype is torch.float32 and new.slots[0][THETA].tolist() == [0.5] * 4


def test_an_element_without_gradients_has_finite_derivatives():
    """Its second moment is 0, where the square root has no derivative."""
    param = torch.ones(2, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.Adam([param], lr=0.1)
    dynamics = Dynamics(opt, opt.param_groups, [])
    grads = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    state = dynamics.state()
    pulled = dynamics.pull(
        state, grads, dynamics.options(), [{k: torch.ones_like(v) for k, v in state.slots[0].items()}]
    )
    assert all(v.isfinite().all() for v in (*pulled.slots[0].values(), pulled.grads[0]))
    pushed = dynamics.push(state, grads, dynamics.options(), pulled.slots, pulled.grads, None, 0)
    assert all(v.isfinite().all() for v in pushed[0].values())


def test_the_table_has_every_optimizer_of_the_package():
    assert {getattr(metafast.optim, name) for name in metafast.optim.__all__} <= set(RULES)
