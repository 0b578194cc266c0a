"""The contract of torch.optim.Optimizer: groups, closures, hooks, contexts, schedulers."""

from __future__ import annotations

import collections
import copy
import doctest
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from optim_cases import CLASSES, HYPERGRADS, copies, gradients, make_params, ours, run, states_equal, theirs
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import metafast


def set_grads(params: list[Tensor], value: float = 1.0) -> None:
    for param in params:
        param.grad = torch.full_like(param, value)


# ---- groups


@pytest.mark.parametrize("name", CLASSES)
def test_groups_with_their_own_options(name: str) -> None:
    params = make_params(((5, 3), (7,), (4,)))
    peer = copies(params)
    own: dict[str, Any] = {"lr": 0.3, "weight_decay": 0.2}
    own |= {"momentum": 0.8, "nesterov": True} if name == "SGD" else {"betas": (0.5, 0.7), "eps": 1e-2}

    def build(cls: Any, of: list[Tensor]) -> Any:
        opt = cls([{"params": of[:1]}, {"params": of[1:2], **own}], lr=0.01)
        grads = list(gradients(of, 6))
        run(opt, of[:2], ([g[0], g[1]] for g in grads[:3]))
        opt.add_param_group({"params": of[2], "lr": 0.05})
        run(opt, of, iter(grads[3:]))
        return opt

    opt, torch_opt = build(ours(name), params), build(theirs(name), peer)
    torch.testing.assert_close(params, peer, rtol=1e-5, atol=1e-6)
    assert [g["lr"] for g in opt.param_groups] == [g["lr"] for g in torch_opt.param_groups]


@pytest.mark.parametrize("wrap", [iter, tuple, list, lambda ps: (p for p in ps)])
def test_params_may_be_any_iterable(wrap: Callable[[list[Tensor]], Any]) -> None:
    for groups in (False, True):
        params = make_params(((5,), (3,)))
        before = [p.detach().clone() for p in params]
        given = [{"params": wrap(params)}] if groups else wrap(params)
        opt = metafast.optim.AdamW(given)
        assert len(opt.param_groups[0]["params"]) == 2
        set_grads(params)
        opt.step()
        assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_named_parameters_and_a_single_tensor() -> None:
    model = torch.nn.Linear(3, 2)
    opt = metafast.optim.Adam(model.named_parameters())
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    set_grads(list(model.parameters()))
    opt.step()
    assert "param_names" in opt.state_dict()["param_groups"][0]
    opt.add_param_group({"params": [("extra", torch.nn.Parameter(torch.ones(2)))]})
    single = make_params(((3,),))[0]
    assert metafast.optim.SGD([{"params": single}]).param_groups[0]["params"] == [single]


def test_group_added_while_rates_are_learned() -> None:
    for granularity in HYPERGRADS:
        params = make_params(((5,), (4,)))
        opt = metafast.optim.AdamW(params[:1], lr=0.01, hypergrad=granularity, hyper_rule="sign")
        grads = list(gradients(params, 8))
        run(opt, params[:1], ([g[0]] for g in grads[:4]))
        learned = opt.learned_lr()
        opt.add_param_group({"params": params[1:], "lr": 0.02})
        assert opt.learned_lr()[:1] == learned[:1]  # nothing that was learned is lost
        run(opt, params, iter(grads[4:]))
        assert len(opt.learned_lr()) == (1 if granularity == "global" else 2)


def test_gradients_that_come_late_sometimes_or_never() -> None:
    for name in CLASSES:
        params = make_params(((5,), (4, 4), (3,), (6,)))
        peer = copies(params)
        options = {"lr": 0.05, **({"momentum": 0.9} if name == "SGD" else {"weight_decay": 0.1})}
        opt, torch_opt = ours(name)(params, **options), theirs(name)(peer, **options)
        for step, grads in enumerate(gradients(params, 12)):
            present = (True, step >= 5, step % 3 == 1, False)
            for p, q, g, there in zip(params, peer, grads, present, strict=True):
                p.grad, q.grad = (g, g.clone()) if there else (None, None)
            opt.step()
            torch_opt.step()
        torch.testing.assert_close(params, peer, rtol=1e-5, atol=1e-6)
        assert params[3] not in opt.state
        assert [float(opt.state[p].get("step", 0)) for p in params[:3]] == [12.0, 7.0, 4.0]


