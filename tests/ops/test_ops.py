"""Every op, every backend, every dtype, against the reference; and what an op must never do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import make_layout
from tests.helpers import TOLERANCE, assert_close, assert_refused, copy_args, names, native, tensors_of

STEPS = ["adam", "hyper_adam", "sgd", "hyper_sgd"]
INNER = (
    "inner_loop",
    "inner_loop_memory",
    "task_grad",
    "task_hvp",
)  # float32 and float64 only; test_inner_loop_native.py has their backends
TANGENTS = ("adam_tangents", "sgd_tangents")  # float32; test_tangents.py has their native kernels
ALL = [name for name in ops.REGISTRY if name not in ("stream", *INNER, *TANGENTS)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
HOSTILE = (0, 1, 15, 16, 17, 63, 1023, 1025, 4097, 16384, 16385, 33000)


def written(op: ops.Op, args: list[Any]) -> dict[str, Any]:
    """What an op may write, without its scratch."""
    schema = op.overload._schema
    mutable = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return {name: arg for name, arg in zip(names(op), args, strict=False) if name in mutable - {"partials"}}


def compare(op: ops.Op, actual: list[Any], expected: list[Any]) -> None:
    for name, want in written(op, expected).items():
        have = written(op, actual)[name]
        pairs = zip(have, want, strict=True) if isinstance(want, list) else [(have, want)]
        for index, (a, e) in enumerate(pairs):
            if e is None:
                continue
            if name == "stats":  # sums of fp32 products: compared as fp32, column by column
                for column in range(a.shape[1]):
                    assert_close(a[:, column].float(), e[:, column].float(), f"{op.name} stats[{column}]", factor=4)
            elif name == "squares":
                assert_close(a.float(), e.float(), f"{op.name} {name}")
            else:
                assert_close(a, e, f"{op.name} {name}[{index}]")


def with_tensors(
    op: ops.Op, numels: tuple[int, ...], dtype: torch.dtype, state: torch.dtype, *, seed: int = 0, offset: int = 0
) -> list[list[Any]]:
    """The op's samples, on tensors of other sizes that begin `offset` elements into their storage."""
    generator = torch.Generator().manual_seed(seed)

    def draw(numel: int, dtype: torch.dtype = dtype) -> Tensor:
        storage = torch.full((numel + offset + 8,), 123.0).to(dtype)
        tensor = storage[offset : offset + numel]
        tensor.copy_(torch.randn(numel, generator=generator))
        return tensor

    layout = make_layout(numels)
    slots = len(numels)
    samples = []
    for sample in op.sample_inputs():
        args = dict(zip(names(op), sample, strict=False))
        for name, arg in args.items():
            if name in ("params", "grads"):
                args[name] = [draw(n) for n in numels]
            elif name in ("items", "chunks", "partials"):
                args[name] = getattr(layout, name)
            elif name == "step":
                args[name] = torch.linspace(1.0, 40.0, slots).round()
            elif name == "lr" and arg.numel() > 1:
                args[name] = torch.linspace(0.1, 1.0, slots, dtype=torch.float64)
            elif name in ("stats", "squares"):
                args[name] = torch.zeros(slots, *arg.shape[1:], dtype=torch.float64)
            elif name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "previous", "master", "rate"):
                if arg is None or name == "rate" and op.name == "hyper_rate":
                    continue
                values = torch.randn(layout.arena_size, generator=generator) * 0.3
                if name != "exp_avg" and name != "momentum_buffer":
                    values = values.square() + 1e-4
                args[name] = values.to(torch.float32 if name == "master" else state)
        samples.append(list(args.values()))
    return samples


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_native_equals_reference(name: str, dtype: torch.dtype) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs(dtype=dtype):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        ops.resolve(name, "cpu", "cpu")(*actual)
        compare(op, actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_device_equals_reference(name: str, dtype: torch.dtype, backend: str) -> None:
    op = ops.REGISTRY[name]
    if backend == "triton" and op.triton is None:
        pytest.skip(f"{name} has no Triton kernel")
    for sample in op.sample_inputs(device="cuda", dtype=dtype):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        ops.resolve(name, "cuda", backend)(*actual)
        compare(op, actual, expected)


@native
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_hostile_sizes_and_offsets(name: str, dtype: torch.dtype, state: torch.dtype, offset: int) -> None:
    op = ops.REGISTRY[name]
    expected_samples = with_tensors(op, HOSTILE, dtype, state, offset=offset)
    actual_samples = with_tensors(op, HOSTILE, dtype, state, offset=offset)
    for expected, actual in zip(expected_samples, actual_samples, strict=True):
        op.reference(*expected)
        op.overload(*actual)
        compare(op, actual, expected)


@native
@pytest.mark.parametrize("name", STEPS)
def test_writes_nothing_else(name: str) -> None:
    """Memory before and behind every tensor, and the gaps between arena segments, keep their sentinels."""
    op = ops.REGISTRY[name]
    for args in with_tensors(op, HOSTILE, torch.float32, torch.float32, offset=3):
        named = dict(zip(names(op), args, strict=False))
        used = torch.zeros(make_layout(HOSTILE).arena_size, dtype=torch.bool)
        for _, offset, numel in named["items"].tolist():
            used[offset : offset + numel] = True
        arenas = {k: v for k, v in named.items() if isinstance(v, Tensor) and v.shape == used.shape}
        for arena in arenas.values():
            arena[~used] = -77.0
        grads = [g.clone() for g in named["grads"]]
        op.overload(*args)
        for arena in arenas.values():
            assert bool((arena[~used] == -77.0).all())
        for param in named["params"]:
            storage = torch.tensor([], dtype=param.dtype).set_(param.untyped_storage())
            assert storage[:3].tolist() == [123.0] * 3
            assert storage[3 + param.numel() :].tolist() == [123.0] * (len(storage) - 3 - param.numel())
        for grad, before in zip(named["grads"], grads, strict=True):
            assert torch.equal(grad, before), "a gradient was written"


@native
@pytest.mark.parametrize("name", STEPS)
def test_threads_do_not_change_a_bit(name: str) -> None:
    op = ops.REGISTRY[name]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            samples = with_tensors(op, (100_000, 7, 50_001), torch.float32, torch.float32)
            for args in samples:
                op.overload(*args)
            results.append(samples)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for a, b in zip(first, second, strict=True):
                for x, y in zip(*(v if isinstance(v, list) else [v] for v in (a, b)), strict=True):
                    assert not isinstance(x, Tensor) or torch.equal(x.nan_to_num(), y.nan_to_num())


@native
@pytest.mark.parametrize("name", STEPS)
def test_stochastic_rounding_draws_the_same_bits(name: str) -> None:
    """Backends agree but where their fp32 values straddle a rounding boundary: rarely, and then by one step."""
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        strict=True,
    ):
        expected[-1] = actual[-1] = 12345
        op.reference(*expected)
        op.overload(*actual)
        for key, want in written(op, expected).items():
            have = written(op, actual)[key]
            for a, e in zip(*(v if isinstance(v, list) else [v] for v in (have, want)), strict=True):
                if e is not None and e.dtype is torch.bfloat16:
                    assert float((a != e).float().mean()) < 2e-3
                    assert_close(a, e, f"{name} {key}", factor=2)


