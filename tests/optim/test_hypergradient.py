"""Learned rates: the paper's algorithms, every rule and granularity, and what must hold for any of them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optim_cases import (
    BACKENDS,
    CLASSES,
    HYPERGRADS,
    LOGISTIC_SHAPES,
    RULES,
    PlainHD,
    adam_direction,
    copies,
    gradients,
    logistic_loss,
    make_params,
    ours,
    run,
    sgd_direction,
    states_equal,
)
from torch import Tensor

import metafast

SEGMENTS = {"global": [0, 0, 0, 0], "group": [0, 0, 1, 1], "tensor": [0, 1, 2, 3], "element": None}
HYPER_LR = {"additive": 1e-3, "multiplicative": 0.05, "normalized": 0.05, "sign": 0.05}

METHODS: dict[str, tuple[str, dict[str, Any], Callable[[], Callable[..., Tensor]], float]] = {
    "sgd-hd": ("SGD", {"lr": 0.05}, lambda: sgd_direction(), 0.0),
    "sgd-momentum-hd": ("SGD", {"lr": 0.05, "momentum": 0.9}, lambda: sgd_direction(0.9), 0.0),
    "sgdn-hd": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}, lambda: sgd_direction(0.9, True), 0.0),
    "adam-hd": ("Adam", {"lr": 0.01}, lambda: adam_direction(), 0.0),
    "adamw-hd": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}, lambda: adam_direction(), 0.1),
}


def both(
    method: str, granularity: str, rule: str, *, exact: bool, dtype: torch.dtype, backend: str, steps: int = 15
) -> tuple[list[Tensor], metafast.optim.AdamW, PlainHD]:
    name, options, direction, decay = METHODS[method]
    params = make_params(LOGISTIC_SHAPES, dtype)
    plain = PlainHD(
        params,
        logistic_loss(),
        direction(),
        segments=SEGMENTS[granularity],
        lr=options["lr"],
        hyper_lr=HYPER_LR[rule],
        rule=rule,
        late=not exact,
        decay=decay,
    )
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    opt = ours(name)(
        groups,
        hypergrad=granularity,
        hyper_rule=rule,
        hyper_lr=HYPER_LR[rule],
        hyper_exact=exact,
        safe_start=None,  # the paper has none
        backend=None if backend == "cpu" else backend,
        **options,
    )
    loss = logistic_loss()
    for _ in range(steps):
        opt.zero_grad()
        loss(params).backward()
        opt.step()
        plain.step()
    return params, opt, plain


def assert_same(params: list[Tensor], opt: Any, plain: PlainHD, tolerance: float) -> None:
    for mine, value in zip(params, plain.values, strict=True):
        torch.testing.assert_close(mine.detach().double(), value, rtol=tolerance, atol=tolerance)
    expected = [float(rate.mean()) for rate in plain.rates]
    assert opt.learned_lr() == pytest.approx(expected, rel=10 * tolerance)


# float64 parameters take the reference; the native kernels are held to fp32.
PRECISIONS = [("reference", torch.float64, 2e-6), (BACKENDS[-1], torch.float32, 1e-4)]


@pytest.mark.parametrize(("backend", "dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("granularity", HYPERGRADS)
@pytest.mark.parametrize("method", METHODS)
def test_additive_exact_is_the_paper(
    method: str, granularity: str, backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Baydin et al. 2018, Algorithms 4 (SGD-HD), 5 (Adam-HD) and 6 (SGDN-HD)."""
    params, opt, plain = both(method, granularity, "additive", exact=True, dtype=dtype, backend=backend)
    assert_same(params, opt, plain, tolerance)
    rates = torch.cat([rate.reshape(-1) for rate in plain.rates])
    assert (rates - METHODS[method][1]["lr"]).abs().max() > 1e-5  # the rates did move


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("method", "granularity"), list(zip(METHODS, ["global", "group", "tensor"] * 2, strict=False)))
def test_one_pass_is_the_rate_one_step_late(method: str, granularity: str, rule: str) -> None:
    params, opt, plain = both(method, granularity, rule, exact=False, dtype=torch.float32, backend="cpu")
    assert_same(params, opt, plain, 1e-4)


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("granularity", HYPERGRADS)
@pytest.mark.parametrize("method", ["sgdn-hd", "adam-hd"])
def test_other_rules_exact(method: str, granularity: str, rule: str) -> None:
    params, opt, plain = both(method, granularity, rule, exact=True, dtype=torch.float32, backend="cpu")
    assert_same(params, opt, plain, 1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("method", ["sgd-hd", "sgd-momentum-hd", "sgdn-hd", "adam-hd"])
def test_coupled_decay_is_part_of_the_objective(method: str, exact: bool) -> None:
    """weight_decay=λ in SGD and Adam is the paper's algorithm on the loss f + λ/2 |θ|²."""
    name, options, direction, _ = METHODS[method]
    params = make_params(LOGISTIC_SHAPES, torch.float64)
    loss = logistic_loss()
    plain = PlainHD(
        params,
        lambda thetas: loss(thetas) + 0.05 * sum(t.square().sum() for t in thetas),
        direction(),
        segments=[0, 0, 0, 0],
        lr=options["lr"],
        hyper_lr=1e-3,
        late=not exact,
    )
    opt = ours(name)(
        params, hypergrad="global", hyper_rule="additive", hyper_lr=1e-3, hyper_exact=exact, weight_decay=0.1,
        safe_start=None, **options,
    )  # fmt: skip
    for _ in range(12):
        opt.zero_grad()
        loss(params).backward()
        opt.step()
        plain.step()
    assert_same(params, opt, plain, 1e-9)


def test_one_pass_and_exact_differ_by_exactly_that() -> None:
    """The mutation that the tests above must see: exact and late are two algorithms."""
    late = both("adam-hd", "global", "additive", exact=False, dtype=torch.float64, backend="reference")
    exact = both("adam-hd", "global", "additive", exact=True, dtype=torch.float64, backend="reference")
    assert late[1].learned_lr() != exact[1].learned_lr()
    assert not torch.equal(late[0][0], exact[0][0])


def test_element_is_exact_whatever_hyper_exact_says() -> None:
    a = both("adamw-hd", "element", "normalized", exact=False, dtype=torch.float32, backend="cpu", steps=10)
    b = both("adamw-hd", "element", "normalized", exact=True, dtype=torch.float32, backend="cpu", steps=10)
    assert all(map(torch.equal, a[0], b[0]))


@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_first_step_uses_the_starting_rate(granularity: str) -> None:
    """There is no previous direction, whatever the rule."""
    for name in CLASSES:
        for exact in (False, True):
            params = make_params(((20,), (3, 3)))
            fixed = copies(params)
            options = {"lr": 0.01, "weight_decay": 0.1}
            grads = list(gradients(params, 1))
            opt = ours(name)(
                params, hypergrad=granularity, hyper_rule="sign", hyper_exact=exact, safe_start=None, **options
            )
            run(opt, params, iter(grads))
            run(ours(name)(fixed, **options), fixed, iter(grads))
            torch.testing.assert_close(params, fixed, rtol=1e-6, atol=1e-7)
            assert opt.learned_lr() == pytest.approx([0.01] * len(opt.learned_lr()), rel=1e-6)


def test_global_rate_keeps_the_ratio_of_the_groups() -> None:
    """Two groups under one rate α: group k steps by ratio_k α, so the chain rule gives -Σ ratio_k g_k·u_k."""
    params = make_params(((6,), (4,)))
    opt = metafast.optim.SGD(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}],
        lr=0.01,
        hypergrad="global",
        hyper_rule="additive",
        hyper_lr=1e-3,
        hyper_exact=True,
        safe_start=None,
    )
    first, second = gradients(params, 2)
    run(opt, params, iter([first]))
    before = [p.detach().clone() for p in params]
    run(opt, params, iter([second]))
    gu = torch.dot(first[0], second[0]) + 2.0 * torch.dot(first[1], second[1])
    rate = 0.01 + 1e-3 * float(gu)
    assert opt.learned_lr() == pytest.approx([rate], rel=1e-5)
    torch.testing.assert_close(params[0].detach(), before[0] - rate * second[0])
    torch.testing.assert_close(params[1].detach(), before[1] - 2 * rate * second[1])


