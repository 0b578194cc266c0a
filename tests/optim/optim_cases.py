"""What the optimizer tests share: cases, fixed gradients, and hypergradient descent written plainly in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import metafast
from metafast.ops import _native

# Every backend that runs here; the native kernels are compared wherever they have been built.
BACKENDS = ("reference", *(("cpu",) if _native.LIBRARIES["cpu"].loaded else ()))
CLASSES = ("SGD", "Adam", "AdamW")
HYPERGRADS = ("global", "group", "tensor", "element")
RULES = ("additive", "multiplicative", "normalized", "sign")

# Options that torch.optim has as well.
TORCH_CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "maximize": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.0}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.01, "maximize": True, "betas": (0.0, 0.99)}),
]
CASE_IDS = [f"{name}-{'-'.join(map(str, options)) or 'defaults'}" for name, options in TORCH_CASES]


def ours(name: str) -> type[torch.optim.Optimizer]:
    cls: type[torch.optim.Optimizer] = getattr(metafast.optim, name)
    return cls


def theirs(name: str) -> type[torch.optim.Optimizer]:
    cls: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    return cls


def make_params(shapes: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(tuple(shape), generator=generator).to(dtype)) for shape in shapes]


def copies(params: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Parameters with the same values and strides, in another dtype if given."""
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params]


