"""Small programs and argument tuples that exercise the inner-loop ops: every layer, rule, loss and option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._program import Instruction, Loss, Opcode, Param, Program, encode


class _Builder:
    """Writes a program one layer at a time."""

    def __init__(self, c: int, h: int = 1, w: int = 1, tokens: bool = False) -> None:
        self.values = [(c, h, w)]
        self.params: list[Param] = []
        self.instructions: list[Instruction] = []
        self.stats, self.tokens, self.last = 0, tokens, 0

    def param(self, *shape: int, adapted: bool = True) -> int:
        self.params.append(Param(sum(p.numel for p in self.params), shape, adapted))
        return len(self.params) - 1

    def add(self, opcode: Opcode, shape: tuple[int, int, int] | None = None, **options: Any) -> int:
        source = options.pop("in0", self.last)
        self.values.append(shape or self.values[source])
        self.last = len(self.values) - 1
        self.instructions.append(Instruction(opcode, self.last, source, **options))
        return self.last

    def conv(
        self, out: int, kernel: int, stride: int = 1, groups: int = 1, adapted: bool = True, **options: Any
    ) -> int:
        c, h, w = self.values[options.get("in0", self.last)]
        pad = kernel // 2
        weight = self.param(out, c // groups, kernel, kernel, adapted=adapted)
        shape = (out, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1)
        ints = (kernel, kernel, stride, stride, pad, pad, groups)
        bias = self.param(out, adapted=adapted)
        return self.add(Opcode.CONV2D, shape, weight=weight, bias=bias, ints=ints, **options)

    def linear(self, out: int, bias: bool = True) -> int:
        c, h, w = self.values[self.last]
        weight = self.param(out, c * h * w)
        return self.add(Opcode.LINEAR, (out, 1, 1), weight=weight, bias=self.param(out) if bias else -1)

    def batch_norm(self, mode: int = 0) -> int:
        c = self.values[self.last][0]
        offset, self.stats = self.stats, self.stats + 2 * c
        weight, bias = self.param(c), self.param(c)
        return self.add(Opcode.BATCH_NORM, weight=weight, bias=bias, ints=(mode, offset), attributes=(1e-5,))

    def pool(self, opcode: Opcode, kernel: int, stride: int, pad: int = 0) -> int:
        c, h, w = self.values[self.last]
        shape = (c, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1)
        ints = (kernel, kernel, stride, stride, pad, pad, 1)
        return self.add(opcode, shape, ints=ints[: 6 if opcode is Opcode.MAX_POOL else 7])

    def program(self, loss: Loss = Loss.CROSS_ENTROPY, smoothing: float = 0.0) -> Program:
        values, params, rows = tuple(self.values), tuple(self.params), tuple(self.instructions)
        return Program(values, params, rows, self.last, loss, smoothing, self.stats, self.tokens)


def mlp() -> Program:
    """A regression on one input, with every smooth activation."""
    b = _Builder(1)
    b.linear(7)
    for opcode, ints in (
        (Opcode.TANH, ()),
        (Opcode.GELU, (0,)),
        (Opcode.SIGMOID, ()),
        (Opcode.GELU, (1,)),
        (Opcode.SILU, ()),
    ):
        b.add(opcode, ints=ints)
        b.linear(6)
    b.linear(2)
    return b.program(Loss.MSE)


def convolutional(mode: int = 0, frozen: bool = False) -> Program:
    """Conv, batch norm, ReLU, max-pool; a strided grouped convolution; a linear layer on a whole map."""
    b = _Builder(2, 7, 6)
    b.conv(6, 3, adapted=not frozen)
    b.batch_norm(mode)
    b.add(Opcode.RELU)
    b.pool(Opcode.MAX_POOL, 2, 2)
    b.conv(4, 3, stride=2, groups=2)
    b.batch_norm(mode)
    b.add(Opcode.RELU)
    b.linear(3)
    return b.program(smoothing=0.1)


def residual() -> Program:
    """A block with a shortcut, shared weights, layer norm, group norm, dropout and both pools."""
    b = _Builder(3, 6, 6)
    first = b.conv(4, 3)
    b.add(Opcode.GROUP_NORM, weight=b.param(4), bias=b.param(4), ints=(2,), attributes=(1e-5,))
    b.add(Opcode.LEAKY_RELU, attributes=(0.1,))
    shared = b.conv(4, 3)
    again = b.instructions[-1]
    b.add(Opcode.CONV2D, weight=again.weight, bias=again.bias, ints=again.ints)
    b.add(Opcode.ADD, in0=first, in1=b.last)
    b.add(Opcode.ADD, in0=b.last, in1=shared)
    b.pool(Opcode.MAX_POOL, 3, 2, 1)
    c, h, w = b.values[b.last]
    b.add(Opcode.LAYER_NORM, weight=b.param(c * h * w), bias=b.param(c * h * w), attributes=(1e-5,))
    b.add(Opcode.DROPOUT, attributes=(0.25,))
    b.pool(Opcode.AVG_POOL, h, h)
    b.linear(4)
    return b.program()


def bag() -> Program:
    """The mean of embeddings, and two layers."""
    b = _Builder(1, 5, 1, tokens=True)
    b.add(Opcode.EMBED_MEAN, (6, 1, 1), weight=b.param(11, 6), ints=(0,))
    b.add(Opcode.TANH)
    b.linear(3)
    return b.program()


def _weights(program: Program, generator: torch.Generator, tasks: int | None) -> Tensor:
    """Weights of about unit gain; vectors near one, as a norm's weight is."""
    parts = []
    for p in program.params:
        shape = (tasks or 1, p.numel)
        fan = p.numel // p.shape[0] if len(p.shape) > 1 else 25
        parts.append(torch.randn(shape, generator=generator) / fan**0.5 + (0.8 if len(p.shape) == 1 else 0.0))
    flat = torch.cat(parts, 1)
    return flat if tasks else flat[0]


