"""The native inner-loop ops against their reference: layers, rules, data of every kind, memory, threads, bad input."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import _native
from metafast.ops._inner_loop_samples import _Builder as Builder
from metafast.ops._inner_loop_samples import convolutional, mlp, residual
from metafast.ops._program import Loss, Opcode, Program, encode
from tests.helpers import copy_args

pytestmark = pytest.mark.skipif(not _native.LIBRARIES["cpu"].loaded, reason="the native CPU library is not built")

NAMES = {name: list(inspect.signature(ops.REGISTRY[name].reference).parameters) for name in
         ("inner_loop", "task_grad", "task_hvp")}  # fmt: skip
OUTPUTS = {"inner_loop": "task_losses", "task_grad": "losses", "task_hvp": "hvp"}
# float64 against float64: rounding only. float32: some tens of roundings deep, through several steps.
LIMIT = {torch.float64: 1e-10, torch.float32: 4e-5}


def outputs(name: str) -> list[str]:
    names = NAMES[name]
    return names[names.index(OUTPUTS[name]) :]


def native(name: str, args: dict[str, Any]) -> dict[str, Tensor]:
    """The native op's outputs, each written over NaN."""
    copy = dict(zip(args, copy_args(tuple(args.values())), strict=True))
    for key in outputs(name):
        if copy[key] is not None:
            copy[key].fill_(float("nan"))
    ops.resolve(name, "cpu", "cpu")(*copy.values())
    return {key: copy[key] for key in outputs(name) if copy[key] is not None}


def reference(name: str, args: dict[str, Any]) -> dict[str, Tensor]:
    copy = dict(zip(args, copy_args(tuple(args.values())), strict=True))
    ops.REGISTRY[name].reference(*copy.values())
    return {key: copy[key] for key in outputs(name) if copy[key] is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], factor: float = 1.0) -> None:
    """Every output within the limit, relative to its largest element."""
    for key, want in expected.items():
        have = actual[key]
        assert torch.equal(have.isnan(), want.isnan()), f"{key}: NaN where there should be none, or the other way"
        if want.numel() == 0:
            continue
        have, want = have.nan_to_num(), want.nan_to_num()
        worst = float((have - want).abs().max() / want.abs().max().clamp(min=1e-2))
        assert worst <= LIMIT[want.dtype] * factor, f"{key}: {worst:.3g}"


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    """Bit for bit."""
    for key in expected.keys() - set(but):
        assert torch.equal(actual[key].nan_to_num(7e7), expected[key].nan_to_num(7e7)), key


