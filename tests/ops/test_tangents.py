"""Steps that carry tangents: the native kernels against the reference, and the reference against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from metafast import ops
from metafast.ops import adam_tangents, make_layout, sgd_tangents
from metafast.tune._dynamics import _load_forward_mode
from metafast.tune._updates import adam, sgd
from tests.helpers import TOLERANCE, assert_refused, copy_args, error, names, native, tensors_of

NAMES = ("adam_tangents", "sgd_tangents")
HOSTILE = (0, 1, 15, 16, 17, 63, 1023, 1025, 4097, 16384, 16385, 33000)


def assert_alike(actual: list[Any], expected: list[Any], factor: float = 4.0) -> None:
    for at, (have, want) in enumerate(zip(tensors_of(actual), tensors_of(expected), strict=True)):
        assert error(have, want) <= factor * TOLERANCE[torch.float32], at


def samples(name: str, numels: tuple[int, ...], offset: int = 0) -> list[list[Any]]:
    """The op's samples on other tensors, which begin `offset` elements into their storage, between sentinels."""
    generator = torch.Generator().manual_seed(offset)

    def draw(numel: int, positive: bool) -> Tensor:
        tensor = torch.full((numel + offset + 8,), 123.0)[offset : offset + numel]
        tensor.copy_(torch.randn(numel, generator=generator))
        return tensor.square_() if positive else tensor

    layout, found = make_layout(numels), []
    for sample in ops.REGISTRY[name].sample_inputs():
        args = dict(zip(names(ops.REGISTRY[name]), sample, strict=True))
        values, count = args["values"], len(args["params"])
        for key, arg in args.items():
            if isinstance(arg, list) and arg:
                args[key] = [draw(n, key == "exp_avg_sq") for n in numels * (len(arg) // count)]
        args |= {"items": layout.items, "chunks": layout.chunks}
        args["tangents"] = torch.randn(*args["tangents"].shape[:2], layout.arena_size, generator=generator)
        args["step"] = torch.linspace(1, 40, len(numels), dtype=torch.float64).round()
        args["options"] = args["options"][:1].repeat(len(numels), 1)
        args["seeds"] = args["seeds"][:, :1].repeat(1, len(numels), 1)
        args["seeds"][:, ::2] *= 0.5
        assert args["seeds"].shape[0] == values
        found.append(list(args.values()))
    return found


@native
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_native_equals_reference(name: str, offset: int) -> None:
    op = ops.REGISTRY[name]
    for args in [*map(list, op.sample_inputs()), *samples(name, HOSTILE, offset)]:
        expected, actual = copy_args(tuple(args)), copy_args(tuple(args))
        op.reference(*expected)
        ops.resolve(name, "cpu", "cpu")(*actual)
        assert_alike(actual, expected)


@native
@pytest.mark.parametrize("name", NAMES)
def test_writes_nothing_else(name: str) -> None:
    used = torch.zeros(make_layout(HOSTILE).arena_size, dtype=torch.bool)
    for _, offset, numel in make_layout(HOSTILE).items.tolist():
        used[offset : offset + numel] = True
    for args in samples(name, HOSTILE, 3):
        named = dict(zip(names(ops.REGISTRY[name]), args, strict=True))
        named["tangents"][..., ~used] = -77.0
        read = [x.clone() for key in ("grads", "grad_tangents") for x in named[key]]
        ops.REGISTRY[name].overload(*args)
        assert bool((named["tangents"][..., ~used] == -77.0).all())
        for before, after in zip(read, [*named["grads"], *named["grad_tangents"]], strict=True):
            assert torch.equal(before, after)
        lists = [arg for arg in args if isinstance(arg, list)]
        for tensor in (x for tensors in lists for x in tensors):
            storage = torch.tensor([]).set_(tensor.untyped_storage())
            assert storage[:3].tolist() == [123.0] * 3 and storage[3 + tensor.numel() :].unique().tolist() == [123.0]


@native
@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_change_a_bit(name: str, one_thread: None) -> None:
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(samples(name, (100_000, 7, 50_001)))
        for args in results[-1]:
            ops.REGISTRY[name].overload(*args)
    for one, other in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


MISTAKES = {
    "a gradient too many": (lambda a: a["grads"].append(torch.zeros(1)), "agree"),
    "a longer gradient": (lambda a: a["grads"].__setitem__(3, torch.zeros(4098)), "elements"),
    "a parameter with gaps": (lambda a: a["params"].__setitem__(3, torch.zeros(8194)[::2]), "gaps"),
    "a tangent of a gradient too few": (lambda a: a["grad_tangents"].append(torch.zeros(4097)), "grad_tangents"),
    "a row that is too short": (lambda a: a["items"].__setitem__((3, 1), 10**6), "items"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", NAMES)
def test_mistakes_raise_and_change_nothing(name: str, mistake: str) -> None:
    assert_refused(ops.REGISTRY[name], *MISTAKES[mistake])


@native
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_the_references(name: str) -> None:
    args = copy_args(ops.REGISTRY[name].sample_inputs()[0])
    args[0] = [x.double() for x in args[0]]
    with pytest.raises(RuntimeError, match="float64 has the reference"):
        ops.REGISTRY[name].overload(*args)


# ---- the derivative itself


def dual(primal: Any, tangent: Any) -> Tensor:
    double = torch.float64
    return forward_ad.make_dual(torch.as_tensor(primal, dtype=double), torch.as_tensor(tangent, dtype=double))


def split(value: Tensor) -> tuple[Tensor, Tensor]:
    found = forward_ad.unpack_dual(value)
    return found.primal, torch.zeros_like(value) if found.tangent is None else found.tangent


Case = dict[str, Any]
number = st.floats(-1.0, 1.0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Options, their speeds, and everything else that changes the formula."""
    is_adam, values = draw(st.booleans()), draw(st.integers(1, 6))
    unit = st.floats(0.0, 0.99)
    options = {"lr": draw(st.floats(0.0, 0.1))}
    if is_adam:
        options |= {"beta1": draw(unit), "beta2": draw(st.floats(0.5, 0.999)), "eps": draw(st.floats(1e-4, 0.1))}
    else:
        options |= {"momentum": draw(unit), "dampening": draw(unit)}
    options["weight_decay"] = draw(st.sampled_from([0.0, 0.05]))
    return {
        "adam": is_adam,
        "options": options,
        "speeds": [{name: draw(number) for name in options} for _ in range(values)],
        "step": draw(st.integers(1, 50)),
        "buffer": draw(st.booleans()),
        "switch": draw(st.booleans()),
        "maximize": draw(st.booleans()),
        "moving": draw(st.booleans()),
        "fresh": draw(st.booleans()),
        "decay": draw(st.sampled_from([1.0, 0.9])),
    }


def expected_of(case: Case, data: dict[str, Tensor], names: list[str], k: int) -> list[tuple[Tensor, Tensor]]:
    """(value, tangent) of the parameter and its states after a step, by forward-mode autograd of the definition."""
    zero = 0.0 if case["fresh"] else 1.0
    with forward_ad.dual_level():
        hyper = {name: dual(value, case["speeds"][k][name]) for name, value in case["options"].items()}
        theta = dual(data["theta"], zero * case["decay"] * data["tangents"][k, 0])
        state = {name: dual(data[name], zero * data["tangents"][k, 1 + j]) for j, name in enumerate(names)}
        grad = dual(data["grad"], data["moving"][k] * case["moving"])
        flags = {"maximize": case["maximize"], "decoupled": case["switch"], "nesterov": case["switch"]}
        new, states = (adam if case["adam"] else sgd)(theta, grad, state, hyper, case["step"] - 1, flags)
        return [split(new), *(split(states[name]) for name in names)]


def found_by(
    run: Any, case: Case, data: dict[str, Tensor], names: list[str], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """(parameter and states, tangents) after a step by the op."""
    values, numel = len(case["speeds"]), data["theta"].numel()
    layout = make_layout([numel])
    tangents = torch.zeros(values, 1 + len(names), layout.arena_size, dtype=dtype)
    tangents[..., :numel] = data["tangents"]
    primal = [data[name].to(dtype, copy=True) for name in ("theta", *names)]
    columns = adam_tangents.OPTIONS if case["adam"] else sgd_tangents.OPTIONS
    run(
        primal[:1],
        [data["grad"].to(dtype)],
        *([[x] for x in primal[1:]] or [[]]),
        tangents,
        [x.to(dtype) for x in data["moving"]] if case["moving"] else [],
        layout.items,
        layout.chunks,
        torch.tensor([float(case["step"])], dtype=torch.float64),
        torch.tensor([[case["options"][name] for name in columns]], dtype=torch.float64),
        torch.tensor([[[speeds[name] for name in columns]] for speeds in case["speeds"]], dtype=torch.float64),
        values,
        case["decay"],
        case["fresh"],
        case["switch"],
        case["maximize"],
    )
    return primal, tangents[..., :numel]


@settings(max_examples=25)
@given(case=cases())
def test_tangents_are_the_derivative(case: Case) -> None:
    """Of the differentiable definition, for all options: the reference in float64, the kernels in float32."""
    _load_forward_mode()
    names = ["exp_avg", "exp_avg_sq"] if case["adam"] else ["momentum_buffer"] if case["buffer"] else []
    generator = torch.Generator().manual_seed(case["step"])
    values, numel = len(case["speeds"]), 37

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    data = {name: draw(numel) for name in ("theta", "grad", "exp_avg", "momentum_buffer")}
    data |= {"exp_avg_sq": draw(numel).square(), "moving": draw(values, numel)}
    data["tangents"] = draw(values, 1 + len(names), numel)
    for tensor in data.values():
        tensor[..., -1] = 0.0  # an element that has never had a gradient
    op = ops.REGISTRY["adam_tangents" if case["adam"] else "sgd_tangents"]
    for run, dtype in ((op.reference, torch.float64), (op.overload, torch.float32)):
        primal, tangents = found_by(run, case, data, names, dtype)
        limit = 30 * TOLERANCE[dtype]  # quotients of small second moments
        for k in range(values):
            for j, (value, tangent) in enumerate(expected_of(case, data, names, k)):
                assert error(primal[j], value) <= limit
                assert error(tangents[k, j], tangent) <= limit, (k, j)