@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_a_parameter_without_a_gradient_has_no_say_in_a_rate(granularity: str) -> None:
    """Rates with a second parameter that has stale statistics equal rates without it."""
    params, alone = make_params(((5,), (4,))), make_params(((5,), (4,)))
    grads = list(gradients(params, 9))
    options: dict[str, Any] = {"lr": 0.01, "hypergrad": granularity, "hyper_rule": "normalized"}
    opt, other = metafast.optim.Adam(params, **options), metafast.optim.Adam(alone, **options)
    run(opt, params, iter(grads[:4]))
    run(other, alone, iter(grads[:4]))
    frozen = opt.state_dict()["state"][1]["learned_lr"].clone() if granularity == "tensor" else None
    dropped = metafast.optim.Adam([alone[0]], **options)
    dropped.state[alone[0]] = other.state[alone[0]]
    dropped.__setstate__(dropped.__getstate__())
    params[1].grad = None
    for g in grads[4:]:
        params[0].grad, alone[0].grad = g[0], g[0].clone()
        opt.step()
        dropped.step()
    assert torch.equal(params[0], alone[0])
    assert opt.learned_lr()[0] == dropped.learned_lr()[0]
    if frozen is not None:
        assert torch.equal(opt.state[params[1]]["learned_lr"], frozen)


# ---- step: closures, hooks, contexts, autograd


def test_closure_runs_with_grad_and_its_loss_comes_back() -> None:
    params = make_params(((4,),))
    opt = metafast.optim.AdamW(params, lr=0.1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [opt.step(closure) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert opt.step() is None


def test_zero_grad() -> None:
    params = make_params(((4,),))
    opt = metafast.optim.AdamW(params)
    set_grads(params)
    opt.zero_grad()
    assert params[0].grad is None
    set_grads(params)
    opt.zero_grad(set_to_none=False)
    assert params[0].grad is not None
    assert not params[0].grad.any()


def test_hooks() -> None:
    params = make_params(((4,),))
    opt = metafast.optim.AdamW(params)
    calls: list[str] = []
    removable = [
        opt.register_step_pre_hook(lambda o, a, k: calls.append("pre")),
        opt.register_step_post_hook(lambda o, a, k: calls.append("post")),
        register_optimizer_step_post_hook(lambda o, a, k: calls.append("global")),
        opt.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1}),
        opt.register_load_state_dict_pre_hook(lambda o, s: calls.append(f"load {s.pop('mine')}")),
        opt.register_load_state_dict_post_hook(lambda o: calls.append("loaded")),
    ]
    set_grads(params)
    opt.step()
    assert calls == ["pre", "post", "global"]
    opt.load_state_dict(opt.state_dict())
    assert calls[3:] == ["load 1", "loaded"]
    for handle in removable:
        handle.remove()
    opt.step()
    assert len(calls) == 5


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts(context: Callable[[], Any]) -> None:
    params = make_params(((4,), (3, 3)))
    peer = copies(params)
    opt = metafast.optim.AdamW(params, hypergrad="tensor")
    other = metafast.optim.AdamW(peer, hypergrad="tensor")
    for of in (params, peer):
        set_grads(of)
    with context():
        opt.step()
    state = opt.state[params[0]]
    state["exp_avg"].mul_(1.0)  # outside, a tensor made in inference mode refuses to be written or saved for backward
    assert not any(value.is_inference() for value in state.values())
    opt.step()
    other.step()
    other.step()
    assert all(map(torch.equal, params, peer))
    loss = params[0].square().sum()
    loss.backward()


def test_defaults_of_torch_do_not_leak_in() -> None:
    """Parameters say where and in what dtype things live, not torch.set_default_device and _dtype."""
    for granularity in (None, *HYPERGRADS):
        params = make_params(((4,), (3, 3)))
        opt = metafast.optim.AdamW(params, hypergrad=granularity, max_grad_norm=1.0)
        peer = copies(params)
        other = metafast.optim.AdamW(peer, hypergrad=granularity, max_grad_norm=1.0)
        grads = list(gradients(params, 3))
        run(other, peer, iter(grads))
        torch.set_default_dtype(torch.float64)
        try:
            for step in grads:
                for p, g in zip(params, step, strict=True):
                    p.grad = g
                with torch.device("meta"):  # any other device than the parameters'
                    opt.step()
                    assert opt.tensor_stats().device.type == "cpu"
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(map(torch.equal, params, peer))
        assert states_equal(opt.state_dict(), other.state_dict()), "states differ"