def test_groups_with_their_own_granularity_and_rule() -> None:
    shapes = ((5, 5), (7,), (9,), (4, 4), (3,))
    params, alone = make_params(shapes), make_params(shapes)

    def groups(of: list[Tensor]) -> list[dict[str, Any]]:
        return [
            {"params": of[:2], "hypergrad": "tensor", "hyper_rule": "sign"},
            {"params": of[2:3], "hypergrad": None, "lr": 0.1},
            {"params": of[3:4], "hypergrad": "group", "hyper_exact": True},
            {"params": of[4:], "hypergrad": "element", "hyper_lr": 0.2},
        ]

    opt = metafast.optim.AdamW(groups(params), lr=0.01)
    singles = [metafast.optim.AdamW([group], lr=0.01) for group in groups(alone)]
    for grads in gradients(params, 8):
        run(opt, params, iter([grads]))
        for p, g in zip(alone, grads, strict=True):
            p.grad = g
        for single in singles:
            single.step()
    assert all(map(torch.equal, params, alone))
    rates = opt.learned_lr()
    assert rates == [rate for single in singles for rate in single.learned_lr()]
    assert len(rates) == 5
    assert rates[2] == 0.1


@given(
    rule=st.sampled_from(RULES),
    granularity=st.sampled_from(HYPERGRADS),
    name=st.sampled_from(CLASSES),
    hyper_lr=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e12, 1e30, math.inf, math.nan]),
    lr=st.sampled_from([1e-8, 1e-3, 10.0]),
    exact=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
