"""Checkpoints: bit for bit, with PyTorch's format, and to and from torch.optim."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_cases import CLASSES, HYPERGRADS, copies, gradients, make_params, ours, run, states_equal, theirs
from safetensors.torch import load_file, save_file
from torch import Tensor

import metafast

SHAPES = ((5, 4), (3,), (), (0,), (70,))
FULL: dict[str, dict[str, Any]] = {
    "plain": {},
    "16-bit": {
        "dtype": torch.bfloat16,
        "options": {"state_dtype": torch.bfloat16, "stochastic_rounding": True, "seed": 3},
    },
    "fp32 states of bf16": {"dtype": torch.bfloat16},
    "masters": {"dtype": torch.bfloat16, "options": {"master_weights": True}},
    "masters of fp16": {"dtype": torch.float16, "options": {"master_weights": True, "max_grad_norm": 0.5}},
    "float64": {"dtype": torch.float64},
    **{granularity: {"options": {"hypergrad": granularity}} for granularity in HYPERGRADS},
    "exact": {"options": {"hypergrad": "tensor", "hyper_exact": True, "hyper_rule": "additive"}},
    "16-bit element": {
        "dtype": torch.bfloat16,
        "options": {"hypergrad": "element", "rate_dtype": torch.bfloat16, "stochastic_rounding": True},
    },
}


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("case", FULL)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, case: str) -> None:
    """Saved with torch.save, loaded with weights_only=True into a new optimizer before its first step."""
    options = {"lr": 0.01, **FULL[case].get("options", {})}
    options |= {"momentum": 0.9, "nesterov": True} if name == "SGD" else {"amsgrad": True}
    params = make_params(SHAPES, FULL[case].get("dtype", torch.float32))
    grads = list(gradients(params, 9))
    opt = ours(name)(params, **options)
    # First gradients at different steps: the third parameter's comes later than the others'.
    for p, g in zip(params, grads[0], strict=True):
        p.grad = None if p.dim() == 0 else g
    opt.step()
    run(opt, params, iter(grads[1:4]))
    state = saved_and_loaded(opt.state_dict())
    assert states_equal(state, opt.state_dict()), "torch.save and torch.load"
    new_params = copies(params)
    resumed = ours(name)(new_params, **options)
    resumed.load_state_dict(state)
    assert states_equal(resumed.state_dict(), state), "load_state_dict"
    assert resumed.learned_lr() == opt.learned_lr()
    run(opt, params, iter(grads[4:]))
    run(resumed, new_params, iter(grads[4:]))
    assert all(map(torch.equal, params, new_params))
    assert states_equal(resumed.state_dict(), opt.state_dict()), "five steps later"


def test_dtypes_survive() -> None:
    params = make_params(((4, 3),), torch.bfloat16)
    opt = metafast.optim.AdamW(params, master_weights=True, hypergrad="tensor")
    run(opt, params, gradients(params, 2))
    opt.load_state_dict(saved_and_loaded(opt.state_dict()))
    state = opt.state[params[0]]
    assert {k: v.dtype for k, v in state.items()} == {
        "step": torch.float32,
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
        "master": torch.float32,
        "learned_lr": torch.float64,
    }


def test_a_loaded_checkpoint_is_not_tied_to_the_file_or_the_other_optimizer() -> None:
    params, others = make_params(((4,),)), make_params(((4,),))
    opt, other = metafast.optim.AdamW(params), metafast.optim.AdamW(others)
    run(opt, params, gradients(params, 2))
    state = opt.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    run(other, others, gradients(others, 2))
    assert states_equal(opt.state_dict(), kept)


def test_safetensors(tmp_path: Path) -> None:
    """States are ordinary tensors: the ones that lie contiguously go to safetensors as they are."""
    params = make_params(SHAPES, torch.bfloat16)
    opt = metafast.optim.AdamW(params, hypergrad="tensor", stochastic_rounding=True)
    run(opt, params, gradients(params, 3))
    state = opt.state_dict()
    flat = {f"{index}.{key}": value for index, entry in state["state"].items() for key, value in entry.items()}
    save_file(flat, tmp_path / "state.safetensors")
    loaded: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(tmp_path / "state.safetensors").items():
        index, name = key.split(".", 1)
        loaded.setdefault(int(index), {})[name] = value
    new_params = copies(params)
    resumed = metafast.optim.AdamW(new_params, hypergrad="tensor", stochastic_rounding=True)
    resumed.load_state_dict({"state": loaded, "param_groups": state["param_groups"]})
    run(opt, params, gradients(params, 3, seed=9))
    run(resumed, new_params, gradients(params, 3, seed=9))
    assert all(map(torch.equal, params, new_params))


# ---- torch.optim


TORCH_VARIANTS = [
    ("SGD", {"momentum": 0.9}, {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"foreach": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}, {"fused": True}),
    ("SGD", {}, {}),
    ("Adam", {"weight_decay": 0.1}, {"foreach": True}),
    ("Adam", {"amsgrad": True}, {"fused": True}),
    ("AdamW", {}, {}),
    ("AdamW", {"amsgrad": True, "maximize": True}, {"foreach": True}),
    ("AdamW", {}, {"fused": True}),
    ("AdamW", {}, {"capturable": True}),
]


@pytest.mark.parametrize(("name", "options", "variant"), TORCH_VARIANTS)
@pytest.mark.parametrize("granularity", [None, "tensor"])
def test_checkpoints_of_torch_optim(
    name: str, options: dict[str, Any], variant: dict[str, Any], granularity: str | None
) -> None:
    """Start in torch, go on here, and back again: as if torch had done it all."""
    if variant.get("capturable") and not torch.cuda.is_available():
        torch_variant: dict[str, Any] = {}  # steps as tensors, the flag set in the group: all that a checkpoint shows
    else:
        torch_variant = variant
    params = make_params(((5, 4), (3,), (64,)))
    alone = copies(params)
    grads = list(gradients(params, 9))
    start = theirs(name)(params, lr=0.01, **options, **torch_variant)
    never = theirs(name)(alone, lr=0.01, **options, **torch_variant)
    run(never, alone, iter(grads))
    run(start, params, iter(grads[:3]))
    state = saved_and_loaded(start.state_dict())
    for group in state["param_groups"]:
        group.update(variant)
    mine = ours(name)(params, hypergrad=granularity, hyper_lr=0.0, safe_start=None)
    mine.load_state_dict(state)
    assert mine.param_groups[0]["lr"] == 0.01
    run(mine, params, iter(grads[3:6]))
    back = theirs(name)(params)
    state = saved_and_loaded(mine.state_dict())
    for group in state["param_groups"]:
        group.update(capturable=False)
    back.load_state_dict(state)
    run(back, params, iter(grads[6:]))
    torch.testing.assert_close(params, alone, rtol=1e-5, atol=2e-6)


def test_torch_checkpoint_of_a_finished_schedule() -> None:
    """lr is 0 there; the learned rate then starts at what the scheduler multiplies."""
    params = make_params(((5,),))
    opt = torch.optim.AdamW(params, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=2)
    for grads in gradients(params, 2):
        params[0].grad = grads[0]
        opt.step()
        schedule.step()
    assert opt.param_groups[0]["lr"] == 0.0
    mine = metafast.optim.AdamW(params, hypergrad="global")
    mine.load_state_dict(opt.state_dict())
    before = params[0].detach().clone()
    mine.step()
    assert torch.equal(params[0], before)
    assert mine.learned_lr() == pytest.approx([0.01], rel=0.6)


@pytest.mark.parametrize("granularity", HYPERGRADS)
def test_saved_while_the_scheduler_says_zero(granularity: str) -> None:
    params = make_params(((5,),))
    opt = metafast.optim.AdamW(params, lr=0.01, hypergrad=granularity)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: step / 4)
    copies_of = [copy.deepcopy(opt)]
    other = metafast.optim.AdamW(params, lr=0.01, hypergrad=granularity)
    other.load_state_dict(opt.state_dict())
    for grads in gradients(params, 3):
        params[0].grad = grads[0]
        opt.step()
        schedule.step()
    assert copies_of[0].param_groups[0]["lr"] == 0.0
    assert other.param_groups[0]["_base_lr"] == 0.01


def test_global_rate_of_groups_whose_first_gradients_come_in_another_order() -> None:
    params = make_params(((3,), (4,)))

    def build(of: list[Tensor]) -> Any:
        groups = [{"params": of[:1], "lr": 0.01}, {"params": of[1:], "lr": 0.001}]
        return metafast.optim.SGD(groups, momentum=0.9, hypergrad="global")

    opt = build(params)
    params[1].grad = torch.ones(4)
    opt.step()
    run(opt, params, gradients(params, 2))
    new_params = copies(params)
    resumed = build(new_params)
    resumed.load_state_dict(saved_and_loaded(opt.state_dict()))
    run(opt, params, gradients(params, 3))
    run(resumed, new_params, gradients(params, 3))
    assert all(map(torch.equal, params, new_params))


def test_what_users_keep_in_the_state_survives() -> None:
    params = make_params(((3,),))
    opt = metafast.optim.AdamW(params)
    run(opt, params, gradients(params, 1))
    opt.state[params[0]]["mine"] = {"nested": torch.ones(2, dtype=torch.float64), "text": "x"}
    opt.load_state_dict(opt.state_dict())
    assert opt.state[params[0]]["mine"]["nested"].dtype is torch.float64
    assert opt.state[params[0]]["mine"]["text"] == "x"


@pytest.mark.parametrize("mistake", ["shape", "groups", "option"])
def test_a_refused_checkpoint_changes_nothing(mistake: str) -> None:
    params = make_params(((3,), (4,)))
    opt = metafast.optim.AdamW(params, hypergrad="tensor")
    run(opt, params, gradients(params, 2))
    wrong = copy.deepcopy(opt.state_dict())
    if mistake == "shape":
        wrong["state"][1]["exp_avg"] = torch.zeros(5)
    elif mistake == "groups":
        wrong["param_groups"].append(wrong["param_groups"][0])
    else:
        wrong["param_groups"][0]["hyper_rule"] = "unheard of"
    kept = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match={"shape": "exp_avg", "groups": "group", "option": "hyper_rule"}[mistake]):
        opt.load_state_dict(wrong)
    assert states_equal(opt.state_dict(), kept)
    new_params = copies(params)
    other = metafast.optim.AdamW(new_params, hypergrad="tensor")
    other.load_state_dict(kept)
    run(opt, params, gradients(params, 3))
    run(other, new_params, gradients(params, 3))
    assert all(map(torch.equal, params, new_params))