def gradients(params: Sequence[Tensor], steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    """For each step one gradient per parameter, from the seed alone: a drift, so that directions agree, and noise."""
    generator = torch.Generator().manual_seed(seed)
    drift = [torch.randn(p.shape, generator=generator) for p in params]
    for _ in range(steps):
        yield [(d + torch.randn(p.shape, generator=generator)).to(p.dtype) for p, d in zip(params, drift, strict=True)]


def run(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Iterator[list[Tensor]]) -> None:
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.to(param.dtype)
        optimizer.step()


def assert_as_good(mine: Sequence[Tensor], peer: Sequence[Tensor], oracle: Sequence[Tensor]) -> None:
    """`mine` is as near to the float64 oracle as the peer is: within twice its error, or a few units of rounding."""
    for a, b, exact in zip(mine, peer, oracle, strict=True):
        if a.numel() == 0:
            continue
        scale = exact.detach().abs().max().clamp(min=1e-3)
        error, allowed = (a.detach().double() - exact).abs().max(), (b.detach().double() - exact).abs().max()
        assert error <= 2 * allowed + 8 * torch.finfo(a.dtype).eps * scale, (float(error), float(allowed))


def states_equal(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and sequences."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return bool(a == b)


# ---- Baydin et al. 2018, plainly: the hypergradient by autograd through the last update, everything in float64


class PlainHD:
    """Hypergradient descent on `loss(params)` as the paper writes it.

    At step t the loss is a function of the rate that made these parameters, θ_t = θ_{t-1} - α u_{t-1}: its derivative
    by autograd is the hypergradient. `late` applies a new rate one step later than the paper.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        loss: Callable[[list[Tensor]], Tensor],
        direction: Callable[..., Tensor],
        *,
        segments: Sequence[int] | None,
        lr: float,
        hyper_lr: float,
        rule: str = "additive",
        late: bool = False,
        bounds: tuple[float, float] = (1e-8, 10.0),
        decay: float = 0.0,
    ) -> None:
        self.values = [p.detach().double().clone() for p in params]
        self.loss, self.direction, self.rule = loss, direction, rule
        self.hyper_lr, self.late, self.bounds, self.decay = hyper_lr, late, bounds, decay
        self.segments = segments  # rate of each parameter; None: one rate per element
        count = 0 if segments is None else max(segments) + 1
        self.rates = [torch.tensor(lr, dtype=torch.float64) for _ in range(count)]
        if segments is None:
            self.rates = [torch.full_like(v, lr) for v in self.values]
        self.last = [torch.zeros_like(v) for v in self.values]  # u_{t-1}
        self.memory: list[dict[str, Tensor]] = [{} for _ in self.values]
        self.step_count = 0

    def rate_of(self, index: int) -> Tensor:
        return self.rates[index if self.segments is None else self.segments[index]]

    def step(self) -> None:
        self.step_count += 1
        probes = [torch.zeros_like(r).requires_grad_() for r in self.rates]
        thetas = []
        for index, (value, u) in enumerate(zip(self.values, self.last, strict=True)):
            probe = probes[index if self.segments is None else self.segments[index]]
            thetas.append((value - probe * u).requires_grad_())
        for theta in thetas:
            theta.retain_grad()
        self.loss(thetas).backward()
        grads = [theta.grad.detach().clone() for theta in thetas]
        hypers = [torch.zeros_like(p) if p.grad is None else p.grad for p in probes]  # df/dα = -g·u
        moved = [self._moved(k, r, -h, grads) for k, (r, h) in enumerate(zip(self.rates, hypers, strict=True))]
        if not self.late:
            self.rates = moved
        for index, grad in enumerate(grads):
            u = self.direction(grad, self.values[index], self.memory[index], self.step_count)
            rate = self.rate_of(index)
            self.values[index] = self.values[index] * (1 - rate * self.decay) - rate * u
            self.last[index] = u
        self.rates = moved

    def _moved(self, which: int, rate: Tensor, gu: Tensor, grads: list[Tensor]) -> Tensor:
        if self.segments is None:
            cosine = gu.sign()
        else:
            members = [i for i, s in enumerate(self.segments) if s == which]
            norm = math.sqrt(sum(float(grads[i].square().sum()) for i in members)) * math.sqrt(
                sum(float(self.last[i].square().sum()) for i in members)
            )
            cosine = gu / norm if norm > 0 else torch.zeros_like(gu)
        new = {
            "additive": rate + self.hyper_lr * gu,
            "multiplicative": rate * (1 + self.hyper_lr * cosine),
            "normalized": rate * torch.exp(self.hyper_lr * cosine),
            "sign": rate * torch.exp(self.hyper_lr * gu.sign()),
        }[self.rule]
        return new.clamp(*self.bounds)


def sgd_direction(momentum: float = 0.0, nesterov: bool = False, l2: float = 0.0) -> Callable[..., Tensor]:
    """Algorithm 4 without momentum, Algorithm 6 with Nesterov momentum."""

    def direction(g: Tensor, theta: Tensor, memory: dict[str, Tensor], t: int) -> Tensor:
        g = g + l2 * theta
        if not momentum:
            return g
        memory["v"] = g if t == 1 else momentum * memory["v"] + g
        return g + momentum * memory["v"] if nesterov else memory["v"]

    return direction


def adam_direction(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Callable[..., Tensor]:
    """Algorithm 5."""

    def direction(g: Tensor, theta: Tensor, memory: dict[str, Tensor], t: int) -> Tensor:
        memory["m"] = beta1 * memory.get("m", torch.zeros_like(g)) + (1 - beta1) * g
        memory["v"] = beta2 * memory.get("v", torch.zeros_like(g)) + (1 - beta2) * g * g
        return (memory["m"] / (1 - beta1**t)) / ((memory["v"] / (1 - beta2**t)).sqrt() + eps)

    return direction


def logistic_loss(seed: int = 3) -> Callable[[list[Tensor]], Tensor]:
    """A two-layer network on fixed data; parameters (5, 4), (5,), (3, 5), (3,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (32,), generator=generator)

    def loss(params: list[Tensor]) -> Tensor:
        w1, b1, w2, b2 = params
        hidden = torch.tanh(x.to(w1.dtype) @ w1.T + b1)
        return torch.nn.functional.cross_entropy(hidden @ w2.T + b2, y)

    return loss


LOGISTIC_SHAPES = ((5, 4), (5,), (3, 5), (3,))
