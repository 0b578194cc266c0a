"""Storage: 16-bit parameters and states, masters, stochastic rounding; every way that a tensor can lie in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_cases import BACKENDS, CLASSES, HYPERGRADS, copies, gradients, make_params, ours, run, theirs
from torch import Tensor

import metafast

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", HALVES)
def test_masters_train_as_fp32_does(name: str, dtype: torch.dtype) -> None:
    """With masters, the 16-bit parameters are the rounded fp32 ones after any number of steps."""
    params = make_params(((40,), (7, 9)), dtype)
    full = copies(params, torch.float32)
    options = {"lr": 1e-4, **({"momentum": 0.9} if name == "SGD" else {})}
    opt = ours(name)(params, master_weights=True, **options)
    grads = list(gradients(params, 30))
    run(opt, params, iter(grads))
    run(theirs(name)(full, **options), full, iter([[g.float() for g in step] for step in grads]))
    for p, f in zip(params, full, strict=True):
        torch.testing.assert_close(opt.state[p]["master"], f.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(p.detach(), opt.state[p]["master"].to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_masters_start_from_the_parameters(dtype: torch.dtype) -> None:
    params = make_params(((9,),), dtype)
    before = params[0].detach().clone()
    opt = metafast.optim.SGD(params, lr=0.0, master_weights=True)
    run(opt, params, gradients(params, 1))
    assert torch.equal(opt.state[params[0]]["master"], before.float())
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("dtype", HALVES)
def test_states_are_fp32_unless_asked(dtype: torch.dtype) -> None:
    params = make_params(((9,),), dtype)
    opt = metafast.optim.AdamW(params)
    run(opt, params, gradients(params, 1))
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    other = make_params(((9,),))
    opt = metafast.optim.AdamW(other, state_dtype=torch.bfloat16, amsgrad=True)
    run(opt, other, gradients(other, 1))
    assert {v.dtype for k, v in opt.state[other[0]].items() if k != "step"} == {torch.bfloat16}


@pytest.mark.parametrize("name", CLASSES)
def test_bf16_states_stay_near_fp32_ones(name: str) -> None:
    for stochastic in (False, True):
        params = make_params(((500,),))
        full = copies(params)
        options = {"lr": 0.01, **({"momentum": 0.9} if name == "SGD" else {})}
        opt = ours(name)(params, state_dtype=torch.bfloat16, stochastic_rounding=stochastic, **options)
        run(opt, params, gradients(params, 20))
        run(theirs(name)(full, **options), full, gradients(full, 20))
        start = make_params(((500,),))
        moved = (full[0] - start[0]).detach()
        assert (params[0] - full[0]).detach().norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_stochastic_rounding_is_unbiased(backend: str) -> None:
    """Steps far below a bf16 ulp: to nearest they are lost, stochastically they arrive on average."""
    count = 50_000
    results: dict[bool, Tensor] = {}
    for stochastic in (False, True):
        param = torch.nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
        opt = metafast.optim.SGD(
            [param], lr=1e-3, stochastic_rounding=stochastic, backend=None if backend == "cpu" else backend
        )
        for _ in range(4):
            param.grad = torch.full((count,), -1.0, dtype=torch.bfloat16)  # ulp of 1 is 2^-7
            opt.step()
        results[stochastic] = param.detach().double()
    assert (results[False] == 1.0).all()
    mean = results[True].mean().item() - 1.0
    p = 4e-3 * 128  # about half of the elements have gone up by one ulp
    standard_error = (p * (1 - p) / count) ** 0.5 / 128
    assert abs(mean - 4e-3) < 5 * standard_error
    assert set(results[True].unique().tolist()) <= {1.0, 1.0 + 2**-7, 1.0 + 2**-6, 1.0 + 3 * 2**-7, 1.0 + 2**-5}


def test_states_and_parameters_round_independently() -> None:
    """Correlated bits would bias the product of a state and a parameter."""
    count = 50_000
    param = torch.nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    opt = metafast.optim.SGD(
        [param], lr=1e-3, momentum=0.9, weight_decay=2**-8, state_dtype=torch.bfloat16, stochastic_rounding=True
    )
    param.grad = torch.ones(count, dtype=torch.bfloat16)  # the momentum is 1 + 2^-8 then, half an ulp above 1
    opt.step()
    up_p = (param.detach().double() == 1.0).double()
    up_m = (opt.state[param]["momentum_buffer"].double() > 1.0).double()
    assert 0.5 < up_p.mean() < 0.9
    assert 0.2 < up_m.mean() < 0.8
    assert abs(torch.corrcoef(torch.stack([up_p, up_m]))[0, 1]) < 0.03


def test_stochastic_rounding_is_seeded_and_differs_from_step_to_step_and_tensor_to_tensor() -> None:
    def rounded(seed: int, steps: int = 1) -> list[Tensor]:
        params = [torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2)]
        opt = metafast.optim.SGD(params, lr=4e-3, stochastic_rounding=True, seed=seed)
        for _ in range(steps):
            for p in params:
                p.data.fill_(1.0)
                p.grad = torch.full((300,), -1.0, dtype=torch.bfloat16)
            opt.step()
        return [p.detach() for p in params]

    a, b = rounded(1), rounded(1)
    assert all(map(torch.equal, a, b))
    for other in (rounded(2)[0], a[1], rounded(1, steps=2)[0]):
        assert 100 < (a[0] != other).sum() < 200  # about half of the elements


@pytest.mark.parametrize("name", CLASSES)
def test_mixed_dtypes_in_one_group(name: str) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    params = [make_params(((20,),), d, seed=i)[0] for i, d in enumerate(dtypes)]
    peer = copies(params, torch.float64)
    run(ours(name)(params, lr=0.01), params, gradients(params, 3))
    run(theirs(name)(peer, lr=0.01), peer, gradients(params, 3))
    for p, q in zip(params, peer, strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=4 * eps, atol=4 * eps)


def test_fp32_gradients_of_bf16_parameters() -> None:
    param = make_params(((20,),), torch.bfloat16)[0]
    exact = copies([param], torch.float64)[0]
    if hasattr(param, "grad_dtype"):
        param.grad_dtype = None
    gradient = torch.randn(20)
    param.grad, exact.grad = gradient, gradient.double()
    metafast.optim.SGD([param], lr=0.1).step()
    torch.optim.SGD([exact], lr=0.1).step()
    assert torch.equal(param.detach(), exact.detach().float().bfloat16())


# ---- memory


def layouts() -> dict[str, Tensor]:
    return {
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "channels_last_3d": torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
        "transposed": torch.randn(6, 9).t(),
        "permuted": torch.randn(3, 4, 5).permute(2, 0, 1),
        "gaps": torch.randn(6, 8)[:, ::2],
        "rows": torch.randn(6, 8)[::2],
        "offset": torch.randn(101)[3:90],
        "column": torch.randn(9, 5)[:, 2],
        "0-d": torch.randn(()),
        "empty": torch.randn(0, 5),
        "one": torch.randn(1, 1, 1),
    }


@pytest.mark.parametrize("granularity", [None, *HYPERGRADS])
@pytest.mark.parametrize("kind", layouts())
def test_layouts(kind: str, granularity: str | None) -> None:
    """Any layout gives what a contiguous parameter gives, in place; the memory between its elements is not touched."""
    value = layouts()[kind]
    neighbours = value.detach().clone() if value._is_view() is False else value
    base = neighbours._base if neighbours._base is not None else neighbours
    outside = base.clone()
    param = torch.nn.Parameter(neighbours)
    plain = torch.nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
    assert param.data_ptr() == neighbours.data_ptr()
    options: dict[str, Any] = {"hypergrad": granularity, "amsgrad": True, "safe_start": None}
    opt, other = metafast.optim.AdamW([param], **options), metafast.optim.AdamW([plain], **options)
    strides = param.stride()
    for grads in gradients([plain], 4):
        param.grad = torch.empty_like(param).copy_(grads[0])
        plain.grad = grads[0]
        opt.step()
        other.step()
    # Sums run in the order of memory, so that a learned rate may differ in its last bit.
    torch.testing.assert_close(param.detach(), plain.detach(), rtol=1e-6, atol=1e-7)
    assert param.stride() == strides
    assert opt.state[param]["exp_avg"].shape == param.shape
    torch.testing.assert_close(opt.state[param]["exp_avg"], other.state[plain]["exp_avg"])
    written = torch.zeros_like(base, dtype=torch.bool)
    written.as_strided(param.shape, param.stride(), param.storage_offset()).fill_(True)
    assert torch.equal(base[~written], outside[~written])


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_with_other_strides(dtype: torch.dtype, clip: float | None) -> None:
    shape = (4, 3, 5, 5)
    kinds: list[Tensor] = [
        torch.randn(shape).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 5, 10)[..., ::2],
        torch.randn(5, 5, 3, 4).permute(3, 2, 1, 0),
        torch.randn(3, 1, 1).expand(shape),
        torch.ones(()).expand(shape),
    ]
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for _ in kinds]
    peer = copies(params)
    opt, torch_opt = metafast.optim.AdamW(params, max_grad_norm=clip), torch.optim.AdamW(peer)
    for _ in range(3):
        for p, q, g in zip(params, peer, kinds, strict=True):
            p.grad, q.grad = g.to(dtype), g.to(dtype).contiguous().clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(peer, clip)
        opt.step()
        torch_opt.step()
    torch.testing.assert_close(params, peer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", [None, "tensor", "element"])
@pytest.mark.parametrize("change", ["channels_last", "transposed", "gaps", "same"])
def test_parameter_data_swapped_between_steps(change: str, granularity: str | None) -> None:
    """`p.data = ...` and `model.to(memory_format=...)` after the first step: states follow."""
    params = make_params(((4, 3, 5, 5), (6, 4)))
    plain = copies(params)
    options: dict[str, Any] = {"hypergrad": granularity, "amsgrad": True}
    opt, other = metafast.optim.AdamW(params, **options), metafast.optim.AdamW(plain, **options)
    for step, grads in enumerate(gradients(params, 6)):
        if step == 3:
            if change == "channels_last":
                params[0].data = params[0].data.to(memory_format=torch.channels_last)
            elif change == "transposed":
                params[1].data = params[1].data.t().contiguous().t()
            elif change == "gaps":
                params[1].data = torch.zeros(6, 8)[:, ::2].copy_(params[1].data)
            else:
                params[1].data = params[1].data.clone()
        for p, q, g in zip(params, plain, grads, strict=True):
            p.grad, q.grad = g.clone(), g
        opt.step()
        other.step()
    torch.testing.assert_close(params, plain, rtol=1e-6, atol=1e-7)
    assert [float(opt.state[p]["step"]) for p in params] == [6.0, 6.0]


def test_tied_parameters_step_once() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    other[1].weight = other[0].weight
    other.load_state_dict(model.state_dict())
    opt, torch_opt = metafast.optim.AdamW(model.parameters()), torch.optim.AdamW(other.parameters())
    for m, o in ((model, opt), (other, torch_opt)):
        for _ in range(3):
            o.zero_grad()
            m(torch.ones(2, 4)).square().sum().backward()
            o.step()
    assert len(opt.param_groups[0]["params"]) == 3
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_only_empty_tensors() -> None:
    for granularity in (None, *HYPERGRADS):
        params = make_params(((0,), (3, 0)))
        opt = metafast.optim.AdamW(params, lr=0.01, hypergrad=granularity, max_grad_norm=1.0)
        run(opt, params, gradients(params, 3))
        assert opt.tensor_stats().sum() == 0
        assert opt.learned_lr() == pytest.approx([0.01] * len(opt.learned_lr()))