def arguments(
    program: Program, *, dtype: torch.dtype = torch.float64, tasks: int = 3, support: int = 4, queries: int = 5,
    steps: int = 2, order: int = 2, rule: int = 0, momentum: float = 0.0, weight_decay: float = 0.0, prox: float = 0.0,
    rates: tuple[int, str] = (1, "one"), rate: float = 0.05, masked: bool = False, multi: bool = False,
    batch: int = 0, own_start: bool = False, budget: int = -1, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Random arguments of inner_loop with every output."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    parts = [normal(tasks if own_start else 1, p.numel) / max(1.0, p.numel / p.shape[0]) ** 0.5
             + (0.8 if len(p.shape) == 1 else 0.0) for p in program.params]  # fmt: skip
    flat = torch.cat(parts, 1) if parts else torch.zeros(tasks if own_start else 1, 0, dtype=dtype)
    weights = flat if own_start else flat[0]
    width = {"one": 1, "tensor": len(program.params), "element": program.numel}[rates[1]]
    rate_table = rate * (1.0 + torch.rand(rates[0], width, generator=g)).to(dtype)
    c, h, w = program.values[0]

    def side(n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        x = torch.randint(0, 11, (tasks, n, h), generator=g) if program.tokens else normal(tasks, n, c, h, w)
        y = normal(tasks, n, program.classes)
        if program.loss is Loss.CROSS_ENTROPY:
            y = torch.randint(0, program.classes - int(masked), (tasks, n), generator=g)
        mask = None
        if masked:
            mask = torch.rand(tasks, n, generator=g) < 0.7
            mask[:, 0] = mask[:, -1] = True
            if x.is_floating_point():
                x[~mask] = float("nan")
        return x, y, mask

    (sx, sy, sm), (qx, qy, qm) = side(support), side(queries)
    classes = program.classes - torch.arange(tasks) % 2 if masked and program.loss is Loss.CROSS_ENTROPY else None
    batches = torch.randint(0, support, (tasks, steps, batch), generator=g) if batch else None
    if batches is not None:
        batches[..., 0] = 0  # valid under every mask
    query_weights = torch.zeros(steps + 1, dtype=torch.float64)
    query_weights[-1] = 1.0
    if multi:
        query_weights = torch.linspace(0.4, 0.9, steps + 1, dtype=torch.float64)
    stats = (torch.rand(steps + 1, program.stats, generator=g) + 0.5).to(dtype) if program.stats else None
    program_tensor, attributes = encode(program)
    values = (
        program_tensor, attributes, weights, rate_table, sx, sy, sm, qx, qy, qm, classes, batches, stats, query_weights,
        None, steps, order, rule, momentum, 0.99, 1e-3, weight_decay, prox, 11, 2, budget,
        weights.new_zeros(tasks), weights.new_zeros(tasks, steps), weights.new_zeros(tasks, steps + 1),
        weights.new_zeros(tasks, queries, program.classes), torch.zeros_like(weights), torch.zeros_like(rate_table),
        None if program.tokens else torch.zeros_like(sx), None if program.tokens else torch.zeros_like(qx),
        weights.new_zeros(tasks, program.numel), weights.new_zeros(steps + 1, program.stats),
    )  # fmt: skip
    return dict(zip(NAMES["inner_loop"], values, strict=True))


def check(program: Program, **options: Any) -> None:
    args = arguments(program, **options)
    assert_same(native("inner_loop", args), reference("inner_loop", args))


# ---- programs of one layer each, between a convolution that makes it a map and a linear layer


def around(layer: Callable[[Builder], Any], c: int = 5, h: int = 6, w: int = 5, first: bool = False) -> Program:
    b = Builder(c, h, w)
    if not first:
        b.conv(c, 3)
    layer(b)
    b.linear(3)
    return b.program()


def conv(out: int, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], groups: int = 1,
         bias: bool = True) -> Callable[[Builder], Any]:  # fmt: skip
    def layer(b: Builder) -> None:
        c, h, w = b.values[b.last]
        weight = b.param(out, c // groups, *kernel)
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((h, w), pad, kernel, stride, strict=True)]
        b.add(Opcode.CONV2D, (out, *size), weight=weight, bias=b.param(out) if bias else -1,
              ints=(*kernel, *stride, *pad, groups))  # fmt: skip

    return layer


def norm(opcode: Opcode, *ints: int, weight: bool = True, bias: bool = True) -> Callable[[Builder], Any]:
    def layer(b: Builder) -> None:
        c, h, w = b.values[b.last]
        numel = c * h * w if opcode is Opcode.LAYER_NORM else c
        if opcode is Opcode.BATCH_NORM:
            b.stats += 2 * c
        b.add(opcode, weight=b.param(numel) if weight else -1, bias=b.param(numel) if bias else -1,
              ints=(*ints, b.stats - 2 * c) if opcode is Opcode.BATCH_NORM else ints, attributes=(1e-5,))  # fmt: skip

    return layer


def pool(opcode: Opcode, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int],
         count: int = 1) -> Callable[[Builder], Any]:  # fmt: skip
    def layer(b: Builder) -> None:
        c, h, w = b.values[b.last]
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((h, w), pad, kernel, stride, strict=True)]
        b.add(opcode, (c, *size), ints=(*kernel, *stride, *pad) + ((count,) if opcode is Opcode.AVG_POOL else ()))

    return layer


def activation(opcode: Opcode, *ints: int, attributes: tuple[float, ...] = ()) -> Callable[[Builder], Any]:
    return lambda b: b.add(opcode, ints=ints, attributes=attributes)