@pytest.mark.parametrize("name", STEPS)
def test_found_inf_changes_nothing(name: str) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs():
        for run in (op.reference, op.overload):
            args = copy_args(sample)
            args[names(op).index("found_inf")] = torch.ones(())
            before = copy_args(tuple(args))
            run(*args)
            assert all(torch.equal(a, b) for a, b in zip(tensors_of(args), tensors_of(before), strict=True))


@pytest.mark.parametrize("name", list(ops.REGISTRY))
def test_opcheck(name: str) -> None:
    op = ops.REGISTRY[name]
    samples = op.sample_inputs()
    for position, sample in enumerate(samples):
        # Tracing with dynamic shapes is slow, and differs by structure only: on the first and the last sample.
        chosen = OPCHECKS if position in (0, len(samples) - 1) else OPCHECKS[:3]
        torch.library.opcheck(op.overload, tuple(copy_args(sample)), test_utils=chosen)


@pytest.mark.parametrize("name", list(ops.REGISTRY))
def test_compiles_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()  # one function for all ops: its limit of recompilations is per process
    op = ops.REGISTRY[name]
    sample = op.sample_inputs()[0]
    expected, actual = copy_args(sample), copy_args(sample)
    op.overload(*expected)
    torch.compile(lambda args: op.overload(*args), fullgraph=True, backend="aot_eager")(actual)
    for a, b in zip(actual, expected, strict=True):
        for x, y in zip(*(v if isinstance(v, list) else [v] for v in (a, b)), strict=True):
            assert not isinstance(x, Tensor) or torch.equal(x.nan_to_num(), y.nan_to_num())


