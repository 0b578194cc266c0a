"""Without a hypergradient, SGD, Adam and AdamW are those of torch.optim."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_cases import (
    BACKENDS,
    CASE_IDS,
    CLASSES,
    TORCH_CASES,
    assert_as_good,
    copies,
    gradients,
    make_params,
    ours,
    run,
    theirs,
)

SHAPES = ((), (1,), (63,), (3, 4, 5), (4097,), (0,), (130, 130))


@pytest.mark.parametrize("name", CLASSES)
def test_same_defaults(name: str) -> None:
    mine = {k: p.default for k, p in inspect.signature(ours(name).__init__).parameters.items()}
    peer = {k: p.default for k, p in inspect.signature(theirs(name).__init__).parameters.items()}
    shared = set(mine) & set(peer) - {"self", "params"}
    assert {"lr", "weight_decay", *(("betas", "eps", "amsgrad") if name != "SGD" else ("momentum",))} <= shared
    opt = ours(name)(make_params([(2,)]))
    torch_opt = theirs(name)(make_params([(2,)]))
    for key in set(opt.defaults) & set(torch_opt.defaults):
        assert opt.defaults[key] == torch_opt.defaults[key], key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "options"), TORCH_CASES, ids=CASE_IDS)
def test_many_steps(name: str, options: dict[str, Any], backend: str) -> None:
    params = make_params(SHAPES)
    peer, oracle = copies(params), copies(params, torch.float64)
    grads = list(gradients(params, 25))
    run(ours(name)(params, backend=backend, **options), params, iter(grads))
    run(theirs(name)(peer, foreach=False, **options), peer, iter(grads))
    run(theirs(name)(oracle, foreach=False, **options), oracle, iter(grads))
    assert_as_good(params, peer, oracle)


@pytest.mark.parametrize(("name", "options"), TORCH_CASES, ids=CASE_IDS)
def test_float64_parameters(name: str, options: dict[str, Any]) -> None:
    params = make_params(((3, 4), (7,), ()), torch.float64)
    peer = copies(params)
    grads = list(gradients(params, 20))
    opt = ours(name)(params, **options)
    run(opt, params, iter(grads))
    run(theirs(name)(peer, foreach=False, **options), peer, iter(grads))
    torch.testing.assert_close(params, peer, rtol=1e-12, atol=1e-13)
    assert all(s.dtype is torch.float64 for k, s in opt.state[params[0]].items() if k not in ("step", "learned_lr"))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_states_equal_torchs(name: str, fused: bool) -> None:
    params = make_params(((33, 7),))
    peer = copies(params)
    options = {"lr": 0.01, **({"momentum": 0.9} if name == "SGD" else {"amsgrad": True})}
    grads = list(gradients(params, 20))
    opt, torch_opt = ours(name)(params, **options), theirs(name)(peer, fused=fused, **options)
    run(opt, params, iter(grads))
    run(torch_opt, peer, iter(grads))
    compared = set(torch_opt.state[peer[0]])
    assert compared <= set(opt.state[params[0]])
    for key in compared:
        torch.testing.assert_close(opt.state[params[0]][key], torch_opt.state[peer[0]][key], rtol=1e-5, atol=1e-6)


shapes = st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 17, 64]), max_size=3).map(tuple), min_size=1, max_size=5)


@given(
    shapes=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    case=st.sampled_from(TORCH_CASES),
    layout=st.sampled_from(["contiguous", "transposed", "gaps", "mixed"]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 1000),
)
def test_any_shape_dtype_and_layout(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    case: tuple[str, dict[str, Any]],
    layout: str,
    backend: str,
    seed: int,
) -> None:
    name, options = case
    generator = torch.Generator().manual_seed(seed)

    def laid_out(shape: tuple[int, ...], kind: str) -> torch.Tensor:
        value = torch.randn(shape, generator=generator).to(dtype)
        if kind == "transposed" and len(shape) >= 2:
            return value.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "gaps" and len(shape) >= 1:
            return torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2].copy_(value)
        return value

    kinds = ["contiguous", "transposed", "gaps"]
    params = [
        torch.nn.Parameter(laid_out(shape, kinds[i % 3] if layout == "mixed" else layout))
        for i, shape in enumerate(shapes)
    ]
    # fp32 states whatever the parameters' dtype, so the oracle rounds to that dtype once per step.
    oracle = copies(params, torch.float64)
    strides = [p.stride() for p in params]
    opt = ours(name)(params, backend=None if backend == "cpu" else backend, **options)
    torch_opt = theirs(name)(oracle, foreach=False, **options)
    for grads in gradients(params, 3, seed):
        for p, q, g in zip(params, oracle, grads, strict=True):
            q.data.copy_(p.detach())  # compare single steps: rounding to 16 bits must not build up
            p.grad, q.grad = g, g.double()
        opt.step()
        torch_opt.step()
        for p, q in zip(params, oracle, strict=True):
            tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
            torch.testing.assert_close(p.detach().double(), q.detach(), rtol=tolerance, atol=tolerance)
    assert [p.stride() for p in params] == strides


def test_tensor_lr_equals_float_lr() -> None:
    for name in CLASSES:
        params = make_params(((40,),))
        peer = copies(params)
        rate = torch.tensor(0.01)
        opt, torch_opt = ours(name)(params, lr=rate), theirs(name)(peer, lr=0.01, foreach=False)
        grads = list(gradients(params, 10))
        run(opt, params, iter(grads[:5]))
        run(torch_opt, peer, iter(grads[:5]))
        torch.testing.assert_close(params, peer, rtol=2e-6, atol=2e-6)
        rate.fill_(0.1)  # in place: CUDA graphs and compiled schedulers do that
        torch_opt.param_groups[0]["lr"] = 0.1
        run(opt, params, iter(grads[5:]))
        run(torch_opt, peer, iter(grads[5:]))
        torch.testing.assert_close(params, peer, rtol=2e-6, atol=2e-6)


def test_capturable_steps_live_on_the_device_and_change_nothing() -> None:
    params = make_params(((40,),))
    peer = copies(params)
    grads = list(gradients(params, 5))
    run(ours("AdamW")(params, capturable=True), params, iter(grads))
    run(ours("AdamW")(peer), peer, iter(grads))
    assert torch.equal(params[0], peer[0])