def twice(b: Builder) -> None:
    b.add(Opcode.ADD, in1=b.last)


def fused(pooled: bool, mode: int) -> Callable[[Builder], Any]:
    def layer(b: Builder) -> None:
        b.batch_norm(mode)
        b.add(Opcode.RELU)
        if pooled:
            b.pool(Opcode.MAX_POOL, 2, 2)

    return layer


def fork(b: Builder) -> None:
    """A batch norm whose ReLU has two readers, and a strided shortcut: no fusing over the fork."""
    b.batch_norm()
    top = b.add(Opcode.RELU)
    left = b.conv(4, 3, stride=2)
    right = b.conv(4, 1, stride=2, in0=top)
    b.add(Opcode.ADD, in0=left, in1=right)
    b.add(Opcode.RELU)


LAYERS: dict[str, Callable[[Builder], Any]] = {
    "conv 3x3": conv(7, (3, 3), (1, 1), (1, 1)),
    "conv 3x3 of 17 channels": conv(17, (3, 3), (1, 1), (1, 1), bias=False),
    "conv 1x1": conv(4, (1, 1), (1, 1), (0, 0)),
    "conv 1x1 stride 2": conv(4, (1, 1), (2, 2), (0, 0)),
    "conv 5x3 stride 2x1": conv(6, (5, 3), (2, 1), (2, 0)),
    "conv 2x2 stride 3": conv(3, (2, 2), (3, 3), (0, 0)),
    "conv over the whole map": conv(4, (6, 5), (1, 1), (0, 0)),
    "depthwise": conv(5, (3, 3), (1, 1), (1, 1), groups=5),
    "depthwise times 2": conv(10, (3, 3), (2, 2), (1, 1), groups=5),
    "batch norm": norm(Opcode.BATCH_NORM, 0),
    "batch norm without affine": norm(Opcode.BATCH_NORM, 0, weight=False, bias=False),
    "batch norm, fixed": norm(Opcode.BATCH_NORM, 1),
    "batch norm, ReLU": fused(False, 0),
    "batch norm, ReLU, pool": fused(True, 0),
    "batch norm, ReLU, pool, fixed": fused(True, 1),
    "fork": fork,
    "layer norm": norm(Opcode.LAYER_NORM),
    "layer norm without bias": norm(Opcode.LAYER_NORM, bias=False),
    "layer norm without affine": norm(Opcode.LAYER_NORM, weight=False, bias=False),
    "group norm": norm(Opcode.GROUP_NORM, 5),
    "instance norm": norm(Opcode.GROUP_NORM, 1, weight=False, bias=False),
    "relu": activation(Opcode.RELU),
    "gelu": activation(Opcode.GELU, 0),
    "gelu, tanh": activation(Opcode.GELU, 1),
    "tanh": activation(Opcode.TANH),
    "sigmoid": activation(Opcode.SIGMOID),
    "silu": activation(Opcode.SILU),
    "leaky relu": activation(Opcode.LEAKY_RELU, attributes=(0.1,)),
    "max pool 2": pool(Opcode.MAX_POOL, (2, 2), (2, 2), (0, 0)),
    "max pool 3 stride 2, padded": pool(Opcode.MAX_POOL, (3, 3), (2, 2), (1, 1)),
    "max pool 1x3 stride 1": pool(Opcode.MAX_POOL, (1, 3), (1, 1), (0, 1)),
    "average pool 2": pool(Opcode.AVG_POOL, (2, 2), (2, 2), (0, 0)),
    "average pool 3, padding counts": pool(Opcode.AVG_POOL, (3, 3), (2, 2), (1, 1), 1),
    "average pool 3, padding does not count": pool(Opcode.AVG_POOL, (3, 3), (2, 2), (1, 1), 0),
    "global average": pool(Opcode.AVG_POOL, (6, 5), (6, 5), (0, 0)),
    "x + x": twice,
    "dropout": activation(Opcode.DROPOUT, attributes=(0.3,)),
}


