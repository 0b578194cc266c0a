"""The inner-loop ops with Triton's normalizations and activations: for a GPU without the native library.

The rest of a pass is PyTorch's; a ReLU that follows a normalization, and alone reads it, runs along with it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _inner_loop_reference as reference
from . import _layers_reference as layers
from . import _triton_layers as triton_layers
from ._layers_reference import Grads
from ._program import Opcode
from ._tape_reference import TAPE, Tape

_KINDS = {
    Opcode.BATCH_NORM: triton_layers.BATCH,
    Opcode.GROUP_NORM: triton_layers.GROUP,
    Opcode.LAYER_NORM: triton_layers.LAYER,
}


class _Passed(layers.Layer):
    """A ReLU that has run along with the normalization before it."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return x

    def backward(self, dy: Tensor) -> Grads:
        return dy, None, None


class TritonTape(Tape):
    """A pass whose normalizations and activations are Triton kernels."""

    def _layer(self, index: int) -> layers.Layer | None:
        i = self.program.instructions[index]
        if i.opcode in _KINDS and not (i.opcode is Opcode.BATCH_NORM and i.ints[0] == 1):
            groups = i.ints[0] if i.opcode is Opcode.GROUP_NORM else 1
            valid = self.mask if i.opcode is Opcode.BATCH_NORM else None
            make = triton_layers.BatchNorm if i.opcode is Opcode.BATCH_NORM else triton_layers.Norm
            return make(_KINDS[i.opcode], i.attributes[0], groups, valid, relu=self._fuses(index))
        if i.opcode is Opcode.RELU and index > 0 and self._fuses(index - 1):
            return _Passed()
        if i.opcode in triton_layers.ACTIVATIONS:
            kind = triton_layers.GELU_TANH if i.opcode is Opcode.GELU and i.ints[0] else int(i.opcode)
            return triton_layers.Activation(kind, i.attributes[0] if i.attributes else 0.0)
        return super()._layer(index)

    def _fuses(self, index: int) -> bool:
        """Whether instruction `index` is a normalization of these kernels that only a ReLU reads, the next one."""
        if index + 1 == len(self.program.instructions):
            return False
        norm, relu = self.program.instructions[index : index + 2]
        if norm.opcode not in _KINDS or (norm.opcode is Opcode.BATCH_NORM and norm.ints[0] == 1):
            return False
        readers = sum((i.in0 == norm.out) + (i.in1 == norm.out) for i in self.program.instructions)
        return relu.opcode is Opcode.RELU and relu.in0 == norm.out and readers == 1 and self.program.logits != norm.out


def inner_loop(*args: Any) -> None:
    """`inner_loop.py`."""
    _run(reference.inner_loop, args)


def task_grad(*args: Any) -> None:
    """`task_grad.py`."""
    _run(reference.task_grad, args)


def task_hvp(*args: Any) -> None:
    """`task_hvp.py`."""
    _run(reference.task_hvp, args)


def _run(op: Any, args: tuple[Any, ...]) -> None:
    token = TAPE.set(TritonTape)
    try:
        op(*args)
    finally:
        TAPE.reset(token)