@pytest.mark.parametrize("gaps", [False, True])
def test_step_between_forward_and_backward_is_noticed(gaps: bool) -> None:
    """Autograd must see that a saved parameter has changed."""
    value = torch.randn(4, 8)[:, ::2] if gaps else torch.randn(4, 4)
    param = torch.nn.Parameter(value)
    opt = metafast.optim.SGD([param])
    version = param._version
    loss = param.square().sum()
    param.grad = torch.ones_like(param)
    opt.step()
    assert param._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_are_never_written(name: str) -> None:
    params = make_params(((4, 5), (3,), ()))
    opt = ours(name)(params, lr=0.1, weight_decay=0.1, maximize=True, max_grad_norm=0.01, hypergrad="tensor")
    grads = next(gradients(params, 1))
    kept = [g.clone() for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    versions = [g._version for g in grads]
    opt.step()
    assert all(p.grad is g and torch.equal(g, k) for p, g, k in zip(params, grads, kept, strict=True))
    assert [g._version for g in grads] == versions


# ---- copies


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("granularity", [None, *HYPERGRADS])
def test_deepcopy_and_pickle_continue_alike(granularity: str | None, copy_of: Callable[[Any], Any]) -> None:
    params = make_params(((5, 4), (3,), (6,)), torch.bfloat16)
    opt = metafast.optim.AdamW(
        params, lr=0.01, hypergrad=granularity, stochastic_rounding=True, state_dtype=torch.bfloat16, seed=5,
        max_grad_norm=1.0, amsgrad=True,
    )  # fmt: skip
    grads = list(gradients(params, 9))
    run(opt, params[:2], (g[:2] for g in grads[:2]))  # the third one's first gradient comes later
    run(opt, params, iter(grads[2:5]))
    other_params, other = copy_of((params, opt))
    assert other.max_grad_norm == 1.0
    assert other.seed == 5
    assert states_equal(other.state_dict(), opt.state_dict()), "states differ"
    run(opt, params, iter(grads[5:]))
    run(other, other_params, iter(grads[5:]))
    assert all(map(torch.equal, params, other_params))
    assert states_equal(other.state_dict(), opt.state_dict()), "states differ"


# ---- options that change while training


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("SGD", {"momentum": 0.0}, {"momentum": 0.9}),  # OneCycleLR does that
        ("SGD", {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}),
        ("SGD", {"momentum": 0.9}, {"momentum": 0.0}),
        ("AdamW", {"betas": (0.9, 0.999)}, {"betas": (0.85, 0.999), "weight_decay": 0.3, "maximize": True}),
        ("Adam", {"amsgrad": False}, {"eps": 1e-3}),
    ],
)
def test_options_may_change_between_steps(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    params = make_params(((6, 3),))
    peer = copies(params)
    opt, torch_opt = ours(name)(params, lr=0.05, **before), theirs(name)(peer, lr=0.05, **before)
    grads = list(gradients(params, 8))
    for o, of in ((opt, params), (torch_opt, peer)):
        run(o, of, iter(grads[:4]))
        o.param_groups[0].update(after)
        run(o, of, iter(grads[4:]))
    torch.testing.assert_close(params, peer, rtol=2e-5, atol=2e-6)


def test_one_cycle_moves_momentum_too() -> None:
    for name in CLASSES:
        params = make_params(((6, 3),))
        peer = copies(params)
        opts = [ours(name)(params), theirs(name)(peer)]
        for opt, of in zip(opts, (params, peer), strict=True):
            schedule = lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=8)
            for grads in gradients(of, 7):
                of[0].grad = grads[0]
                opt.step()
                schedule.step()
        torch.testing.assert_close(params, peer, rtol=2e-5, atol=2e-6)


