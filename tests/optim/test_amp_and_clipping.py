"""GradScaler, and clipping in the step's own pass."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from optim_cases import BACKENDS, CLASSES, HYPERGRADS, copies, gradients, make_params, ours, run, states_equal, theirs

import metafast


def scaled_loss_step(scaler: torch.amp.GradScaler, opt: Any, param: torch.Tensor, weight: torch.Tensor) -> None:
    opt.zero_grad()
    scaler.scale((param * weight).sum()).backward()
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("granularity", [None, *HYPERGRADS])
@pytest.mark.parametrize("name", CLASSES)
def test_an_infinite_gradient_changes_nothing(name: str, granularity: str | None, exact: bool) -> None:
    params = make_params(((6,), (3,)), torch.bfloat16)
    opt = ours(name)(
        params, lr=0.01, hypergrad=granularity, hyper_exact=exact, stochastic_rounding=True, max_grad_norm=1.0
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    bad = torch.tensor([1.0, math.inf, 1.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16)
    scaled_loss_step(scaler, opt, params[0], bad)  # also before the first step
    assert not opt.state
    assert opt.lr_history == []
    good = torch.arange(6.0, dtype=torch.bfloat16)
    scaled_loss_step(scaler, opt, params[0], good)
    kept = copy.deepcopy((opt.state_dict(), [p.detach() for p in params], opt.lr_history, opt.learned_lr()))
    scaled_loss_step(scaler, opt, params[0], bad)
    now = (opt.state_dict(), [p.detach() for p in params], opt.lr_history, opt.learned_lr())
    assert states_equal(kept, now), "a skipped step left a trace"
    scaled_loss_step(scaler, opt, params[0], good)
    assert float(opt.state[params[0]]["step"]) == 2.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("granularity", [None, "tensor"])
def test_scaled_steps_equal_steps_without_a_scaler(
    granularity: str | None, clip: float | None, unscale: bool, backend: str
) -> None:
    params = make_params(((6,), (4, 3)))
    plain = copies(params)
    options: dict[str, Any] = {"max_grad_norm": clip, "hypergrad": granularity, "lr": 0.01}
    opt = metafast.optim.AdamW(params, backend=None if backend == "cpu" else backend, **options)
    other = metafast.optim.AdamW(plain, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)  # powers of two: exact in fp32
    for grads in gradients(params, 6):
        opt.zero_grad()
        scaler.scale(sum((p * g).sum() for p, g in zip(params, grads, strict=True))).backward()
        if unscale:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        for p, g in zip(plain, grads, strict=True):
            p.grad = g
        other.step()
    torch.testing.assert_close(params, plain, rtol=1e-6, atol=1e-7)
    assert opt.learned_lr() == pytest.approx(other.learned_lr(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("name", CLASSES)
def test_max_grad_norm_is_clip_grad_norm(name: str, norm: float, backend: str) -> None:
    """Over all groups and buckets together, with a parameter that has no gradient."""
    shapes = ((6,), (40, 30), (), (0,), (5,), (20000,))
    params = make_params(shapes)
    peer = copies(params)
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {"eps": 0.1})}  # an eps that lets scales show
    opt = ours(name)(
        [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}],
        max_grad_norm=norm,
        backend=None if backend == "cpu" else backend,
        **options,
    )
    torch_opt = theirs(name)([{"params": peer[:2]}, {"params": peer[2:], "lr": 0.01}], **options)
    for grads in gradients(params, 4):
        for index, (p, q, g) in enumerate(zip(params, peer, grads, strict=True)):
            p.grad, q.grad = (None, None) if index == 4 else (g, g.clone())
        total = torch.nn.utils.clip_grad_norm_(peer, norm)
        opt.step()
        torch_opt.step()
        torch.testing.assert_close(opt.last_grad_norm, total, rtol=1e-5, atol=0)
    torch.testing.assert_close(params, peer, rtol=1e-5, atol=1e-6)


def test_clipping_with_half_and_double_parameters() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    params = [make_params(((20,),), d, seed=i)[0] for i, d in enumerate(dtypes)]
    exact = copies(params, torch.float64)
    for p, q, g in zip(params, exact, next(gradients(params, 1)), strict=True):
        p.grad, q.grad = g, g.double()
    metafast.optim.SGD(params, lr=1.0, max_grad_norm=0.5).step()
    torch.nn.utils.clip_grad_norm_(exact, 0.5)
    torch.optim.SGD(exact, lr=1.0).step()
    for p, q in zip(params, exact, strict=True):
        eps = max(torch.finfo(p.dtype).eps, 1e-7)
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=2 * eps, atol=2 * eps)


def test_clipped_gradients_are_the_ones_that_the_rates_see() -> None:
    params, clipped = make_params(((30,), (4,))), make_params(((30,), (4,)))
    options: dict[str, Any] = {"lr": 1e-3, "hypergrad": "tensor", "hyper_rule": "additive", "hyper_lr": 1e-3}
    opt = metafast.optim.SGD(params, max_grad_norm=0.3, **options)
    other = metafast.optim.SGD(clipped, **options)
    for grads in gradients(params, 5):
        run(opt, params, iter([grads]))
        for q, g in zip(clipped, grads, strict=True):
            q.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(clipped, 0.3)
        other.step()
    assert opt.learned_lr() == pytest.approx(other.learned_lr(), rel=1e-5)
    torch.testing.assert_close(opt.tensor_stats(), other.tensor_stats(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_clipping_a_norm_that_is_not_finite_does_what_torch_does(bad: float) -> None:
    params = make_params(((3,),))
    peer = copies(params)
    gradient = torch.tensor([1.0, bad, 2.0])
    params[0].grad, peer[0].grad = gradient, gradient.clone()
    torch.nn.utils.clip_grad_norm_(peer, 1.0)
    metafast.optim.SGD(params, lr=0.1, max_grad_norm=1.0).step()
    torch.optim.SGD(peer, lr=0.1).step()
    torch.testing.assert_close(params, peer, equal_nan=True)