class _Data:
    """Random data of a program, drawn in float32 and then cast, so that dtypes see the same numbers."""

    def __init__(self, program: Program, device: str, dtype: torch.dtype, seed: int, tasks: int, masked: bool) -> None:
        self.program, self.device, self.dtype, self.tasks, self.masked = program, device, dtype, tasks, masked
        self.generator = torch.Generator().manual_seed(seed)
        self.vectors = encode(program)  # stay on the CPU: the host plans from them

    def to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def weights(self, per_task: bool) -> Tensor:
        return self.to(_weights(self.program, self.generator, self.tasks if per_task else None))

    def normal(self, *shape: int) -> Tensor:
        return self.to(torch.randn(shape, generator=self.generator))

    def examples(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, y and the mask; what padding holds is NaN, which nothing may read."""
        (c, h, w), classes = self.program.values[0], self.program.classes
        mask = None
        if self.program.tokens:
            x = torch.randint(0, 11, (self.tasks, n, h), generator=self.generator)
        elif h == w == 1:
            x = torch.randn(self.tasks, n, c, generator=self.generator)
        else:
            x = torch.randn(self.tasks, n, c, h, w, generator=self.generator)
        if self.program.loss is Loss.MSE:
            y = torch.randn(self.tasks, n, classes, generator=self.generator)
        else:
            y = torch.randint(0, classes - int(self.masked), (self.tasks, n), generator=self.generator)
        if self.masked:
            mask = torch.arange(n) < n - torch.arange(self.tasks)[:, None] % 3
            if x.is_floating_point():
                x[~mask] = float("nan")
            mask = mask.to(self.device)
        return self.to(x), self.to(y), mask

    def classes(self) -> Tensor | None:
        if not self.masked or self.program.loss is Loss.MSE:
            return None
        return (self.program.classes - torch.arange(self.tasks) % 2).to(self.device)

    def stats(self, rows: int) -> Tensor | None:
        if self.program.stats == 0:
            return None
        return self.to(torch.rand(rows, self.program.stats, generator=self.generator) + 0.5)


def task_grad(device: str, dtype: torch.dtype, seed: int) -> list[tuple[Any, ...]]:
    """Argument tuples of `task_grad`."""
    samples: list[tuple[Any, ...]] = []
    for program, masked, per_task in ((convolutional(), True, True), (residual(), False, True), (mlp(), True, False),
                                      (bag(), True, True), (convolutional(1), False, False)):  # fmt: skip
        data = _Data(program, device, dtype, seed, 3, masked)
        weights, (x, y, mask) = data.weights(per_task), data.examples(5)
        inputs = (*data.vectors, weights, x, y, mask, data.classes(), data.stats(1), 7, 2, 1)
        losses, logits = weights.new_zeros(3), weights.new_zeros(3, 5, program.classes)
        grads = weights.new_zeros(3, program.numel)
        samples.append((*inputs, losses, logits, grads, torch.zeros_like(x) if x.is_floating_point() else None))
    samples.append((*samples[0][:-3], None, samples[0][-2].clone(), None))
    return samples


def task_hvp(device: str, dtype: torch.dtype, seed: int) -> list[tuple[Any, ...]]:
    """Argument tuples of `task_hvp`."""
    samples: list[tuple[Any, ...]] = []
    generator = torch.Generator().manual_seed(seed + 1)
    for *inputs, _, _, grads, grad_x in task_grad(device, dtype, seed)[:-1]:
        tangents = torch.randn(grads.shape, generator=generator).to(grads)
        samples.append((*inputs, tangents, grads, grad_x))
    return samples


def inner_loop(device: str, dtype: torch.dtype, seed: int) -> list[tuple[Any, ...]]:
    """Argument tuples of `inner_loop`."""
    # program, masked, a start per task, (rows, columns) of rates ("P", "n" or 1), mini-batch, multi-step loss, task
    # weights, steps, order, (rule, momentum), weight decay, prox
    rows: list[tuple[Any, ...]] = [
        (convolutional(), True, False, (2, "n"), 0, True, True, 2, 2, (0, 0.0), 0.0, 0.0),
        (convolutional(), False, False, (1, 1), 0, False, False, 2, 1, (0, 0.0), 0.0, 0.0),
        (convolutional(1, frozen=True), False, False, (1, 1), 3, False, False, 2, 2, (1, 0.9), 0.1, 0.0),
        (residual(), False, True, (1, "P"), 4, False, True, 2, 2, (0, 0.0), 0.0, 0.3),
        (mlp(), True, True, (3, "P"), 3, True, False, 3, 2, (2, 0.9), 0.01, 0.1),
        (bag(), True, False, (3, 1), 0, True, False, 3, 2, (1, 0.5), 0.0, 0.2),
        (mlp(), False, False, (1, 1), 0, False, False, 3, 1, (2, 0.8), 0.0, 0.0),
        (convolutional(), False, False, (1, 1), 0, False, True, 1, 0, (0, 0.0), 0.0, 0.0),
    ]
    samples: list[tuple[Any, ...]] = []
    tasks, support, queries = 3, 5, 4
    for index, row in enumerate(rows):
        program, masked, per_task, (k_rates, columns), batch, multi, weighted, steps, order, rule, decay, prox = row
        data = _Data(program, device, dtype, seed + index, tasks, masked)
        weights = data.weights(per_task)
        width = {"n": len(program.params), "P": program.numel}.get(columns, 1)
        rates = 0.05 + 0.05 * torch.rand(k_rates, width, generator=data.generator)
        if rule[0] == 2:
            rates = rates * 0.1
        s, q = data.examples(support), data.examples(queries)
        batches = None
        if batch:
            shape = (tasks, steps, batch) if per_task else (steps, batch)
            batches = torch.randint(0, support, shape, generator=data.generator).to(device)
        query_weights = torch.zeros(steps + 1, dtype=torch.float64)
        query_weights[-1] = 1.0
        if multi:
            query_weights = torch.linspace(0.0, 0.7, steps + 1, dtype=torch.float64)
        task_weights = torch.tensor([0.5, 0.0, 1.5], dtype=torch.float64, device=device) if weighted else None
        outputs: list[Tensor | None] = [
            weights.new_zeros(tasks), weights.new_zeros(tasks, steps), weights.new_zeros(tasks, steps + 1),
            weights.new_zeros(tasks, queries, program.classes), torch.zeros_like(weights),
            data.to(torch.zeros_like(rates)),
            None if program.tokens else torch.zeros_like(s[0]), None if program.tokens else torch.zeros_like(q[0]),
            weights.new_zeros(tasks, program.numel), weights.new_zeros(steps + 1, program.stats),
        ]  # fmt: skip
        if index == 1:  # only what a plain call needs
            outputs = [output if i in (0, 4) else None for i, output in enumerate(outputs)]
        samples.append((
            *data.vectors, weights, data.to(rates), *s, *q, data.classes(), batches, data.stats(steps + 1),
            query_weights, task_weights, steps, order, *rule, 0.99, 1e-8, decay, prox, 5, 1, -1, *outputs,
        ))  # fmt: skip
    return samples