# ---- schedulers multiply the learned rate


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),  # ends at 0
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=12, cycle_momentum=False),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LambdaLR(o, lambda e: min(1.0, e / 4)), lr_scheduler.ExponentialLR(o, 0.8)],  # from 0
        milestones=[5],
    ),
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_without_a_hypergradient_act_as_in_torch(name: str, scheduler: str) -> None:
    params = make_params(((6, 3),))
    peer = copies(params)
    options = {"lr": 0.02, **({"momentum": 0.9} if name == "SGD" else {})}
    opt, torch_opt = ours(name)(params, **options), theirs(name)(peer, **options)
    mine, other = SCHEDULERS[scheduler](opt), SCHEDULERS[scheduler](torch_opt)
    for grads in gradients(params, 9):
        params[0].grad, peer[0].grad = grads[0], grads[0].clone()
        opt.step()
        torch_opt.step()
        mine.step()
        other.step()
        assert mine.get_last_lr() == other.get_last_lr()
    torch.testing.assert_close(params, peer, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("granularity", HYPERGRADS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_multiply_the_learned_rate(scheduler: str, granularity: str) -> None:
    """SGD shows the effective rate: p_new = p - learned * factor * g."""
    params = make_params(((6,),))
    opt = metafast.optim.SGD(params, lr=0.02, hypergrad=granularity, hyper_rule="sign", hyper_lr=0.1, safe_start=None)
    schedule = SCHEDULERS[scheduler](opt)
    for step in range(9):
        params[0].grad = torch.full((6,), 1.0 + step)
        before = params[0].detach().clone()
        learned = opt.learned_lr()[0]
        opt.step()
        if granularity == "element":
            learned = opt.learned_lr()[0]  # exact: the rate of a step comes from that step
        factor = opt.param_groups[0]["lr"] / 0.02
        torch.testing.assert_close(before - params[0].detach(), learned * factor * params[0].grad, rtol=1e-4, atol=2e-6)
        schedule.step()
    assert opt.learned_lr()[0] > 0.03  # it went on learning, whatever the scheduler did


def test_reduce_on_plateau_multiplies_the_learned_rate() -> None:
    params = make_params(((6,),))
    opt = metafast.optim.SGD(params, lr=0.02, hypergrad="global", hyper_lr=0.0, safe_start=None)
    schedule = lr_scheduler.ReduceLROnPlateau(opt, factor=0.1, patience=0)
    for metric in (1.0, 2.0):
        params[0].grad = torch.ones(6)
        opt.step()
        schedule.step(metric)
    before = params[0].detach().clone()
    opt.step()
    torch.testing.assert_close(before - params[0].detach(), torch.full((6,), 0.002), rtol=1e-4, atol=1e-7)
    assert opt.learned_lr() == pytest.approx([0.02])


def test_scheduler_with_a_tensor_lr() -> None:
    params = make_params(((6,),))
    opt = metafast.optim.SGD(params, lr=torch.tensor(0.02), hypergrad="tensor", hyper_lr=0.0, safe_start=None)
    schedule = lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    for expected in (0.02, 0.01, 0.005):
        params[0].grad = torch.ones(6)
        before = params[0].detach().clone()
        opt.step()
        schedule.step()
        torch.testing.assert_close(before - params[0].detach(), torch.full((6,), expected), rtol=1e-4, atol=1e-7)


def test_a_gradient_set_by_hand_on_a_parameter_that_asks_for_none() -> None:
    for granularity in (None, *HYPERGRADS):
        params = [torch.ones(4), torch.ones(3, 3)]
        peer = [p.clone() for p in params]
        opt = metafast.optim.SGD(params, lr=0.1, hypergrad=granularity, hyper_lr=0.0, safe_start=None)
        torch_opt = torch.optim.SGD(peer, lr=0.1)
        for of, o in ((params, opt), (peer, torch_opt)):
            set_grads(of)
            o.step()
        torch.testing.assert_close(params, peer)


def test_a_gradient_with_a_graph() -> None:
    """create_graph=True leaves gradients that require gradients."""
    param = make_params(((4,),))[0]
    (param.grad,) = torch.autograd.grad((param**3).sum(), param, create_graph=True)
    assert param.grad.requires_grad
    opt = metafast.optim.AdamW([param], hypergrad="tensor", max_grad_norm=1.0)
    opt.step()
    assert not opt.state[param]["exp_avg"].requires_grad
    param.grad = None  # breaks the cycle


def test_memory_of_swapped_data_is_given_back() -> None:
    """An optimizer that kept the old storage alive would double the memory of a model whose weights are replaced."""
    memory = np.ones(1000, dtype=np.float32)
    param = torch.nn.Parameter(torch.from_numpy(memory))
    freed = weakref.ref(memory)
    del memory
    opt = metafast.optim.AdamW([param], hypergrad="tensor")
    set_grads([param])
    opt.step()
    assert freed() is not None
    param.data = torch.zeros(1000)
    gc.collect()
    assert freed() is None
    opt.step()


def test_examples_in_the_docstrings() -> None:
    for module in (metafast.optim.adam, metafast.optim.sgd):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


# ---- users who change groups and states by hand


def build_pair(name: str = "AdamW", **options: Any) -> tuple[Any, list[Tensor], Any, list[Tensor]]:
    params = make_params(((4, 3), (5,), (6,)))
    peer = copies(params)
    opt, torch_opt = ours(name)(params, lr=0.05, **options), theirs(name)(peer, lr=0.05)
    run(opt, params, gradients(params, 3))
    run(torch_opt, peer, gradients(peer, 3))
    return opt, params, torch_opt, peer


def clear_all(opt: Any) -> None:
    opt.state.clear()


def new_dict(opt: Any) -> None:
    opt.state = collections.defaultdict(dict)


def clear_one(opt: Any) -> None:
    opt.state.pop(opt.param_groups[0]["params"][1])


def replace_tensors(opt: Any) -> None:
    for state in opt.state.values():  # the idiom that moves states to another device
        for key, value in state.items():
            state[key] = value.clone().mul_(2) if key == "exp_avg" else value.clone()


def drop_a_parameter(opt: Any) -> None:
    param = opt.param_groups[0]["params"].pop(0)
    del opt.state[param]


def grow_a_parameter(opt: Any) -> None:
    """Gaussian splatting's densification: a longer parameter takes over the state of a shorter one."""
    group = opt.param_groups[0]
    old = group["params"][1]
    state = opt.state.pop(old)
    new = torch.nn.Parameter(torch.cat([old.detach(), torch.ones(2)]))
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros(2)])
    group["params"][1] = new
    opt.state[new] = state


