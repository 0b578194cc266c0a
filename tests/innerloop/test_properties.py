"""Any shape, stride, dtype and option: the compiled engine equals the loop, and the peers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metafast.data import TaskBatch
from metafast.innerloop import SGD, Adam, InnerLoop
from metafast.models import Conv4, ResNet12
from tests.innerloop.cases import COMPILED, batch_of, gradients, make, make_batch, strided, worst
from tests.innerloop.test_inner_loop import plain_loop

LIMIT = {torch.float64: 1e-9, torch.float32: 2e-4}


@st.composite
def networks(draw: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    """A random convolutional net that fits its input."""
    c, h, w = draw(st.integers(1, 3)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    shape = (c, h, w)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        kernel = (draw(st.integers(1, min(h, 3))), draw(st.integers(1, min(w, 3))))
        stride = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
        padding = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if c % g == 0]))
        out = groups * draw(st.integers(1, 5))
        layers.append(nn.Conv2d(c, out, kernel, stride, padding, groups=groups, bias=draw(st.booleans())))
        c = out
        h, w = ((s + 2 * p - k) // t + 1 for s, p, k, t in zip((h, w), padding, kernel, stride, strict=True))
        norm = draw(st.sampled_from(["batch", "group", "none"]))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(c, track_running_stats=False, affine=draw(st.booleans())))
        elif norm == "group":
            layers.append(nn.GroupNorm(1, c))
        layers.append(draw(st.sampled_from([nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid]))())
        if min(h, w) >= 2 and draw(st.booleans()):
            pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
            layers.append(pool(2, draw(st.integers(1, 2))))
            h, w = ((s - 2) // layers[-1].stride + 1 for s in (h, w))
    layers += [nn.Flatten(), nn.Linear(c * h * w, 3)]
    return nn.Sequential(*layers), shape


@settings(max_examples=25)
@given(
    networks(), st.sampled_from([torch.float64, torch.float32]), st.integers(1, 2), st.integers(0, 2**16), st.booleans()
)
def test_random_networks(network: Any, dtype: torch.dtype, order: int, seed: int, masked: bool) -> None:
    model, shape = network
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model = model.to(dtype)
    batch = make_batch(shape, tasks=2, support=5, query=4, seed=seed, dtype=dtype, masked=masked)
    batch = dataclasses.replace(
        batch, support_x=batch.support_x.requires_grad_(), query_x=batch.query_x.requires_grad_()
    )
    reference = InnerLoop(model, steps=2, engine="loop", order=order)
    compiled = InnerLoop(model, steps=2, engine="compiled", order=order)
    expected_outcome, expected = gradients(reference, batch, rates=0.05)
    outcome, found = gradients(compiled, batch, rates=0.05)
    error, where = worst(found, expected)
    assert error < LIMIT[dtype], (where, error)
    torch.testing.assert_close(outcome.logits, expected_outcome.logits, rtol=LIMIT[dtype], atol=LIMIT[dtype])


@settings(max_examples=10)
@given(st.integers(0, 3), st.booleans(), st.sampled_from([torch.float64, torch.float32]))
def test_strides_of_inputs(offset: int, transposed: bool, dtype: torch.dtype) -> None:
    """Views with gaps, odd offsets and another order of memory give what their copies give."""
    model = make("strided", dtype)
    batch = batch_of("strided", dtype=dtype)
    inner = InnerLoop(model, steps=2)
    expected = gradients(inner, batch, rates=0.1)[1]

    def hide(x: Tensor) -> Tensor:
        if transposed and x.dim() > 2:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        storage = torch.full((x.numel() * 2 + offset,), 99, dtype=x.dtype)
        view = storage[offset : offset + 2 * x.numel() : 2].view(x.shape)
        return view.copy_(x)

    hidden = TaskBatch(hide(batch.support_x), hide(batch.support_y), hide(batch.query_x), hide(batch.query_y))
    found = gradients(inner, hidden, rates=0.1)[1]
    assert all(torch.equal(found[n], e) for n, e in expected.items())


@pytest.mark.parametrize("rule", [SGD(), SGD(0.9, 0.01, 0.1), Adam(0.8, 0.9, 1e-3)], ids=["sgd", "momentum", "adam"])
def test_memory_budget_and_threads_change_nothing(rule: SGD | Adam) -> None:
    model, batch = make("residual"), batch_of("residual", tasks=5)
    results = []
    threads = torch.get_num_threads()
    try:
        for budget, count in ((None, 1), (0, 1), (20_000, 1), (None, 2), (0, 3)):
            torch.set_num_threads(count)
            inner = InnerLoop(model, steps=4, rule=rule, memory_budget=budget)
            results.append(gradients(inner, batch, rates=0.05)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:3]:
        assert worst(other, results[0])[0] < 1e-11
    for one, many in ((results[0], results[3]), (results[1], results[4])):
        assert all(torch.equal(one[n], many[n]) for n in one), "the number of threads changed a bit"


def higher_gradient(model: nn.Module, batch: TaskBatch, steps: int, order: int) -> dict[str, Tensor]:
    """The meta-gradient by `higher`; its first order takes inner gradients as constants."""
    higher = pytest.importorskip("higher")
    constant = None if order == 2 else lambda grads: [g.detach() for g in grads]
    inner_optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for sx, sy, qx, qy in (batch.task(t) for t in range(batch.tasks)):
        with higher.innerloop_ctx(model, inner_optimizer, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(steps):
                optimizer.step(F.cross_entropy(fast(sx), sy), grad_callback=constant)
            (F.cross_entropy(fast(qx), qy) / batch.tasks).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def torchopt_gradient(model: nn.Module, batch: TaskBatch, steps: int, order: int) -> dict[str, Tensor]:
    """The meta-gradient by torchopt, which has the second order alone."""
    torchopt = pytest.importorskip("torchopt")
    assert order == 2
    for sx, sy, qx, qy in (batch.task(t) for t in range(batch.tasks)):
        state = torchopt.extract_state_dict(model, by="reference")
        optimizer = torchopt.MetaSGD(model, lr=0.1)
        before = torchopt.extract_state_dict(optimizer)
        for _ in range(steps):
            optimizer.step(F.cross_entropy(model(sx), sy))
        (F.cross_entropy(model(qx), qy) / batch.tasks).backward()
        torchopt.recover_state_dict(model, state)
        torchopt.recover_state_dict(optimizer, before)
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def plain_gradient(model: nn.Module, batch: TaskBatch, steps: int, order: int) -> dict[str, Tensor]:
    return plain_loop(model, batch, 0.1, steps, order)


PEERS = {"higher": higher_gradient, "torchopt": torchopt_gradient, "plain loop": plain_gradient}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", [name for name in COMPILED if name != "bag"])  # which torch cannot differentiate twice
def test_peers(name: str, peer: str) -> None:
    """Meta-gradients in fp32, of every layer, as the libraries that people know compute them."""
    model, batch = make(name, torch.float32), batch_of(name, dtype=torch.float32)
    for steps, order in ((1, 2), (5, 2), (5, 1)):
        if order == 1 and peer == "torchopt":
            continue
        found = gradients(InnerLoop(model, steps=steps, order=order, engine="compiled"), batch, rates=0.1)[1]
        model.zero_grad(set_to_none=True)
        error, where = worst(found, PEERS[peer](model, batch, steps, order))
        assert error < 1e-5, (steps, order, where, error)


def test_a_finite_difference_of_the_meta_loss() -> None:
    model, batch = make("residual"), batch_of("residual")
    rates = torch.full((3,), 0.2, dtype=torch.float64, requires_grad=True)
    inner = InnerLoop(model, steps=3, rule=SGD(0.5))
    found = gradients(inner, batch, rates=rates)[1]
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in found.items()}

    def value(step: float) -> float:
        weights = {n: (p + step * direction[n]).detach() for n, p in model.named_parameters()}
        with torch.no_grad():
            return float(inner(batch, rates=rates + step * direction["rates"], params=weights).loss)

    slope = (value(1e-6) - value(-1e-6)) / 2e-6  # small, for max-pooling has kinks
    assert sum(float((found[n] * d).sum()) for n, d in direction.items()) == pytest.approx(slope, rel=1e-7)


def test_the_mini_imagenet_shape() -> None:
    """Five steps in float64, for fp32 is chaotic there: near-equal maxima change places; one step in fp32."""
    model = Conv4(3, 5, 84, channels=32, downsample="max_pool", seed=0).double()
    batch = make_batch((3, 84, 84), tasks=1, support=5, query=5, classes=5)
    found = gradients(InnerLoop(model, steps=5, engine="compiled"), batch, rates=0.01)[1]
    error, where = worst(found, plain_loop(model, batch, 0.01, 5))
    assert error < 1e-10, (where, error)
    model, batch = model.float(), batch.to(dtype=torch.float32)
    found = gradients(InnerLoop(model, steps=1, engine="compiled"), batch, rates=0.01)[1]
    error, where = worst(found, plain_loop(model, batch, 0.01, 1))
    assert error < 1e-4, (where, error)


def resnet(layer_type: str, depths: list[int]) -> nn.Module:
    """One of the Hugging Face hub's, narrow, with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=depths, layer_type=layer_type, num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


