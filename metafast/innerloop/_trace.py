"""Turns a module into a program, by running it once on stand-ins that note which functions they go through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from metafast.ops._program import Instruction, Loss, Opcode, Param, Program


class Unsupported(Exception):
    """Why a module is no program; the message names the layer."""


@dataclass
class Cell:
    """What a stand-in stands for: a value of the program, or the rows of an embedding that await their mean."""

    value: int
    rows: tuple[int, int] | None = None  # the table, and the padding index of an embedding bag


@dataclass(frozen=True)
class NormLayer:
    """A batch norm: the name of its layer, where its statistics begin, its channels, the buffers of its running ones."""

    name: str
    offset: int
    channels: int
    buffers: tuple[str | None, str | None]
    fixed: bool = False


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """All batch norms of a model, in its own order: the layout of `stats`, whatever the engine."""
    layers, offset = [], 0
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            tracked = module.running_mean is not None
            prefix = f"{name}." if name else ""
            buffers = (f"{prefix}running_mean", f"{prefix}running_var") if tracked else (None, None)
            layers.append(NormLayer(name, offset, module.num_features, buffers))
            offset += 2 * module.num_features
    return layers


@dataclass(frozen=True)
class Traced:
    """A program, with what `explain` and the statistics need to know."""

    program: Program
    layers: tuple[tuple[str, str], ...]
    norms: tuple[NormLayer, ...]


@contextmanager
def _names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the name of the layer that runs on `stack`."""
    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda m, args, label=label: stack.append(label)))
        handles.append(module.register_forward_hook(lambda m, args, out: stack.pop() and None, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tracer(TorchFunctionMode):
    """Builds the instructions while the module runs."""

    def __init__(self, model: nn.Module, batch_norm: str) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.stack: list[str] = []
        self.params = {id(p): index for index, p in enumerate(model.parameters())}
        self.buffers = {id(b): name for name, b in model.named_buffers()}
        self.counters = {id(m.num_batches_tracked) for m in model.modules()
                         if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.num_batches_tracked is not None}  # fmt: skip
        self.values: list[tuple[int, int, int]] = []
        self.instructions: list[Instruction] = []
        self.layers: list[tuple[str, str]] = []
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

    def emit(self, opcode: Opcode, x: Tensor, shape: tuple[int, int, int], like: Tensor | None = None, **options: Any) -> Tensor:
        """Adds an instruction; the new stand-in has the map's shape, or that of `like`."""
        value, _ = self.map(x)
        self.values.append(shape)
        out = len(self.values) - 1
        self.instructions.append(Instruction(opcode, out, value, **options))
        name = self.stack[-1] if self.stack else "model"
        self.layers.append((name, f"{opcode.name.lower()} -> {'x'.join(map(str, shape))}"))
        sizes = like.shape if like is not None else (x.shape[0], *shape)
        return self.track(x.new_zeros(sizes), Cell(out))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in _flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
        name = getattr(func, "__name__", str(func))
        mutated = args[0] if args and isinstance(args[0], Tensor) and _in_place(name) else kwargs.get("out")
        if mutated is not None and id(mutated) in self.buffers:
            if id(mutated) in self.counters:
                return mutated  # batch norm counts its batches
            raise self.fail(f"stateful: it writes its buffer {self.buffers[id(mutated)]!r}")
        if not any(id(t) in self.cells for t in tensors):
            return func(*args, **kwargs)
        if func in _FREE or name in _FREE_NAMES:
            return func(*args, **kwargs)
        if name in _NOT_DIFFERENTIABLE:
            raise self.fail(f"{name} is not differentiable")
        if not torch.is_grad_enabled():
            raise self.fail(f"{name} runs without gradients (torch.no_grad, or a custom autograd function)")
        if name in _VALUES:
            raise self.fail(f"the program would depend on the values of activations ({name})")
        handler = _HANDLERS.get(func) or _HANDLERS.get(name)
        if handler is None:
            raise self.fail(f"{resolve_name(func) or name} has no compiled form")
        try:
            return handler(self, *args, **kwargs)
        except TypeError as error:
            raise self.fail(f"{name} is called in a way that has no compiled form ({error})") from None


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") or name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")


def _flat(args: Any) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from _flat(arg)
        else:
            yield arg


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _alias(t: Tracer, x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    return t.track(x.new_zeros(x.shape if shape is None else tuple(shape)), t.cell(x))


def _conv2d(t: Tracer, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:
    _, (c, h, w) = t.map(input)
    if input.dim() != 4:
        raise t.fail("conv2d of an input that is not [N, C, H, W]")
    index, bias_index = t.param(weight, "weight"), t.param(bias, "bias")
    (kh, kw), (sh, sw) = weight.shape[2:], _pair(stride)
    if _pair(dilation) != (1, 1):
        raise t.fail(f"dilation {_pair(dilation)}; only 1 has a compiled form")
    if padding == "valid":
        padding = 0
    if padding == "same":
        if kh % 2 == 0 or kw % 2 == 0:
            raise t.fail(f"padding='same' with the even kernel {(kh, kw)}")
        padding = (kh // 2, kw // 2)
    ph, pw = _pair(padding)
    shape = (weight.shape[0], (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1)
    if min(shape) < 1:
        raise t.fail(f"a map of {h}x{w} is too small for it")
    return t.emit(Opcode.CONV2D, input, shape, weight=index, bias=bias_index, ints=(kh, kw, sh, sw, ph, pw, groups))


def _linear(t: Tracer, input: Any, weight: Any, bias: Any = None) -> Tensor:
    _, (c, h, w) = t.map(input)
    index, bias_index = t.param(weight, "weight"), t.param(bias, "bias")
    if input.dim() != 2:
        raise t.fail(f"a linear layer over the last of {input.dim()} dimensions; flatten to [N, features] before it")
    if weight.shape[1] != c * h * w:
        raise t.fail(f"it takes {weight.shape[1]} features and gets {c * h * w}")
    like = input.new_zeros(input.shape[0], weight.shape[0])
    return t.emit(Opcode.LINEAR, input, (weight.shape[0], 1, 1), like, weight=index, bias=bias_index)


def _batch_norm(
    t: Tracer, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    _, shape = t.map(input)
    c, h, w = shape
    if input.dim() not in (2, 4) or input.dim() == 2 and h * w > 1:
        raise t.fail("batch norm over single elements of a flattened map")
    fixed = {"auto": not training, "batch": False, "running": True}[t.batch_norm]
    name = t.stack[-1].split(" ")[0] if t.stack else ""
    layer = t.known.pop("" if name == "model" else name, None)
    if layer is None or layer.channels != c:  # a function, or a layer's second call: statistics of its own
        buffers = (t.buffers.get(id(running_mean)), t.buffers.get(id(running_var)))
        layer, t.stats = NormLayer(name, t.stats, c, buffers), t.stats + 2 * c
    offset = layer.offset
    t.norms.append(replace(layer, fixed=fixed))
    return t.emit(
        Opcode.BATCH_NORM, input, shape, input, weight=t.param(weight, "weight"), bias=t.param(bias, "bias"),
        ints=(int(fixed), offset), attributes=(float(eps),),
    )  # fmt: skip


def _layer_norm(t: Tracer, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True) -> Tensor:
    _, shape = t.map(input)
    if tuple(normalized_shape) != tuple(input.shape[1:]):
        raise t.fail(f"layer norm over {tuple(normalized_shape)} of examples of {tuple(input.shape[1:])}; only over all of an example")
    return t.emit(
        Opcode.LAYER_NORM, input, shape, input, weight=t.param(weight, "weight"), bias=t.param(bias, "bias"),
        attributes=(float(eps),),
    )  # fmt: skip


def _group_norm(t: Tracer, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True) -> Tensor:
    _, shape = t.map(input)
    if input.dim() not in (2, 4) or input.dim() == 2 and shape[1] * shape[2] > 1:
        raise t.fail("group norm over a flattened map")
    return t.emit(
        Opcode.GROUP_NORM, input, shape, input, weight=t.param(weight, "weight"), bias=t.param(bias, "bias"),
        ints=(int(num_groups),), attributes=(float(eps),),
    )  # fmt: skip


def _instance_norm(
    t: Tracer, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if running_mean is not None or not use_input_stats:
        raise t.fail("stateful: instance norm with running statistics")
    return _group_norm(t, input, t.map(input)[1][0], weight, bias, eps)


def _activation(opcode: Opcode, in_place: bool = False) -> Callable[..., Tensor]:
    def handler(t: Tracer, input: Any, inplace: bool = False) -> Tensor:
        return _finish(t, t.emit(opcode, input, t.map(input)[1], input), input, inplace or in_place)

    return handler


def _finish(t: Tracer, out: Tensor, input: Tensor, in_place: bool) -> Tensor:
    """In place, the input and all its views stand for the result from now on."""
    if not in_place:
        return out
    t.cell(input).value = t.cell(out).value
    return input


def _gelu(t: Tracer, input: Any, approximate: str = "none") -> Tensor:
    return t.emit(Opcode.GELU, input, t.map(input)[1], input, ints=(int(approximate == "tanh"),))


def _leaky_relu(t: Tracer, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    out = t.emit(Opcode.LEAKY_RELU, input, t.map(input)[1], input, attributes=(float(negative_slope),))
    return _finish(t, out, input, inplace)


def _window(t: Tracer, input: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    _, (c, h, w) = t.map(input)
    if input.dim() != 4:
        raise t.fail("pooling of an input that is not [N, C, H, W]")
    (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
    sh, sw = (kh, kw) if stride is None or isinstance(stride, list | tuple) and not stride else _pair(stride)
    if ceil_mode and ((h + 2 * ph - kh) % sh or (w + 2 * pw - kw) % sw):
        raise t.fail(f"ceil_mode on a map of {h}x{w}")
    shape = (c, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1)
    if min(shape) < 1:
        raise t.fail(f"a map of {h}x{w} is too small for its window {(kh, kw)}")
    return shape, (kh, kw, sh, sw, ph, pw)


def _max_pool2d(t: Tracer, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False) -> Tensor:
    if return_indices or _pair(dilation) != (1, 1):
        raise t.fail("max-pooling with dilation or returned indices")
    shape, ints = _window(t, input, kernel_size, stride, padding, ceil_mode)
    return t.emit(Opcode.MAX_POOL, input, shape, ints=ints)


def _avg_pool2d(t: Tracer, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None) -> Tensor:
    if divisor_override is not None:
        raise t.fail("divisor_override")
    shape, ints = _window(t, input, kernel_size, stride, padding, ceil_mode)
    return t.emit(Opcode.AVG_POOL, input, shape, ints=(*ints, int(count_include_pad)))


def _adaptive(t: Tracer, input: Any, output_size: Any) -> tuple[int, int, int, int]:
    _, (_, h, w) = t.map(input)
    if input.dim() != 4:
        raise t.fail("pooling of an input that is not [N, C, H, W]")
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    oh, ow = (h if sizes[0] is None else sizes[0], w if sizes[1] is None else sizes[1])
    if h % oh or w % ow:
        raise t.fail(f"adaptive pooling of {h}x{w} to {oh}x{ow}, which are no equal windows")
    return oh, ow, h // oh, w // ow


def _adaptive_avg_pool2d(t: Tracer, input: Any, output_size: Any) -> Tensor:
    oh, ow, kh, kw = _adaptive(t, input, output_size)
    shape = (t.map(input)[1][0], oh, ow)
    return t.emit(Opcode.AVG_POOL, input, shape, ints=(kh, kw, kh, kw, 0, 0, 1))


def _adaptive_max_pool2d(t: Tracer, input: Any, output_size: Any, return_indices: bool = False) -> Tensor:
    if return_indices:
        raise t.fail("max-pooling with returned indices")
    oh, ow, kh, kw = _adaptive(t, input, output_size)
    return t.emit(Opcode.MAX_POOL, input, (t.map(input)[1][0], oh, ow), ints=(kh, kw, kh, kw, 0, 0))


def _mean(t: Tracer, input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, dtype: Any = None) -> Tensor:
    dim = axis if dim is None else dim
    axes = sorted(d % input.dim() for d in _flat([dim])) if dim is not None else []
    cell = t.cell(input)
    if cell.rows is not None and axes == [1] and not keepdim:
        table, padding = cell.rows
        return _embed_mean(t, input, cell.value, table, padding, input.shape[2])
    if cell.rows is not None or input.dim() != 4 or axes != [2, 3]:
        raise t.fail(f"mean over dimensions {axes}; only over both of a map, or over the tokens of embeddings")
    _, (c, h, w) = t.map(input)
    out = t.emit(Opcode.AVG_POOL, input, (c, 1, 1), ints=(h, w, h, w, 0, 0, 1))
    return out if keepdim else _alias(t, out, (input.shape[0], c))


def _embed_mean(t: Tracer, tokens: Any, value: int, table: int, padding: int, width: int) -> Tensor:
    like = tokens.new_zeros((tokens.shape[0], width), dtype=torch.get_default_dtype())
    source = t.track(like.clone(), Cell(value))
    return t.emit(Opcode.EMBED_MEAN, source, (width, 1, 1), like, weight=table, ints=(padding,))


def _tokens(t: Tracer, input: Any) -> int:
    cell = t.cell(input)
    if cell.value != 0 or input.dim() != 2 or input.is_floating_point():
        raise t.fail("an embedding of something else than the tokens [N, L]")
    return cell.value


def _embedding(t: Tracer, input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        raise t.fail("stateful: max_norm and scale_grad_by_freq have no compiled form")
    if padding_idx is not None and padding_idx >= 0:
        raise t.fail("nn.Embedding with padding_idx still counts padding in a mean; use nn.EmbeddingBag(mode='mean')")
    value, table = _tokens(t, input), t.param(weight, "weight")
    return t.track(weight.new_zeros(*input.shape, weight.shape[1]), Cell(value, (table, -1)))


def _embedding_bag(
    t: Tracer, input: Any, weight: Any, offsets: Any = None, max_norm: Any = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: Any = None,
    include_last_offset: bool = False, padding_idx: Any = None,
) -> Tensor:  # fmt: skip
    if mode != "mean" or offsets is not None or per_sample_weights is not None or max_norm is not None or scale_grad_by_freq:
        raise t.fail("only nn.EmbeddingBag(mode='mean') of tokens [N, L], without offsets, weights and max_norm")
    value, table = _tokens(t, input), t.param(weight, "weight")
    return _embed_mean(t, input, value, table, -1 if padding_idx is None else int(padding_idx), weight.shape[1])


def _add(t: Tracer, input: Any, other: Any, *, alpha: float = 1, in_place: bool = False) -> Tensor:
    if alpha != 1 or not isinstance(input, Tensor) or not isinstance(other, Tensor) or input.shape != other.shape:
        raise t.fail("only two activations of one shape are added")
    shape, second = t.map(input)[1], t.map(other)
    if shape != second[1]:
        raise t.fail(f"maps of {shape} and {second[1]} are added after flattening")
    return _finish(t, t.emit(Opcode.ADD, input, shape, input, in1=second[0]), input, in_place)


def _add_in_place(t: Tracer, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _add(t, input, other, alpha=alpha, in_place=True)


def _dropout(t: Tracer, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return _alias(t, input)
    if not 0 < p < 1:
        raise t.fail(f"dropout with p={p}")
    out = t.emit(Opcode.DROPOUT, input, t.map(input)[1], input, attributes=(float(p),))
    return _finish(t, out, input, inplace)


def _other_dropout(t: Tracer, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        raise t.fail("dropout of whole channels has no compiled form; use nn.Dropout")
    return _alias(t, input)


def _reshape(t: Tracer, input: Any, *shape: Any, **kwargs: Any) -> Tensor:
    sizes = [int(s) for s in _flat([*shape, *kwargs.values()])] if not _is_dtype((*shape, *kwargs.values())) else list(input.shape)
    if -1 in sizes:
        known = 1
        for s in sizes:
            known *= 1 if s == -1 else s
        sizes[sizes.index(-1)] = input.numel() // max(known, 1)
    return _reshaped(t, input, tuple(sizes))


def _is_dtype(args: Any) -> bool:
    return any(isinstance(a, torch.dtype) for a in args)


def _flatten(t: Tracer, input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    start, end = start_dim % input.dim(), end_dim % input.dim()
    sizes = tuple(input.shape)
    merged = 1
    for s in sizes[start : end + 1]:
        merged *= s
    return _reshaped(t, input, (*sizes[:start], merged, *sizes[end + 1 :]))


def _unflatten(t: Tracer, input: Any, dim: int, sizes: Any) -> Tensor:
    dim %= input.dim()
    return _reshape(t, input, *input.shape[:dim], *sizes, *input.shape[dim + 1 :])


def _squeeze(t: Tracer, input: Any, dim: Any = None) -> Tensor:
    dims = range(input.dim()) if dim is None else [d % input.dim() for d in _flat([dim])]
    return _reshaped(t, input, tuple(s for d, s in enumerate(input.shape) if d not in dims or s != 1))


def _unsqueeze(t: Tracer, input: Any, dim: int) -> Tensor:
    sizes = list(input.shape)
    sizes.insert(dim % (input.dim() + 1), 1)
    return _reshaped(t, input, tuple(sizes))


def _reshaped(t: Tracer, input: Any, sizes: tuple[int, ...]) -> Tensor:
    """Flattening and its inverse are views of one map; the input may also be given another shape before its first use."""
    cell = t.cell(input)
    if sizes == tuple(input.shape):
        return _alias(t, input)
    if cell.rows is None and len(sizes) >= 2 and sizes[0] == input.shape[0]:
        c, h, w = t.values[cell.value]
        if len(sizes) == 2 or sizes[1:] == (c, h, w) or all(s == 1 for s in sizes[2:]) and sizes[1] == c * h * w and h * w == 1:
            return _alias(t, input, sizes)
        unused = not t.instructions and not t.norms
        if cell.value == 0 and unused and len(sizes) == 4 and input.is_floating_point():
            t.values[0] = (sizes[1], sizes[2], sizes[3])
            return _alias(t, input, sizes)
    raise t.fail(f"reshaping {tuple(input.shape)} to {sizes}")


def _same(t: Tracer, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`contiguous`, `clone`, and conversions to the dtype and device that are there already."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, torch.dtype) and arg != input.dtype:
            raise t.fail(f"conversion from {input.dtype} to {arg}")
        if isinstance(arg, torch.device) and arg != input.device:
            raise t.fail(f"a move from {input.device} to {arg}")
    return _alias(t, input)


def _clone(t: Tracer, input: Any, **kwargs: Any) -> Tensor:
    cell = t.cell(input)
    return t.track(input.new_zeros(input.shape), Cell(cell.value, cell.rows))


def _float(t: Tracer, input: Any) -> Tensor:
    return _same(t, input, torch.float32)


F = nn.functional
_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    F.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.adaptive_max_pool2d: _adaptive_max_pool2d,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.gelu: _gelu,
    F.leaky_relu: _leaky_relu,
    F.dropout: _dropout,
    F.relu: _activation(Opcode.RELU),
    F.silu: _activation(Opcode.SILU),
    "relu": _activation(Opcode.RELU),
    "relu_": _activation(Opcode.RELU, in_place=True),
    "tanh": _activation(Opcode.TANH),
    "tanh_": _activation(Opcode.TANH, in_place=True),
    "sigmoid": _activation(Opcode.SIGMOID),
    "sigmoid_": _activation(Opcode.SIGMOID, in_place=True),
    "max_pool2d": _max_pool2d,
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
    "add_": _add_in_place,
    "__iadd__": _add_in_place,
    "mean": _mean,
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "contiguous": _same,
    "to": _same,
    "float": _float,
    "clone": _clone,
} | {function: _other_dropout for function in (F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)}
_FREE: set[Any] = {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "is_nested", "layout", "is_leaf", "grad_fn")
}
_FREE_NAMES = {"size", "dim", "numel", "is_floating_point", "is_contiguous", "stride", "__len__", "get_device",
               "element_size", "is_complex", "type", "nelement"}  # fmt: skip
_NOT_DIFFERENTIABLE = {"detach", "detach_", "argmax", "argmin", "sign", "round", "floor", "ceil", "trunc", "argsort",
                       "eq", "gt", "lt", "ge", "le", "ne", "__eq__", "__gt__", "__lt__", "__ge__", "__le__", "__ne__", "heaviside", "bernoulli", "multinomial"}  # fmt: skip
_VALUES = {"__bool__", "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__array__", "is_nonzero", "allclose", "equal"}


def logits_of(output: Any) -> Any:
    """The tensor of what a model returns: itself, its `.logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    if isinstance(output, list | tuple) and output:
        return output[0]
    return output


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
    if not tokens and len(shape) not in (1, 3):
        raise Unsupported(f"input: examples must be [F] or [C, H, W], got {tuple(shape)}")
    buffers = {name: id(b) for name, b in model.named_buffers()}
    tracer = Tracer(model, batch_norm)
    tracer.values.append((1, shape[0], 1) if tokens else (*shape, 1, 1)[:3])  # type: ignore[arg-type]
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
        tuple(tracer.values), tuple(params), tuple(tracer.instructions), cell.value, loss, label_smoothing, tracer.stats, tokens
    )
    return Traced(program, tuple(tracer.layers), tuple(tracer.norms))
