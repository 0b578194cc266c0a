"""One pass of a program over the data of all tasks: loss, gradient, and the derivative of the gradient."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

from . import _layers_reference as layers
from ._dropout_hash import dropout_keep
from ._program import Instruction, Loss, Opcode, Program


class Tape:
    """Forward and backward at `weights` `[T, P]`; afterwards any number of `hvp`.

    Args:
        program: the model.
        weights: `[T, P]`.
        x, y, mask, classes: the data; see `task_grad`.
        stats: `[S]`, the fixed statistics, or None.
        seed, step, first_task: which elements dropout keeps.
        examples: `[T, N]`, where each example stands in the task's data, for dropout; None: in order.
    """

    def __init__(
        self,
        program: Program,
        weights: Tensor,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        classes: Tensor | None,
        stats: Tensor | None,
        seed: int,
        step: int,
        first_task: int,
        examples: Tensor | None = None,
    ) -> None:
        self.program, self.weights, self.stats = program, weights, stats
        self.tasks, self.n = x.shape[:2]
        self.seed, self.step, self.first_task, self.examples = seed, step, first_task, examples
        self.mask = mask
        self.shape_of_x = x.shape
        if mask is not None:  # what padding holds, NaN too, reaches nothing
            x = torch.where(
                mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device)
            )
        c, h, w = program.values[0]
        self.values: dict[int, Tensor | None] = {0: x if program.tokens else x.reshape(self.tasks, self.n, c, h, w)}
        self.layers = [self._layer(i) for i in range(len(program.instructions))]
        for instruction, layer in zip(program.instructions, self.layers, strict=True):
            source = self.values[instruction.in0]
            assert source is not None
            if instruction.opcode is Opcode.ADD:
                other = self.values[instruction.in1]
                assert other is not None
                self.values[instruction.out] = source + other
            else:
                assert layer is not None
                self.values[instruction.out] = layer.forward(
                    source,
                    self._param(weights, instruction.weight, instruction),
                    self._param(weights, instruction.bias),
                )
        z = self.values[program.logits]
        assert z is not None
        valid = torch.ones(self.tasks, self.n, dtype=torch.bool, device=x.device) if mask is None else mask
        self.loss: layers.CrossEntropy | layers.SquaredError
        if program.loss is Loss.CROSS_ENTROPY:
            self.loss = layers.CrossEntropy(program.label_smoothing, valid, classes)
        else:
            self.loss = layers.SquaredError(valid)
        self.losses = self.loss.forward(z.reshape(self.tasks, self.n, -1), y)
        self.logits = torch.where(valid[..., None], z.reshape(self.tasks, self.n, -1), 0)

    def _param(self, flat: Tensor, index: int, instruction: Instruction | None = None) -> Tensor | None:
        """`[T, ...]` of a flat vector; an embedding table keeps its two sizes."""
        if index < 0:
            return None
        param = self.program.params[index]
        view = flat[:, param.offset : param.offset + param.numel]
        if instruction is not None and instruction.opcode is Opcode.EMBED_MEAN:
            return view.reshape(flat.shape[0], *param.shape[:2])
        return view.reshape(flat.shape[0], param.numel)

    def _layer(self, index: int) -> layers.Layer | None:
        i = self.program.instructions[index]
        shape = self.program.values[i.in0]
        if i.opcode in (Opcode.CONV2D, Opcode.LINEAR):
            return layers.Conv2d(i, shape)
        if i.opcode is Opcode.BATCH_NORM:
            mode, offset = i.ints[:2]
            if mode == 0:
                return layers.BatchNorm(i.attributes[0], self.mask)
            if self.stats is None:
                raise ValueError("stats is needed: a batch norm of the program has fixed statistics")
            mean, variance = self.stats[offset : offset + 2 * shape[0]].view(2, -1)
            return layers.FixedNorm(i.attributes[0], mean, variance)
        if i.opcode is Opcode.LAYER_NORM:
            return layers.LayerNorm(i.attributes[0])
        if i.opcode is Opcode.GROUP_NORM:
            return layers.GroupNorm(i.attributes[0], i.ints[0])
        if i.opcode is Opcode.MAX_POOL:
            return layers.MaxPool(i.ints)
        if i.opcode is Opcode.AVG_POOL:
            return layers.AvgPool(i.ints)
        if i.opcode is Opcode.DROPOUT:
            return layers.Dropout(self._keep(index, shape, i.attributes[0]), i.attributes[0])
        if i.opcode is Opcode.EMBED_MEAN:
            return layers.EmbedMean(i.ints[0])
        return None if i.opcode is Opcode.ADD else layers.Activation(layers.ACTIVATIONS[i.opcode](i))

    def _keep(self, index: int, shape: tuple[int, int, int], p: float) -> Tensor:
        examples = self.examples
        if examples is None:
            examples = torch.arange(self.n, device=self.weights.device).expand(self.tasks, -1)
        return torch.stack([
            dropout_keep(self.seed, self.first_task + t, self.step, index, examples[t], shape, p)
            for t in range(self.tasks)
        ])  # fmt: skip

    def gradient(self) -> tuple[Tensor, Tensor | None]:
        """(d losses / d weights `[T, P]`, d losses / d x)."""
        z = self.values[self.program.logits]
        assert z is not None
        return self._reverse(self.loss.backward().view(z.shape), tangent=False)

    def hvp(self, direction: Tensor) -> tuple[Tensor, Tensor | None]:
        """(∇² direction `[T, P]`, d<gradient, direction> / dx); `gradient` has been called."""
        dots: dict[int, Tensor | None] = {0: None}
        for instruction, layer in zip(self.program.instructions, self.layers, strict=True):
            source = dots[instruction.in0]
            if layer is None:
                dots[instruction.out] = layers.add(source, dots[instruction.in1])
            else:
                dots[instruction.out] = layer.tangent(
                    source,
                    self._param(direction, instruction.weight, instruction),
                    self._param(direction, instruction.bias),
                )
        z = dots[self.program.logits]
        if z is None:
            return torch.zeros_like(direction), None
        return self._reverse(self.loss.backward_tangent(z.reshape(self.tasks, self.n, -1)).view(z.shape), tangent=True)

    def _reverse(self, dz: Tensor, tangent: bool) -> tuple[Tensor, Tensor | None]:
        grads = torch.zeros_like(self.weights)
        cotangents: dict[int, Tensor | None] = {self.program.logits: dz}
        for instruction, layer in zip(reversed(self.program.instructions), reversed(self.layers), strict=True):
            dy = cotangents.pop(instruction.out, None)
            if dy is None:
                continue
            dx: Tensor | None = dy
            if layer is not None:
                dx, dw, db = layer.backward_tangent(dy) if tangent else layer.backward(dy)
                for index, d in ((instruction.weight, dw), (instruction.bias, db)):
                    if index >= 0 and d is not None:
                        param = self.program.params[index]
                        grads[:, param.offset : param.offset + param.numel] += d.reshape(self.tasks, -1)
            else:
                cotangents[instruction.in1] = layers.add(cotangents.get(instruction.in1), dy)
            cotangents[instruction.in0] = layers.add(cotangents.get(instruction.in0), dx)
        dx = cotangents.get(0)
        if dx is None or self.program.tokens:
            return grads, None
        dx = dx.reshape(self.shape_of_x)
        if self.mask is not None:
            dx = torch.where(self.mask.view(*self.mask.shape, *[1] * (dx.dim() - 2)), dx, 0)
        return grads, dx

    def batch_stats(self) -> Tensor:
        """`[T, S]`: the mean and the unbiased variance that each batch norm found; 0 for fixed ones."""
        stats = self.weights.new_zeros(self.tasks, self.program.stats)
        for instruction, layer in zip(self.program.instructions, self.layers, strict=True):
            if isinstance(layer, layers.BatchNorm):
                assert layer.moments is not None
                mean, variance, count = layer.moments
                c, offset = self.program.values[instruction.in0][0], instruction.ints[1]
                stats[:, offset : offset + c] = mean.view(self.tasks, c)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                stats[:, offset + c : offset + 2 * c] = unbiased.view(self.tasks, c)
        return stats


# What runs a pass: a backend may put layers of its own into a subclass, and set it around a call of a reference.
TAPE: ContextVar[type[Tape]] = ContextVar("TAPE", default=Tape)