@pytest.mark.parametrize("first", [False, True], ids=["inner", "first"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, first: bool) -> None:
    check(around(LAYERS[name], first=first))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_float32(name: str) -> None:
    check(around(LAYERS[name]), dtype=torch.float32, steps=1)


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_channel_counts(channels: int, dtype: torch.dtype) -> None:
    """Whole vectors of channels, one fewer, one more."""

    def layers(b: Builder) -> None:
        b.conv(channels, 3)
        fused(True, 0)(b)
        b.conv(channels, 3, stride=2)
        fused(False, 0)(b)

    check(around(layers, c=2, h=8, w=9, first=True), dtype=dtype, steps=1)


@pytest.mark.parametrize("pooled", [False, True], ids=["plain", "pooled"])
@pytest.mark.parametrize("inputs", [False, True], ids=["weights alone", "input gradients"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_large_images(dtype: torch.dtype, inputs: bool, pooled: bool) -> None:
    """Convolutions that hand their images to the norm after them one by one, or in strips of rows."""
    b = Builder(2, 38, 26)
    for stride, adapted in ((1, True), (1, False), (2, True)):
        b.conv(32 if stride == 1 else 48, 3, stride=stride, adapted=adapted)
        fused(pooled and stride == 1, 0)(b)
    b.linear(3)
    for options in ({"multi": True, "steps": 1}, {"batch": 2, "steps": 2}, {"order": 1}):
        args = arguments(b.program(), dtype=dtype, tasks=2, support=3, queries=3, **options)
        if not inputs:
            args["grad_support_x"] = args["grad_query_x"] = None
        found = native("inner_loop", args)
        assert_same(found, reference("inner_loop", args))
        args["memory_budget"] = 0
        assert_equal(native("inner_loop", args), found)


@pytest.mark.parametrize("padding", [-1, 0])
def test_embeddings(padding: int) -> None:
    b = Builder(1, 5, 1, tokens=True)
    b.add(Opcode.EMBED_MEAN, (6, 1, 1), weight=b.param(11, 6), ints=(padding,))
    b.add(Opcode.TANH)
    b.linear(3)
    check(b.program(), masked=True)
    check(b.program(), batch=3, rule=1, momentum=0.5)


def test_embedding_of_padding_alone_is_zero() -> None:
    b = Builder(1, 4, 1, tokens=True)
    b.add(Opcode.EMBED_MEAN, (6, 1, 1), weight=b.param(11, 6), ints=(2,))
    b.linear(3)
    args = arguments(b.program())
    args["support_x"][0] = 2
    args["query_x"][1, :2] = 2
    assert_same(native("inner_loop", args), reference("inner_loop", args))


# ---- rules, rates, orders


@pytest.mark.parametrize("rates", list(itertools.product((1, 3), ("one", "tensor", "element"))), ids=str)
@pytest.mark.parametrize("rule", [(0, 0.0), (1, 0.9), (2, 0.8)], ids=["sgd", "momentum", "adam"])
def test_rules_and_rates(rule: tuple[int, float], rates: tuple[int, str]) -> None:
    for program in (mlp(), convolutional(frozen=True)):
        check(program, rule=rule[0], momentum=rule[1], rates=rates, steps=3, rate=0.01)
        check(program, rule=rule[0], momentum=rule[1], rates=rates, steps=3, rate=0.01, weight_decay=0.1, prox=0.3)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("rule", [0, 1, 2])
def test_orders(order: int, multi: bool, rule: int) -> None:
    options = {"order": order, "multi": multi, "rule": rule, "momentum": 0.7, "steps": 3, "rate": 0.02}
    check(convolutional(), **options)
    check(residual(), **options, weight_decay=0.01, prox=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["inner_loop", "task_grad", "task_hvp"])
def test_samples(name: str, dtype: torch.dtype) -> None:
    for sample in ops.REGISTRY[name].sample_inputs(dtype=dtype):
        args = dict(zip(NAMES[name], sample, strict=True))
        assert_same(native(name, args), reference(name, args))


@pytest.mark.parametrize(
    "wanted", ["grad_weights", "grad_rates", "grad_support_x", "grad_query_x", "adapted", "logits"]
)
def test_one_output_alone(wanted: str) -> None:
    args = arguments(convolutional(frozen=True), multi=True)
    for key in outputs("inner_loop")[1:]:
        if key != wanted:
            args[key] = None
    assert_same(native("inner_loop", args), reference("inner_loop", args))


# ---- data


@pytest.mark.parametrize("program", [convolutional(), convolutional(1, frozen=True), residual(), mlp()],
                         ids=["conv", "frozen", "residual", "mlp"])  # fmt: skip
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("batch", [0, 3], ids=["all", "mini-batches"])
@pytest.mark.parametrize("own_start", [False, True], ids=["shared", "own"])
def test_data(program: Program, masked: bool, batch: int, own_start: bool) -> None:
    check(program, masked=masked, batch=batch, own_start=own_start, multi=True, prox=0.1)


def test_batches_shared_by_tasks() -> None:
    args = arguments(convolutional(), batch=3)
    args["batches"] = args["batches"][0].clone()
    assert_same(native("inner_loop", args), reference("inner_loop", args))


def test_frozen_first_layers_run_once_and_still_get_gradients() -> None:
    """Everything before the last layer is frozen: with dropout among it, its passes differ from step to step."""
    for dropout in (False, True):
        b = Builder(2, 7, 6)
        b.conv(4, 3, adapted=False)
        c = b.values[b.last][0]
        b.stats += 2 * c
        b.add(Opcode.BATCH_NORM, weight=b.param(c, adapted=False), bias=b.param(c, adapted=False), ints=(0, 0),
              attributes=(1e-5,))  # fmt: skip
        b.add(Opcode.RELU)
        if dropout:
            b.add(Opcode.DROPOUT, attributes=(0.2,))
        b.linear(3)
        check(b.program(), multi=True, steps=3)
        check(b.program(), batch=2)
        check(b.program(), order=1, multi=True)


def test_nothing_is_adapted() -> None:
    b = Builder(3)
    weight = b.param(4, 3, adapted=False)
    b.add(Opcode.LINEAR, (4, 1, 1), weight=weight)
    check(b.program(), multi=True)


def test_a_parameter_that_no_layer_reads() -> None:
    b = Builder(3)
    b.param(2, 2, 2, 2)
    b.linear(4)
    b.param(5)
    check(b.program(), weight_decay=0.1, rates=(1, "element"))


def test_sizes_one_and_none() -> None:
    check(mlp(), tasks=1, support=1, queries=1, steps=1)
    check(residual(), tasks=1, support=1, queries=1, steps=1)
    check(convolutional(), steps=0, rates=(1, "tensor"))
    empty = native("inner_loop", arguments(mlp(), tasks=0))
    assert empty["task_losses"].shape == (0,) and not empty["grad_weights"].any()


def test_a_task_without_valid_examples() -> None:
    args = arguments(convolutional(), masked=True)
    args["support_mask"][0] = False
    args["query_mask"][1] = False
    assert_same(native("inner_loop", args), reference("inner_loop", args))


# ---- memory, threads, isolation


@pytest.mark.parametrize("rule", [0, 2])
def test_memory_budget_changes_nothing(rule: int) -> None:
    for program in (convolutional(), residual()):
        for batch in (0, 3):
            args = arguments(program, dtype=torch.float32, steps=5, rule=rule, momentum=0.9, rate=0.01, batch=batch,
                             multi=True)  # fmt: skip
            expected = native("inner_loop", args)
            for budget in (0, 200_000, 400_000, 10**12):
                args["memory_budget"] = budget
                assert_equal(native("inner_loop", args), expected)


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("own_start", [False, True])
def test_threads_change_nothing(tasks: int, own_start: bool) -> None:
    b = Builder(3, 28, 28)
    for _ in range(2):
        b.conv(32, 3)
        fused(True, 0)(b)
    b.linear(5)
    args = arguments(b.program(), dtype=torch.float32, tasks=tasks, support=5, queries=9, own_start=own_start,
                     rates=(2, "element"))  # fmt: skip
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native("inner_loop", args))
    finally:
        torch.set_num_threads(before)
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


PER_TASK = ("task_losses", "support_losses", "query_losses", "logits", "grad_support_x", "grad_query_x", "adapted")


def test_changing_a_task_changes_only_its_own_results() -> None:
    for program in (convolutional(), residual(), mlp()):
        args = arguments(program, dtype=torch.float32, tasks=4)
        before = native("inner_loop", args)
        args["support_x"][2] += 1.0
        after = native("inner_loop", args)
        others = torch.tensor([0, 1, 3])
        for key in PER_TASK:
            assert torch.equal(before[key][others].nan_to_num(7.0), after[key][others].nan_to_num(7.0)), key
            assert not torch.equal(before[key][2], after[key][2]) or before[key][2].isnan().any(), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_task_leaves_the_others_alone(value: float) -> None:
    """With a weight of 0 it does not reach the sums either, and memory is clean for the task that comes after."""
    for program in (convolutional(), residual(), mlp()):
        args = arguments(program, dtype=torch.float32, tasks=4)
        args["task_weights"] = torch.tensor([0.3, 0.0, 0.3, 0.4], dtype=torch.float64)
        expected = native("inner_loop", args)
        args["support_x"][1, 0] = value
        args["query_x"][1, 0] = value
        actual = native("inner_loop", args)
        assert not actual["task_losses"][1].isfinite()
        others = torch.tensor([0, 2, 3])
        for key in PER_TASK:
            assert torch.equal(actual[key][others].nan_to_num(7.0), expected[key][others].nan_to_num(7.0)), key
        for key in ("grad_weights", "grad_rates", "batch_stats"):
            assert torch.equal(actual[key], expected[key]), key


def test_results_repeat() -> None:
    args = arguments(residual(), dtype=torch.float32)
    first = native("inner_loop", args)
    native("inner_loop", arguments(convolutional(), tasks=2))
    assert_equal(native("inner_loop", args), first)


# ---- independent of the reference


def test_finite_differences() -> None:
    """Central differences of the meta-loss, in float64, for weights, rates and inputs."""
    b = Builder(2, 6, 6)
    b.conv(4, 3)
    b.batch_norm()
    b.add(Opcode.TANH)
    b.pool(Opcode.AVG_POOL, 2, 2)
    b.add(Opcode.LAYER_NORM, weight=b.param(36), bias=b.param(36), attributes=(1e-5,))
    b.linear(3)
    for rule, momentum in ((0, 0.0), (1, 0.9), (2, 0.8)):
        args = arguments(b.program(smoothing=0.1), steps=3, rule=rule, momentum=momentum, multi=True, weight_decay=0.05,
                         prox=0.1, rates=(3, "tensor"))  # fmt: skip
        gradient = native("inner_loop", args)

        def meta_loss(args: dict[str, Any] = args) -> float:
            return float(native("inner_loop", {**args, "order": 0})["task_losses"].mean())

        g = torch.Generator().manual_seed(3)
        for name in ("weights", "rates", "support_x", "query_x"):
            start = args[name]
            direction = torch.randn(start.shape, generator=g, dtype=torch.float64)
            values = []
            for sign in (1.0, -1.0):
                args[name] = start + sign * 1e-6 * direction
                values.append(meta_loss())
            args[name] = start
            expected = float((gradient["grad_" + name] * direction).sum())
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=2e-6, abs=1e-8), name


# ---- bad input


def test_hostile_programs_raise_or_run() -> None:
    """Every entry of a program, overwritten with wild values: an error or a result, never a crash."""
    hostile = (-(2**63), -1, 0, 1, 3, 99, 2**20, 2**40, 2**63 - 1)
    raised = 0
    for program in (convolutional(), residual(), mlp()):
        args = arguments(program, tasks=1, support=2, queries=2, steps=1)
        entries = args["program"].clone()
        for index, value in itertools.product(range(len(entries)), hostile):
            if int(entries[index]) == value:
                continue
            args["program"] = entries.clone()
            args["program"][index] = value
            try:
                native("inner_loop", args)
            except (RuntimeError, ValueError):
                raised += 1
    assert raised > 4000


def test_hostile_attributes_raise_or_run() -> None:
    for value in (float("nan"), float("inf"), -1.0, 1e300):
        args = arguments(residual(), tasks=1, steps=1)
        for index in range(len(args["attributes"])):
            changed = {**args, "attributes": args["attributes"].clone()}
            changed["attributes"][index] = value
            with contextlib.ExitStack() as stack:
                if not math.isfinite(value):
                    stack.enter_context(pytest.raises(ValueError, match="program"))
                else:
                    stack.enter_context(contextlib.suppress(ValueError))
                native("inner_loop", changed)


@pytest.mark.parametrize(("change", "message"), [
    ({"program": torch.zeros(16, dtype=torch.int64)}, "not a program"),
    ({"program": torch.zeros(0, dtype=torch.int64)}, "not a program"),
    ({"program": torch.zeros(16)}, "program must be int64"),
    ({"weights": torch.zeros(3, dtype=torch.float64)}, r"weights must be \[P\] or \[T, P\]"),
    ({"weights": torch.zeros(3, dtype=torch.int64)}, "weights must be float32 or float64"),
    ({"rates": torch.zeros(2, 3, dtype=torch.float64)}, "rates must be"),
    ({"rates": torch.zeros(1, 1)}, "rates must be float64"),
    ({"support_y": torch.full((3, 4), 3)}, r"support_y\[0, 0\] is 3, task 0 has 3 classes"),
    ({"query_y": torch.full((3, 5), -1)}, r"query_y\[0, 0\] is -1"),
    ({"query_y": torch.zeros(3, 4, dtype=torch.int64)}, "query_y must be"),
    ({"support_mask": torch.ones(3, 5, dtype=torch.bool)}, "support_mask must be"),
    ({"classes": torch.tensor([3, 0, 3])}, r"classes\[1\] is 0"),
    ({"batches": torch.tensor([[0, 4], [0, 1]])}, "batches names example 4 of 4"),
    ({"batches": torch.tensor([[0, -1], [0, 1]])}, "batches names example -1 of 4"),
    ({"query_weights": torch.zeros(2, dtype=torch.float64)}, "query_weights must be"),
    ({"task_weights": torch.zeros(2, dtype=torch.float64)}, "task_weights must be"),
    ({"steps": -1}, "steps must not be negative"),
    ({"order": 3}, "order must be"),
    ({"rule": 5}, "rule must be"),
    ({"task_losses": torch.zeros(4, dtype=torch.float64)}, "task_losses has the wrong shape"),
    ({"grad_weights": torch.zeros(3, dtype=torch.float64)}, "grad_weights has the wrong shape"),
    ({"logits": torch.zeros(3, 5, 4, dtype=torch.float64)}, "logits has the wrong shape"),
    ({"support_x": torch.zeros(3, 4, 2, 6, 7, dtype=torch.float64)}, "support_x must have the program's shape"),
    ({"support_x": torch.zeros(4, 3, 2, 7, 6, dtype=torch.float64).transpose(0, 1)},
     "support_x must be contiguous"),
])  # fmt: skip
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    args = arguments(convolutional())
    with pytest.raises((RuntimeError, ValueError), match=message):
        native("inner_loop", {**args, **change})


def test_tokens_out_of_range() -> None:
    b = Builder(1, 4, 1, tokens=True)
    b.add(Opcode.EMBED_MEAN, (6, 1, 1), weight=b.param(5, 6), ints=(0,))
    b.linear(3)
    args = arguments(b.program())
    with pytest.raises(RuntimeError, match="the table has 5 rows"):
        native("inner_loop", args)


def test_fixed_statistics_are_needed() -> None:
    args = arguments(convolutional(1))
    args["stats"] = None
    with pytest.raises(RuntimeError, match="stats is None"):
        native("inner_loop", args)