@settings(max_examples=100)
@example(
    rule="normalized",
    granularity="element",
    name="SGD",
    hyper_lr=1e6,
    scale=1.0,
    lr=1e-8,
    exact=False,
    backend="reference",
)
@example(
    rule="normalized",
    granularity="tensor",
    name="Adam",
    hyper_lr=1e6,
    scale=1.0,
    lr=1e-8,
    exact=False,
    backend="reference",
)
@example(
    rule="sign", granularity="global", name="AdamW", hyper_lr=1e6, scale=1.0, lr=1e-3, exact=True, backend=BACKENDS[-1]
)
def test_rate_stays_finite_positive_and_inside_its_bounds(
    rule: str, granularity: str, name: str, hyper_lr: float, scale: float, lr: float, exact: bool, backend: str
) -> None:
    bounds = (1e-8, 10.0)
    params = make_params(((7,), (3, 3), ()))
    opt = ours(name)(
        params, lr=lr, hypergrad=granularity, hyper_rule=rule, hyper_lr=hyper_lr, hyper_exact=exact, lr_bounds=bounds,
        backend=None if backend == "cpu" else backend,
    )  # fmt: skip
    for step, grads in enumerate(gradients(params, 4)):
        sign = -1.0 if step % 2 else 1.0
        run(opt, params, iter([[sign * scale * g for g in grads]]))
        lowest, highest = (float(torch.tensor(b, dtype=torch.float32)) for b in bounds)
        assert all(lowest <= rate <= highest for rate in opt.learned_lr()), opt.learned_lr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_nan_gradient_leaves_the_rate_as_it_was(granularity: str, bad: float, backend: str) -> None:
    for exact in (False, True):
        params = make_params(((7,), (3, 3)))
        opt = metafast.optim.SGD(
            params, lr=0.1, hypergrad=granularity, hyper_rule="additive", hyper_exact=exact,
            backend=None if backend == "cpu" else backend,
        )  # fmt: skip
        run(opt, params, gradients(params, 3))
        before = opt.learned_lr()
        params[0].grad = torch.full_like(params[0], bad)
        params[1].grad = torch.zeros_like(params[1])  # contributes nothing to a rate of its own
        opt.step()
        assert opt.learned_lr() == before


