"""The workloads: models, random tasks of the right shapes, and the arithmetic that a meta-gradient needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.maml_problem import Problem


@dataclass(frozen=True)
class Workload:
    """A model with shapes of tasks.

    Attributes:
        title: what a table says.
        layers: the model, as data: every contender builds its own form of it.
        image: shape of one example.
        ways: classes; 0 for regression.
        shots, queries: examples of a class in support and query set; of the whole task for regression.
        tasks: of one meta-gradient.
        lr: inner learning rate.
        chunk: tasks that `vmap` takes at a time; the fastest of 1, 2, 4, 8 and all on the reference machine.
        checked: how many of the tasks a contender's gradient is checked on, in a problem of its own. Of many tasks, one
            has an activation so near a kink that fp32 and float64 take different sides, and everybody is off by 1e-3.
        chaotic: that happens in every task, and over several steps gradients differ by percents; the check is then in
            float64, on smaller sets.
    """

    title: str
    layers: tuple[tuple[Any, ...], ...]
    image: tuple[int, ...]
    ways: int
    shots: int
    queries: int
    tasks: int
    lr: float
    chunk: int
    checked: int
    chaotic: bool = False

    @property
    def support(self) -> int:
        """Support examples of a task."""
        return self.shots * max(self.ways, 1)

    @property
    def query(self) -> int:
        """Query examples of a task."""
        return self.queries * max(self.ways, 1)

    def model(self) -> nn.Sequential:
        """The model with the weights of seed 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(*(_LAYERS[kind](*sizes) for kind, *sizes in self.layers))

    def problem(self, steps: int, order: int, dtype: torch.dtype = torch.float32) -> Problem:
        """Model and random tasks of one meta-gradient; the same numbers in every process."""
        generator = torch.Generator().manual_seed(1)
        sizes = (self.tasks, self.support), (self.tasks, self.query)
        # float32 draws, so that float64 sees the same values
        xs = [torch.randn(*size, *self.image, generator=generator) for size in sizes]
        if self.ways:
            ys = [torch.arange(size[1]).remainder(self.ways).expand(size).contiguous() for size in sizes]
        else:
            ys = [x.sin() for x in xs]
        xs = [x.to(dtype) for x in xs]
        ys = [y if self.ways else y.to(dtype) for y in ys]
        return Problem(
            self.model().to(dtype), "cross_entropy" if self.ways else "mse", xs[0], ys[0], xs[1], ys[1],
            lr=self.lr, steps=steps, order=order, layers=self.layers, chunk=self.chunk,
        )  # fmt: skip

    def flops(self, steps: int, order: int) -> int:
        """Multiplications and additions of matrix products and convolutions in one meta-gradient; nothing else counts.

        An inner step is a forward and a backward pass over the support set, the meta-gradient one more over the query
        set. Second order adds the directional derivative of both passes for every step, whose products have two terms
        each; what is not needed (the input's gradient and tangent in the first layer) is not counted.
        """
        layers = self._layer_flops()
        total, first = sum(layers), layers[0]
        plain = 3 * total - first
        tangent = (2 * total - first) + 2 * (total - first) + (2 * total - first)
        per_step = plain + (tangent if order == 2 else 0)
        return self.tasks * (self.query * plain + steps * self.support * per_step)

    def _layer_flops(self) -> list[int]:
        counts: list[int] = []

        def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                taps = module.weight[0].numel()
                counts.append(2 * output.numel() * taps)
            elif isinstance(module, nn.Linear):
                counts.append(2 * output.numel() * module.in_features)

        model = self.model()
        for module in model:
            module.register_forward_hook(count)
        with torch.no_grad():
            model(torch.zeros(2, *self.image))
        return [c // 2 for c in counts]  # two examples, because a batch of one has no variance


def _batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)  # statistics of the batch, as MAML uses them


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv": lambda cin, cout, stride: nn.Conv2d(cin, cout, 3, stride=stride, padding=1),
    "norm": _batch_norm,
    "relu": nn.ReLU,
    "pool": lambda: nn.MaxPool2d(2),
    "mean": lambda side: nn.AvgPool2d(side),  # over the whole map
    "flatten": nn.Flatten,
    "linear": nn.Linear,
}


def conv4(channels: int, width: int, stride: int, pool: bool, side: int, ways: int) -> tuple[tuple[Any, ...], ...]:
    """Four 3x3 convolutions with batch normalization and ReLU, then a linear layer (Vinyals et al. 2016).

    Strided for Omniglot, with the mean over the last map, as in MAML's code; with 2x2 max-pooling for miniImageNet.
    """
    layers: list[tuple[Any, ...]] = []
    for index in range(4):
        layers += [("conv", channels if index == 0 else width, width, stride), ("norm", width), ("relu",)]
        layers += [("pool",)] * pool
        side = side // 2 if pool else -(-side // stride)
    if not pool:
        layers.append(("mean", side))
        side = 1
    return (*layers, ("flatten",), ("linear", width * side * side, ways))


WORKLOADS = {
    "sinusoid": Workload(
        "sinusoid MLP 1-40-40-1, 25 tasks, 10 shots",
        (("linear", 1, 40), ("relu",), ("linear", 40, 40), ("relu",), ("linear", 40, 1)),
        image=(1,), ways=0, shots=10, queries=10, tasks=25, lr=0.01, chunk=25, checked=25,
    ),
    "omniglot": Workload(
        "Omniglot Conv4-64 28×28, 5-way 1-shot, 15 queries, 32 tasks",
        conv4(1, 64, stride=2, pool=False, side=28, ways=5),
        image=(1, 28, 28), ways=5, shots=1, queries=15, tasks=32, lr=0.4, chunk=4, checked=4,
    ),
    "miniimagenet": Workload(
        "miniImageNet-shaped Conv4-32 84×84, 5-way 5-shot, 15 queries, 4 tasks",
        conv4(3, 32, stride=1, pool=True, side=84, ways=5),
        image=(3, 84, 84), ways=5, shots=5, queries=15, tasks=4, lr=0.01, chunk=1, checked=1, chaotic=True,
    ),
    # For tests of the benchmark itself, and for the scaling study of one task in the memory of many.
    "tiny_mlp": Workload(
        "tiny MLP", (("linear", 1, 8), ("relu",), ("linear", 8, 1)),
        image=(1,), ways=0, shots=5, queries=5, tasks=3, lr=0.01, chunk=2, checked=3,
    ),
    "tiny_conv": Workload(
        "tiny Conv4-8, strided", conv4(1, 8, stride=2, pool=False, side=16, ways=3),
        image=(1, 16, 16), ways=3, shots=2, queries=2, tasks=3, lr=0.1, chunk=2, checked=3,
    ),
    "tiny_pool": Workload(
        "tiny Conv4-8, max-pool", conv4(3, 8, stride=1, pool=True, side=16, ways=3),
        image=(3, 16, 16), ways=3, shots=2, queries=2, tasks=3, lr=0.01, chunk=2, checked=3, chaotic=True,
    ),
}  # fmt: skip
MAIN = ("sinusoid", "omniglot", "miniimagenet")


def small(workload: Workload) -> Workload:
    """The same layers on two tasks with few examples: loads the libraries before memory is measured."""
    return replace(workload, tasks=2, shots=1, queries=1)