RESNETS = {"resnet18": ("basic", [2, 2, 2, 2]), "resnet50": ("bottleneck", [3, 4, 6, 3])}


@pytest.mark.parametrize("name", [*RESNETS, "resnet12", "conv4"])
def test_known_networks_compile(name: str) -> None:
    models = {
        **{known: lambda known=known: resnet(*RESNETS[known]) for known in RESNETS},
        "resnet12": lambda: ResNet12(3, 3, widths=(4, 4, 8, 8), seed=0),
        "conv4": lambda: Conv4(3, 3, 32, channels=4, downsample="max_pool", seed=0),
    }
    torch.manual_seed(0)
    model = models[name]().double()
    batch = make_batch((3, 32, 32), tasks=2, support=4, query=3)
    compiled = InnerLoop(model, steps=1, engine="compiled")
    found = gradients(compiled, batch, rates=0.01)[1]
    expected = gradients(InnerLoop(model, steps=1, engine="loop"), batch, rates=0.01)[1]
    error, where = worst(found, expected)
    assert error < 1e-8, (where, error)


@pytest.mark.parametrize("name", RESNETS)
def test_only_the_last_block_adapts(name: str) -> None:
    """A frozen body in evaluation mode, a head and last block that adapt: as with a pre-trained network."""
    torch.manual_seed(0)
    model = resnet(*RESNETS[name]).double()
    model.resnet.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # away from zeros and ones
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    names = ["resnet.encoder.stages.3.*", "classifier.*"]
    for n, p in model.named_parameters():
        p.requires_grad_(n.startswith(("resnet.encoder.stages.3.", "classifier.")))
    batch = make_batch((3, 32, 32), tasks=2, support=4, query=3)
    outcome, found = gradients(
        InnerLoop(model, steps=2, adapted=names, engine="compiled"), batch, rates=0.01, want_adapted=True
    )
    expected = gradients(InnerLoop(model, steps=2, engine="loop"), batch, rates=0.01)[1]
    assert worst(found, expected)[0] < 1e-9
    for n, p in model.named_parameters():
        moved = not torch.equal(outcome.adapted[n][0], p.detach())
        assert moved == p.requires_grad, n
    assert not found["resnet.embedder.embedder.convolution.weight"].any()


def test_fp32_is_near_float64() -> None:
    torch.manual_seed(0)
    model = strided(lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    batch = make_batch((2, 6, 6), dtype=torch.float32)
    single = gradients(InnerLoop(model, steps=1), batch, rates=0.1)[1]
    double = gradients(InnerLoop(model.double(), steps=1), batch.to(dtype=torch.float64), rates=0.1)[1]
    assert worst({n: g.double() for n, g in single.items()}, double)[0] < 2e-5
