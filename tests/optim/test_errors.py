"""Errors, never silence: each names the argument, what came and what is accepted, and leaves everything as it was."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from optim_cases import BACKENDS, CLASSES, HYPERGRADS, gradients, make_params, ours, run, states_equal
from torch import Tensor

import metafast

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"lr": math.nan}, ValueError, ("lr", "nan", "at least 0")),
    ({"lr": math.inf}, ValueError, ("lr", "inf", "finite")),
    ({"lr": -1.0}, ValueError, ("lr", "-1.0", "at least 0")),
    ({"lr": "0.1"}, TypeError, ("lr", "'0.1'", "str")),
    ({"lr": None}, TypeError, ("lr", "None")),
    ({"lr": torch.ones(2)}, ValueError, ("lr", "(2,)", "one")),
    ({"lr": torch.tensor(math.nan)}, ValueError, ("lr", "nan")),
    ({"lr": torch.tensor(1j)}, ValueError, ("lr", "complex")),
    ({"lr": 0.0, "hypergrad": "tensor"}, ValueError, ("lr", "0.0", "above 0")),
    ({"lr": 11.0, "hypergrad": "tensor"}, ValueError, ("lr", "11.0", "10.0")),
    ({"lr": 1e-9, "hypergrad": "global"}, ValueError, ("lr", "1e-09", "1e-08")),
    ({"weight_decay": -0.1}, ValueError, ("weight_decay", "-0.1", "at least 0")),
    ({"weight_decay": math.nan}, ValueError, ("weight_decay", "nan")),
    ({"hypergrad": "layer"}, ValueError, ("hypergrad", "'layer'", "'global'", "'element'")),
    ({"hypergrad": True}, ValueError, ("hypergrad", "True")),
    ({"hyper_rule": "fast"}, ValueError, ("hyper_rule", "'fast'", "'normalized'")),
    ({"hyper_lr": -1.0}, ValueError, ("hyper_lr", "-1.0", "at least 0")),
    ({"hyper_lr": math.inf}, ValueError, ("hyper_lr", "inf")),
    ({"hyper_exact": 1}, TypeError, ("hyper_exact", "1", "True or False")),
    ({"maximize": "yes"}, TypeError, ("maximize", "'yes'")),
    ({"capturable": None}, TypeError, ("capturable", "None")),
    ({"lr_bounds": (1.0, 0.1)}, ValueError, ("lr_bounds", "0.1", "1.0")),
    ({"lr_bounds": (0.0, 1.0)}, ValueError, ("lr_bounds", "0.0", "above 0")),
    ({"lr_bounds": (1e-8, math.inf)}, ValueError, ("lr_bounds", "inf")),
    ({"lr_bounds": 1.0}, TypeError, ("lr_bounds", "1.0", "pair")),
    ({"safe_start": 0.0}, ValueError, ("safe_start", "0.0", "above 0")),
    ({"state_dtype": torch.float16}, ValueError, ("state_dtype", "float16", "bfloat16")),
    ({"rate_dtype": "bf16"}, ValueError, ("rate_dtype", "'bf16'", "float32")),
    ({"master_weights": "no"}, TypeError, ("master_weights", "'no'")),
    ({"stochastic_rounding": 2}, TypeError, ("stochastic_rounding", "2")),
    ({"backend": "gpu"}, ValueError, ("backend", "'gpu'", "'cpu'", "'cuda'", "'triton'", "'reference'")),
    ({"max_grad_norm": 0.0}, ValueError, ("max_grad_norm", "0.0", "above 0")),
    ({"max_grad_norm": "1"}, TypeError, ("max_grad_norm", "'1'")),
    ({"seed": -1}, ValueError, ("seed", "-1")),
    ({"seed": 1.5}, ValueError, ("seed", "1.5", "integer")),
    ({"learning_rate": 0.1}, TypeError, ("learning_rate",)),
]
BY_CLASS: list[tuple[str, dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("AdamW", {"betas": (1.0, 0.9)}, ValueError, ("betas[0]", "1.0", "[0, 1)")),
    ("AdamW", {"betas": (0.9, math.nan)}, ValueError, ("betas[1]", "nan")),
    ("Adam", {"betas": 0.9}, TypeError, ("betas", "0.9", "pair")),
    ("Adam", {"eps": -1e-8}, ValueError, ("eps", "-1e-08", "at least 0")),
    ("Adam", {"amsgrad": 1}, TypeError, ("amsgrad", "1")),
    ("Adam", {"momentum": 0.9}, TypeError, ("momentum",)),
    ("SGD", {"momentum": 1.0}, ValueError, ("momentum", "1.0", "[0, 1)")),
    ("SGD", {"dampening": 2.0}, ValueError, ("dampening", "2.0")),
    ("SGD", {"nesterov": True}, ValueError, ("nesterov", "momentum")),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, ("nesterov", "dampening")),
    ("SGD", {"betas": (0.9, 0.999)}, TypeError, ("betas",)),
]


def check(error: type[Exception], words: tuple[str, ...], act: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        act()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS, ids=lambda v: str(v)[:40])
def test_bad_options(name: str, options: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    params = make_params(((3,),))
    check(error, words, lambda: ours(name)(params, **options))
    if not set(options) & {"max_grad_norm", "seed"}:  # those belong to the whole optimizer
        check(error, words, lambda: ours(name)([{"params": params, **options}]))
        opt = ours(name)(make_params(((2,),)))
        check(error, words, lambda: opt.add_param_group({"params": params, **options}))
        assert len(opt.param_groups) == 1


@pytest.mark.parametrize(("name", "options", "error", "words"), BY_CLASS, ids=lambda v: str(v)[:40])
def test_bad_options_of_a_class(
    name: str, options: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    check(error, words, lambda: ours(name)(make_params(((3,),)), **options))
    check(error, words, lambda: ours(name)([{"params": make_params(((3,),)), **options}]))


def test_unknown_options_in_groups_say_what_is_accepted() -> None:
    params = make_params(((3,),))
    check(TypeError, ("hypergrd", "hypergrad", "lr"), lambda: metafast.optim.SGD([{"params": params, "hypergrd": "x"}]))
    opt = metafast.optim.SGD([{"params": params, "name": "body", "_mine": 1}])
    assert opt.param_groups[0]["name"] == "body"


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_missing_backend_is_an_error_with_the_way_out(backend: str) -> None:
    if torch.cuda.is_available():
        params = [torch.nn.Parameter(torch.ones(3))]
        check(ValueError, ("backend", "cpu"), lambda: metafast.optim.AdamW(params, backend="cuda"))
        return

    def act() -> None:
        opt = metafast.optim.AdamW(make_params(((3,),)), backend=backend)
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step()

    if backend == "triton":
        from metafast.ops import resolve

        try:
            resolve("adam", "cpu", "triton")
        except ValueError:
            pass
        else:
            pytest.skip("Triton's interpreter serves the CPU here")
    check(ValueError, ("backend", backend), act)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (list, ValueError, ("empty",)),
        (lambda: torch.ones(2), TypeError, ("iterable",)),
        (lambda: [torch.ones(2, dtype=torch.int64)], TypeError, ("parameter 0", "int64", "float32")),
        (lambda: [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], TypeError, ("parameter 0", "complex64")),
        (lambda: [{"params": {torch.nn.Parameter(torch.ones(2))}}], TypeError, ("order", "set")),
        (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError, ("non-leaf",)),
        (lambda: [{"params": [1.0]}], TypeError, ("float",)),
        (lambda: [1.0], TypeError, ("float",)),
        (lambda: [{"lr": 0.1}], TypeError, ("'params'", "'lr'")),
    ],
)
def test_bad_parameters(given: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    check(error, words, lambda: metafast.optim.AdamW(given()))


def test_the_same_parameter_twice() -> None:
    param = make_params(((3,),))[0]
    opt = metafast.optim.AdamW([param])
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": [param]})
    assert len(opt.param_groups) == 1


# ---- a step that fails leaves everything as it was


def sparse(p: Tensor) -> Tensor:
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, *p.shape[1:], dtype=p.dtype), tuple(p.shape))


def changed_shape(p: Tensor) -> None:
    p.grad = None
    p.data = torch.ones(2, 3, dtype=p.dtype)
    p.grad = torch.ones(2, 3, dtype=p.dtype)


BAD_STEPS: dict[str, tuple[Callable[[Any, list[Tensor]], None], type[Exception], tuple[str, ...]]] = {
    "sparse": (lambda o, ps: setattr(ps[-1], "grad", sparse(ps[-1])), TypeError, ("sparse_coo", "dense", "(4,)")),
    "lr nan": (lambda o, ps: o.param_groups[-1].update(lr=math.nan), ValueError, ("lr", "nan")),
    "lr inf": (lambda o, ps: o.param_groups[-1].update(lr=math.inf), ValueError, ("lr", "inf")),
    "lr negative": (lambda o, ps: o.param_groups[-1].update(lr=-0.1), ValueError, ("lr", "-0.1", "at least 0")),
    "lr text": (lambda o, ps: o.param_groups[-1].update(lr="big"), TypeError, ("lr", "'big'")),
    "lr tensor nan": (
        lambda o, ps: o.param_groups[-1].update(lr=torch.tensor(math.nan)),
        ValueError,
        ("lr", "nan"),
    ),
    "lr tensor wide": (lambda o, ps: o.param_groups[-1].update(lr=torch.ones(2)), ValueError, ("lr", "(2,)")),
    "shape": (lambda o, ps: changed_shape(ps[-1]), ValueError, ("(2, 3)", "4 elements")),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("granularity", [None, *HYPERGRADS])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_failed_step_changes_nothing(case: str, first: bool, granularity: str | None, exact: bool) -> None:
    if case == "shape" and first:
        return  # before the first step a parameter may change as it likes
    params = make_params(((5, 2), (3,))) + make_params(((6,),), torch.bfloat16) + make_params(((4,),))
    opt = metafast.optim.AdamW(
        [{"params": params[:3]}, {"params": params[3:]}],
        hypergrad=granularity,
        hyper_exact=exact,
        max_grad_norm=1.0 if exact else None,
    )
    if not first:
        run(opt, params, gradients(params, 2))
    for p in params:
        p.grad = torch.ones_like(p)
    spoil, error, words = BAD_STEPS[case]
    before = copy.deepcopy((opt.state_dict()["state"], [p.detach() for p in params[:3]], opt.lr_history))
    rates = opt.learned_lr() if not first else None
    spoil(opt, params)
    check(error, words, opt.step)
    assert states_equal(before, (opt.state_dict()["state"], [p.detach() for p in params[:3]], opt.lr_history)), (
        "changed"
    )
    if case == "sparse" and rates is not None:
        assert opt.learned_lr() == rates


def test_a_complex_gradient() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    if not hasattr(param, "grad_dtype"):
        pytest.skip("this torch lets no gradient have another dtype than its parameter")
    param.grad_dtype = None
    param.grad = torch.ones(3, dtype=torch.complex64)
    opt = metafast.optim.AdamW([param])
    check(TypeError, ("complex64", "real"), opt.step)
    assert torch.equal(param.detach(), torch.ones(3))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native CPU library; the reference computes in float64 too")
def test_converted_after_the_first_step() -> None:
    params = make_params(((3,),))
    opt = metafast.optim.AdamW(params)
    run(opt, params, gradients(params, 1))
    params[0].grad = None
    params[0].data = params[0].data.double()
    params[0].grad = torch.ones(3, dtype=torch.float64)
    check(TypeError, ("float64", "float32", "new optimizer"), opt.step)


def test_a_vector_whose_data_got_gaps() -> None:
    params = make_params(((6,),))
    opt = metafast.optim.AdamW(params)
    run(opt, params, gradients(params, 1))
    params[0].data = torch.zeros(12)[::2].copy_(params[0].data)
    kept = params[0].detach().clone()
    check(ValueError, ("parameter 0", "gaps", "(2,)"), opt.step)
    assert torch.equal(params[0].detach(), kept)


def test_numbers_of_numpy_are_numbers() -> None:
    params = make_params(((3,),))
    opt = metafast.optim.AdamW(params, lr=np.float32(0.1), weight_decay=np.float64(0.1), betas=(np.float32(0.9), 0.99))
    run(opt, params, gradients(params, 1))
    opt.param_groups[0]["lr"] = np.float32(0.2)  # a scheduler's lambda
    run(opt, params, gradients(params, 1))


def test_messages_do_not_show_internals() -> None:
    """A user reads of parameters and gradients, not of schemas and C++ files."""
    params = make_params(((4,),))
    opt = metafast.optim.AdamW(params)
    run(opt, params, gradients(params, 1))
    params[0].grad = sparse(params[0])
    with pytest.raises(TypeError) as caught:
        opt.step()
    assert not re.search(r"csrc|schema|aten|\.cpp", str(caught.value))


@pytest.mark.parametrize("before", [None, *HYPERGRADS])
@pytest.mark.parametrize("after", [None, *HYPERGRADS])
def test_hypergrad_of_a_group_stays(before: str | None, after: str | None) -> None:
    """Rates are laid out at the first step; another granularity would quietly use the old one's."""
    if before == after:
        return
    for stepped in (False, True):
        if not stepped and None not in (before, after):
            continue  # before the first step, one granularity is as good as another
        params = make_params(((3,), (2, 2)))
        opt = metafast.optim.AdamW(params, hypergrad=before)
        if stepped:
            run(opt, params, gradients(params, 2))
        kept = [p.detach().clone() for p in params]
        opt.param_groups[0]["hypergrad"] = after
        for p in params:
            p.grad = torch.ones_like(p)
        if stepped or before is None:
            check(ValueError, ("hypergrad", repr(before), repr(after)), opt.step)
            assert all(map(torch.equal, kept, params))