MISTAKES = {
    "a gradient too many": (lambda a: a["grads"].append(torch.zeros(1)), "agree"),
    "a longer gradient": (lambda a: a["grads"].__setitem__(3, torch.zeros(4098)), "elements"),
    "an integer parameter": (lambda a: a["params"].__setitem__(3, torch.zeros(4097, dtype=torch.int32)), "float"),
    "a parameter with gaps": (lambda a: a["params"].__setitem__(3, torch.zeros(8194)[::2]), "gaps"),
    "a gradient in another order": (
        lambda a: (
            a["params"].__setitem__(3, torch.zeros(17, 241)),
            a["grads"].__setitem__(3, torch.zeros(241, 17).t()),
        ),
        "order|strides",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", STEPS)
def test_mistakes_raise_and_change_nothing(name: str, mistake: str) -> None:
    assert_refused(ops.REGISTRY[name], *MISTAKES[mistake])


@native
@pytest.mark.parametrize("name", STEPS)
def test_native_checks_its_tables(name: str) -> None:
    """A wrong row of items or chunks must not become a write to someone else's memory."""
    op = ops.REGISTRY[name]
    for table, row, column, value in (("items", 3, 0, 99), ("items", 3, 1, 10**9), ("items", 3, 1, -1),
                                      ("chunks", 0, 0, 50), ("chunks", 2, 1, 10**6)):  # fmt: skip
        args = copy_args(op.sample_inputs()[0])
        named = dict(zip(names(op), args, strict=False))
        if table == "items" and column == 1 and name in ("sgd", "hyper_sgd") and named["momentum_buffer"] is None:
            named["momentum_buffer"] = None
            if value > 0:
                continue  # plain SGD has no arena to overrun
        named[table][row, column] = value
        with pytest.raises(RuntimeError, match="items|chunks"):
            op.overload(*args)


def test_reference_adam_equals_torch_in_float64() -> None:
    """The reference is itself checked: 20 steps of float64 against torch.optim."""
    op = ops.REGISTRY["adam"]
    for amsgrad, decoupled in ((False, True), (True, False)):
        optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
        generator = torch.Generator().manual_seed(0)
        ours = torch.randn(501, generator=generator, dtype=torch.float64)
        theirs = ours.clone().requires_grad_()
        layout = make_layout([501])
        arenas = [torch.zeros(layout.arena_size, dtype=torch.float64) for _ in range(3)]
        step, stats = torch.zeros(1), torch.zeros(1, 4, dtype=torch.float64)
        peer = optimizer([theirs], lr=3e-3, weight_decay=0.1, amsgrad=amsgrad)
        for _ in range(20):
            grad = torch.randn(501, generator=generator, dtype=torch.float64)
            before = theirs.detach().clone()
            theirs.grad = grad.clone()
            peer.step()
            op.reference(
                [ours], [grad], arenas[0], arenas[1], arenas[2] if amsgrad else None, None, step, stats,
                layout.partials, layout.items, layout.chunks, torch.ones(1), None, None, None,
                3e-3, 0.9, 0.999, 1e-8, 0.1, decoupled, False,
            )  # fmt: skip
            assert stats[0, 3] == pytest.approx(float(before.square().sum()), rel=1e-12)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_statistics_are_those_of_the_step() -> None:
    """g·u of one step is minus the derivative of the loss with respect to the last learning rate, by autograd."""
    op = ops.REGISTRY["adam"]
    layout = make_layout([40])
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(40, generator=generator, dtype=torch.float64)
    p = torch.randn(40, generator=generator, dtype=torch.float64)
    m, v = (torch.zeros(layout.arena_size, dtype=torch.float64) for _ in range(2))
    step, stats = torch.zeros(1), torch.zeros(1, 4, dtype=torch.float64)

    def run(rate: float) -> None:
        grad = (p - target) * (1 + p * p)
        op.reference(
            [p], [grad], m, v, None, None, step, stats, layout.partials, layout.items, layout.chunks,
            torch.ones(1), None, None, None, rate, 0.9, 0.99, 1e-8, 0.0, True, False,
        )  # fmt: skip

    def loss(x: Tensor) -> Tensor:
        return ((x - target).square() / 2 + x**4 / 4 - target * x**3 / 3).sum()

    run(0.1)
    before = p.clone()
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    run(0.05)
    direction = (before - p) / 0.05
    hypergradient = torch.autograd.grad(loss(before - rate * direction), rate)[0]
    run(0.05)
    assert float(stats[0, 1]) == pytest.approx(-float(hypergradient), rel=1e-9)
    assert TOLERANCE[torch.float64] < 1e-9