def swap_a_parameter(opt: Any) -> None:
    group = opt.param_groups[0]
    del opt.state[group["params"][2]]
    group["params"][2] = torch.nn.Parameter(torch.full((6,), 3.0))


def replace_the_groups(opt: Any) -> None:
    params = opt.param_groups[0]["params"]
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3})
    opt.param_groups.pop(0)
    opt.add_param_group({"params": params[:2], "lr": 0.1})


BY_HAND = [
    clear_all, new_dict, clear_one, replace_tensors, drop_a_parameter, grow_a_parameter, swap_a_parameter,
    replace_the_groups,
]  # fmt: skip


@pytest.mark.parametrize("change", BY_HAND)
def test_changes_by_hand_act_as_in_torch(change: Callable[[Any], None]) -> None:
    opt, _, torch_opt, _ = build_pair()
    for o in (opt, torch_opt):
        change(o)
        held = [p for group in o.param_groups for p in group["params"]]
        run(o, held, gradients(held, 3, seed=4))
    mine, other = ([p for g in o.param_groups for p in g["params"]] for o in (opt, torch_opt))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for p, q in zip(mine, other, strict=True):
        for key, value in torch_opt.state[q].items():
            torch.testing.assert_close(opt.state[p][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_reset_states_start_again(granularity: str) -> None:
    params = make_params(((4, 3), (5,)))
    options: dict[str, Any] = {"lr": 0.01, "hypergrad": granularity, "hyper_rule": "sign"}
    opt = metafast.optim.AdamW(params, **options)
    run(opt, params, gradients(params, 4))
    opt.state.clear()
    fresh_params = copies(params)
    fresh = metafast.optim.AdamW(fresh_params, **options)
    run(opt, params, gradients(params, 4))
    run(fresh, fresh_params, gradients(params, 4))
    assert all(map(torch.equal, params, fresh_params))
    assert opt.learned_lr() == fresh.learned_lr()


def test_state_dict_saves_what_was_put_in_by_hand() -> None:
    opt, params, _, _ = build_pair()
    for state in opt.state.values():
        state["exp_avg"] = torch.full_like(state["exp_avg"], 7.0)
    assert all((entry["exp_avg"] == 7.0).all() for entry in opt.state_dict()["state"].values())
    run(opt, params, gradients(params, 1))
    assert (opt.state_dict()["state"][0]["exp_avg"] > 5.0).all()