@pytest.mark.parametrize("granularity", ["global", "group", "tensor", "element"])
@pytest.mark.parametrize("exact", [False, True])
def test_rates_do_not_depend_on_the_order_of_tensors(granularity: str, exact: bool) -> None:
    shapes = [(n,) for n in (1, 7, 100, 4097, 20000, 33, 5, 64)]
    values = [p.detach() for p in make_params(shapes)]
    grads = list(gradients(values, 6))

    def trained(order: list[int]) -> tuple[list[float], list[Tensor]]:
        params = [torch.nn.Parameter(values[i].clone()) for i in order]
        opt = metafast.optim.AdamW(params, hypergrad=granularity, hyper_exact=exact, max_grad_norm=1.0)
        run(opt, params, ([step[i] for i in order] for step in grads))
        back = sorted(range(len(order)), key=order.__getitem__)
        rates = opt.learned_lr()
        return (rates if len(rates) == 1 else [rates[i] for i in back]), [params[i] for i in back]

    rates, params = trained(list(range(8)))
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 4, 1, 6, 2, 5]):
        others, other_params = trained(order)
        assert others == rates  # bit for bit
        assert all(map(torch.equal, params, other_params))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native CPU library; the reference has PyTorch's own sums")
@pytest.mark.parametrize("granularity", [None, *HYPERGRADS])
def test_nothing_depends_on_the_number_of_threads(granularity: str | None) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = make_params(((300, 333), (5,), (70000,)), torch.bfloat16)
            opt = metafast.optim.AdamW(
                params, hypergrad=granularity, stochastic_rounding=True, max_grad_norm=1.0, hyper_exact=True
            )
            run(opt, params, gradients(params, 3))
            results.append((copy.deepcopy(opt.state_dict()), [p.detach() for p in params], opt.tensor_stats()))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert states_equal(result, results[0]), "not bit for bit"  # rates are in the state dict


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "dampening": 0.2}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "maximize": True}),
        ("Adam", {}),
        ("Adam", {"amsgrad": True, "maximize": True, "betas": (0.5, 0.6)}),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_tensor_stats(name: str, options: dict[str, Any], exact: bool, backend: str) -> None:
    """u is what the step before has moved the parameters by, per unit of rate: recomputed, or kept."""
    params = make_params(((40,), (3, 5)))
    opt = ours(name)(
        params, lr=0.1, hypergrad="tensor", hyper_exact=exact, hyper_lr=0.0, safe_start=None,
        backend=None if backend == "cpu" else backend, **options,
    )  # fmt: skip
    assert opt.tensor_stats().isnan().all()
    steps = list(gradients(params, 4))
    run(opt, params, iter(steps[:3]))
    before = [p.detach().double() for p in params]
    run(opt, params, iter(steps[2:3]))
    u = [(b - p.detach().double()) / 0.1 for b, p in zip(before, params, strict=True)]
    before = [p.detach().double() for p in params]
    run(opt, params, iter(steps[3:]))
    for row, g, direction, p in zip(opt.tensor_stats(), steps[3], u, before, strict=True):
        g = -g.double() if options.get("maximize") else g.double()
        expected = torch.stack([(g * g).sum(), (g * direction).sum(), (direction * direction).sum(), (p * p).sum()])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_stats_that_are_not_known_are_nan() -> None:
    params = make_params(((5,), (4,)))
    opt = metafast.optim.SGD(params)
    params[0].grad = torch.ones(5)
    opt.step()
    row, untouched = opt.tensor_stats()
    assert row[:1].item() == 5.0
    assert row[1:3].isnan().all()
    assert untouched.isnan().all()


def test_history_is_bounded_and_evenly_thinned() -> None:
    params = make_params(((3,),))
    opt = metafast.optim.AdamW(params, hypergrad="tensor")
    params[0].grad = torch.ones(3)
    seen = []
    for _ in range(2500):
        opt.step()
        seen.append(opt.state[params[0]]["learned_lr"].item())
    history = opt.lr_history
    steps = [step for step, _ in history]
    assert 1024 <= len(history) <= 2048
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1
    assert 2495 <= steps[-1] <= 2500
    assert all(rates == [seen[step - 1]] for step, rates in history)  # what it was then, not what it became


