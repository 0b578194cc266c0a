"""Turns a module into a program, by running it once on stand-ins that note which functions they go through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from metafast.innerloop._model import NormLayer, logits_of, norm_layers
from metafast.innerloop._traced_functions import FREE, FREE_NAMES, HANDLERS, NOT_DIFFERENTIABLE, RANDOM, VALUES
from metafast.innerloop._traced_shapes import Cell, flat
from metafast.ops._program import Instruction, Loss, Opcode, Param, Program


class Unsupported(Exception):
    """Why a module is no program; the message names the layer."""


@dataclass(frozen=True)
class Traced:
    """A program, with what `explain` and the statistics need to know."""

    program: Program
    layers: tuple[tuple[str, str], ...]
    norms: tuple[NormLayer, ...]


@contextmanager
def _names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the name of the layer that runs on `stack`."""

    def enter(label: str, module: nn.Module, args: Any) -> None:
        stack.append(label)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(partial(enter, label)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tracer(TorchFunctionMode):
    """Builds the instructions while the module runs."""

    def __init__(self, model: nn.Module, batch_norm: str, tokens: bool) -> None:
        super().__init__()
        self.batch_norm, self.tokens = batch_norm, tokens
        self.stack: list[str] = []
        self.params = {id(p): index for index, p in enumerate(model.parameters())}
        self.buffers = {id(b): name for name, b in model.named_buffers()}
        self.counters = {id(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
        self.values: list[tuple[int, int, int]] = []
        self.instructions: list[Instruction] = []
        self.layers: list[tuple[str, str]] = []
        self.uses: dict[int, tuple[Any, str]] = {}  # of each parameter: how the first layer reads it, and its name
        self.norms: list[NormLayer] = []
        self.known = {layer.name: layer for layer in norm_layers(model)}
        self.stats = sum(2 * layer.channels for layer in self.known.values())
        self.cells: dict[int, Cell] = {}
        self.kept: list[Tensor] = []  # so that no id is used twice

    def fail(self, what: str) -> Unsupported:
        return Unsupported(f"layer {self.stack[-1] if self.stack else 'model'}: {what}")

    def track(self, tensor: Tensor, cell: Cell) -> Tensor:
        self.cells[id(tensor)] = cell
        self.kept.append(tensor)
        return tensor

    def cell(self, tensor: Any) -> Cell:
        found = self.cells.get(id(tensor)) if isinstance(tensor, Tensor) else None
        if found is None:
            raise self.fail("a constant or another tensor takes the place of activations")
        return found

    def map(self, tensor: Any) -> tuple[int, tuple[int, int, int]]:
        """(value, shape) of a tensor that is an activation."""
        cell = self.cell(tensor)
        if cell.rows is not None:
            raise self.fail("embeddings may only be averaged over the tokens")
        return cell.value, self.values[cell.value]

    def param(self, tensor: Tensor | None, what: str) -> int:
        if tensor is None:
            return -1
        index = self.params.get(id(tensor))
        if index is None:
            raise self.fail(f"its {what} is computed or a buffer, not a parameter of the model")
        return index

    def emit(
        self, opcode: Opcode, x: Tensor, shape: tuple[int, int, int], like: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Adds an instruction; the new stand-in has the map's shape, or that of `like`."""
        value, _ = self.map(x)
        name = self.stack[-1] if self.stack else "model"
        if self.tokens and value == 0 and opcode is not Opcode.EMBED_MEAN:
            raise self.fail(f"{opcode.name.lower()} of tokens")
        self.values.append(shape)
        out = len(self.values) - 1
        self.instructions.append(Instruction(opcode, out, value, **options))
        self.share(self.instructions[-1], name)
        self.layers.append((name, f"{opcode.name.lower()} -> {'x'.join(map(str, shape))}"))
        sizes = like.shape if like is not None else (x.shape[0], *shape)
        return self.track(x.new_zeros(sizes), Cell(out))

    def share(self, new: Instruction, name: str) -> None:
        """A parameter has one layout in a kernel's memory, so all layers that share it must read it alike."""
        sizes: tuple[Any, ...] = ()
        if new.opcode in (Opcode.CONV2D, Opcode.LINEAR, Opcode.LAYER_NORM):
            shape = self.values[new.in0]
            sizes = (new.ints[:7], shape[0]) if new.opcode is Opcode.CONV2D else shape
        for role in ("weight", "bias"):
            index = getattr(new, role)
            if index < 0:
                continue
            how = (new.opcode, role, sizes)
            first, other = self.uses.setdefault(index, (how, name))
            if first != how:
                raise self.fail(f"it shares its {role} with layer {other}, which is of another kind or size")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
        name = getattr(func, "__name__", str(func))
        mutated = args[0] if args and isinstance(args[0], Tensor) and _in_place(name) else kwargs.get("out")
        if mutated is not None and id(mutated) in self.buffers:
            if id(mutated) in self.counters:
                return mutated  # batch norm counts its batches
            raise self.fail(f"stateful: it writes its buffer {self.buffers[id(mutated)]!r}")
        if name in RANDOM:
            raise self.fail(f"it draws random numbers ({name}); nn.Dropout has a compiled form")
        if not any(id(t) in self.cells for t in tensors):
            return func(*args, **kwargs)
        if func in FREE or name in FREE_NAMES:
            return func(*args, **kwargs)
        if name in NOT_DIFFERENTIABLE:
            raise self.fail(f"{name} is not differentiable")
        if not torch.is_grad_enabled():
            raise self.fail(f"{name} runs without gradients (torch.no_grad, or a custom autograd function)")
        if name in VALUES:
            raise self.fail(f"the program would depend on the values of activations ({name})")
        handler = HANDLERS.get(func) or HANDLERS.get(name)
        if handler is None:
            raise self.fail(f"{resolve_name(func) or name} has no compiled form")
        try:
            return handler(self, *args, **kwargs)
        except TypeError as error:
            raise self.fail(f"{name} is called in a way that has no compiled form ({error})") from None


def _in_place(name: str) -> bool:
    return (
        name.endswith("_")
        and not name.endswith("__")
        or name.startswith("__i")
        and name not in ("__index__", "__int__", "__invert__")
    )


def trace(
    model: nn.Module,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    adapted: Callable[[str], bool],
    loss: Loss = Loss.CROSS_ENTROPY,
    label_smoothing: float = 0.0,
    batch_norm: str = "auto",
) -> Traced:
    """The program of a model for examples of `shape`.

    Args:
        model: any module; nothing of it is changed, and nothing computed.
        shape: of one example, without the batch dimension.
        dtype: of the examples; int64 are tokens.
        adapted: whether the inner loop changes the parameter of a name.
        loss, label_smoothing: what the program ends in.
        batch_norm: `"auto"` follows the training flag of each layer, `"batch"` normalizes by the task's batch,
            `"running"` by fixed statistics.

    Raises:
        Unsupported: the module is no program; the message names the layer.
    """
    # Two batch sizes, so that a shape that happens to contain the batch size shows.
    first, second = (_trace_once(model, shape, n, dtype, adapted, loss, label_smoothing, batch_norm) for n in (2, 3))
    if first.program != second.program:
        raise Unsupported("model: its layers depend on the number of examples")
    return first


def _trace_once(
    model: nn.Module, shape: Sequence[int], n: int, dtype: torch.dtype, adapted: Callable[[str], bool], loss: Loss,
    label_smoothing: float, batch_norm: str,
) -> Traced:  # fmt: skip
    named = dict(model.named_parameters())
    device = next((p.device for p in named.values()), torch.device("cpu"))
    tokens = not dtype.is_floating_point
    if tokens and len(shape) != 1:
        raise Unsupported(f"input: tokens must be [N, L], got examples of {tuple(shape)}")
    if len(shape) == 0:
        raise Unsupported("input: examples must have a dimension of their own, got numbers")
    buffers = {name: id(b) for name, b in model.named_buffers()}
    tracer = Tracer(model, batch_norm, tokens)
    # Anything but [F] and [C, H, W] is a vector until it is flattened, or reshaped to a map.
    size = (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)
    tracer.values.append((1, shape[0], 1) if tokens else size)
    x = tracer.track(torch.zeros(n, *shape, dtype=dtype, device=device), Cell(0))
    try:
        with torch.enable_grad(), _names(model, tracer.stack), tracer:
            output = logits_of(model(x))
    except Unsupported:
        raise
    except Exception as error:
        where = tracer.stack[-1] if tracer.stack else "model"
        raise Unsupported(f"layer {where}: {type(error).__name__}: {error}") from None
    changed = [name for name, b in model.named_buffers() if buffers.get(name) != id(b)]
    if changed:
        raise Unsupported(f"model: stateful, it replaces its buffer {changed[0]!r}")
    cell = tracer.cells.get(id(output)) if isinstance(output, Tensor) else None
    if cell is None or cell.rows is not None or output.dim() != 2 or tracer.values[cell.value][1:] != (1, 1):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise Unsupported(f"model: its output must be computed logits [N, C], got {got}")
    if cell.value == 0:
        raise Unsupported("model: its output is its input")
    params, offset = [], 0
    for name, p in named.items():
        params.append(Param(offset, tuple(p.shape), adapted(name)))
        offset += p.numel()
    program = Program(
        tuple(tracer.values),
        tuple(params),
        tuple(tracer.instructions),
        cell.value,
        loss,
        label_smoothing,
        tracer.stats,
        tokens,
    )
    return Traced(program, tuple(tracer.layers), tuple(tracer.norms))