def test_learned_lr_counts() -> None:
    shapes = ((5,), (4,), (3,))

    def count(granularity: str | None) -> int:
        params = make_params(shapes)
        opt = metafast.optim.Adam([{"params": params[:2]}, {"params": params[2:]}], hypergrad=granularity)
        run(opt, params, gradients(params, 2))
        assert [len(rates) for _, rates in opt.lr_history] in ([len(opt.learned_lr())] * 2, [])
        return len(opt.learned_lr())

    assert [count(g) for g in (None, *HYPERGRADS)] == [2, 1, 2, 3, 3]


def test_it_learns() -> None:
    """From a rate far too small, each granularity reaches a loss that the fixed rate does not."""
    for granularity in HYPERGRADS:
        params, fixed = make_params(LOGISTIC_SHAPES), make_params(LOGISTIC_SHAPES)
        loss = logistic_loss()
        opt = metafast.optim.AdamW(params, lr=1e-4, hypergrad=granularity)
        other = metafast.optim.AdamW(fixed, lr=1e-4)
        for _ in range(80):
            for p, o in ((params, opt), (fixed, other)):
                o.zero_grad()
                loss(p).backward()
                o.step()
        assert loss(params) < 0.98 * loss(fixed), granularity


def test_additive_rate_keeps_small_increments() -> None:
    """Baydin's hyper_lr of 1e-7 moves a rate by parts per million: rounding must not swallow it."""
    params = make_params(((100,),))
    opt = metafast.optim.SGD(
        params, lr=1e-3, hypergrad="global", hyper_rule="additive", hyper_lr=1e-13, hyper_exact=True, safe_start=None
    )
    for _ in range(201):
        params[0].grad = torch.ones(100)
        opt.step()
    assert opt.learned_lr()[0] - 1e-3 == pytest.approx(200 * 1e-11, rel=0.01)


# ---- the safe start


@pytest.mark.parametrize("granularity", ["global", "group", "tensor"])
def test_safe_start_lowers_a_rate_that_would_wreck_the_weights(granularity: str) -> None:
    """Adam's first update has the size lr * sqrt(numel): at most a tenth of the smallest weight matrix."""
    params = make_params(((30, 20), (20,), (10, 10)))
    opt = metafast.optim.AdamW(params, lr=1.0, hypergrad=granularity, hyper_lr=0.0)
    before = [p.detach().clone() for p in params]
    run(opt, params, gradients(params, 1))
    caps = [0.1 * float(p.norm()) / math.sqrt(p.numel()) for p in before]
    least = min(caps[0], caps[2])
    expected = {"tensor": [caps[0], least, caps[2]]}.get(granularity, [least])
    assert opt.learned_lr() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_safe_start_leaves_a_small_rate_alone(granularity: str) -> None:
    params, free = make_params(LOGISTIC_SHAPES), make_params(LOGISTIC_SHAPES)
    opt = metafast.optim.AdamW(params, lr=1e-3, hypergrad=granularity)
    other = metafast.optim.AdamW(free, lr=1e-3, hypergrad=granularity, safe_start=None)
    run(opt, params, gradients(params, 4))
    run(other, free, gradients(free, 4))
    assert all(map(torch.equal, params, free))


def test_safe_start_is_over_after_the_first_step_and_after_a_load() -> None:
    params = make_params(((8, 8),))
    options: dict[str, Any] = {"lr": 1.0, "hypergrad": "tensor", "hyper_rule": "sign", "hyper_lr": 3.0}
    opt = metafast.optim.AdamW(params, **options)
    params[0].grad = torch.ones(8, 8)
    for _ in range(3):
        opt.step()
    learned = opt.learned_lr()
    assert learned[0] > 1.0  # the rule may go where it likes
    again = metafast.optim.AdamW(params, **options)
    again.load_state_dict(opt.state_dict())
    opt.step()
    copied = again.learned_lr()
    assert copied == learned
    again.step()
    assert again.learned_lr()[0] >= learned[0]
