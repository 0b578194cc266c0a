"""The functions that have a compiled form: what each adds to a program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast.innerloop import _traced_shapes as shapes
from metafast.innerloop._model import NormLayer
from metafast.innerloop._traced_shapes import Cell, alias, flat
from metafast.ops._program import Opcode

if TYPE_CHECKING:
    from metafast.innerloop._trace import Tracer


# Elements of a max-pooling window: the CPU keeps the place of the maximum in one byte.
MAX_WINDOW = 256


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _conv2d(
    t: Tracer,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    _, (c, h, w) = t.map(input)
    if input.dim() != 4:
        raise t.fail("conv2d of an input that is not [N, C, H, W]")
    index, bias_index = t.param(weight, "weight"), t.param(bias, "bias")
    if weight.shape[1] * groups != c:
        raise t.fail(f"it takes {weight.shape[1] * groups} channels and gets {c}")
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
    if ph >= kh or pw >= kw:
        raise t.fail(f"padding {(ph, pw)} as large as the kernel {(kh, kw)}")
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
    if running_mean is not None and running_mean.numel() != c:
        raise t.fail(f"it normalizes {running_mean.numel()} channels and gets {c}")
    name = t.stack[-1].split(" ")[0] if t.stack else ""
    layer = t.known.pop("" if name == "model" else name, None)
    if layer is None or layer.channels != c:  # a function, or a layer's second call: statistics of its own
        buffers = (t.buffers.get(id(running_mean)), t.buffers.get(id(running_var)))
        layer, t.stats = NormLayer(name, t.stats, c, buffers), t.stats + 2 * c
    offset = layer.offset
    t.norms.append(replace(layer, fixed=fixed))
    return t.emit(
        Opcode.BATCH_NORM, input, shape, input, **_affine(t, weight, bias, c),
        ints=(int(fixed), offset), attributes=(float(eps),),
    )  # fmt: skip


def _affine(t: Tracer, weight: Any, bias: Any, numel: int) -> dict[str, int]:
    """The weight and the bias of a normalization."""
    if weight is None and bias is not None:
        raise t.fail("a bias without a weight")
    for parameter in (weight, bias):
        if parameter is not None and parameter.numel() != numel:
            raise t.fail(f"it normalizes {parameter.numel()} channels or features and gets {numel}")
    return {"weight": t.param(weight, "weight"), "bias": t.param(bias, "bias")}


def _layer_norm(
    t: Tracer,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    _, shape = t.map(input)
    if tuple(normalized_shape) != tuple(input.shape[1:]):
        raise t.fail(
            f"layer norm over {tuple(normalized_shape)} of examples of {tuple(input.shape[1:])}; it compiles only "
            "over all of an example"
        )
    return t.emit(
        Opcode.LAYER_NORM, input, shape, input, **_affine(t, weight, bias, math.prod(shape)),
        attributes=(float(eps),),
    )  # fmt: skip


def _group_norm(
    t: Tracer,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    _, shape = t.map(input)
    if input.dim() not in (2, 4) or input.dim() == 2 and shape[1] * shape[2] > 1:
        raise t.fail("group norm over a flattened map")
    return t.emit(
        Opcode.GROUP_NORM, input, shape, input, **_affine(t, weight, bias, shape[0]),
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


def _window(
    t: Tracer, input: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    _, (c, h, w) = t.map(input)
    if input.dim() != 4:
        raise t.fail("pooling of an input that is not [N, C, H, W]")
    (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
    sh, sw = (kh, kw) if stride is None or isinstance(stride, list | tuple) and not stride else _pair(stride)
    if 2 * ph > kh or 2 * pw > kw:
        raise t.fail(f"padding {(ph, pw)} of more than half its window {(kh, kw)}")
    if ceil_mode and ((h + 2 * ph - kh) % sh or (w + 2 * pw - kw) % sw):
        raise t.fail(f"ceil_mode on a map of {h}x{w}")
    shape = (c, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1)
    if min(shape) < 1:
        raise t.fail(f"a map of {h}x{w} is too small for its window {(kh, kw)}")
    return shape, (kh, kw, sh, sw, ph, pw)


def _max_pool2d(
    t: Tracer,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices or _pair(dilation) != (1, 1):
        raise t.fail("max-pooling with dilation or returned indices")
    shape, ints = _window(t, input, kernel_size, stride, padding, ceil_mode)
    return _emit_max_pool(t, input, shape, ints)


def _emit_max_pool(t: Tracer, input: Any, shape: tuple[int, int, int], ints: tuple[int, ...]) -> Tensor:
    kh, kw = ints[:2]
    if kh * kw > MAX_WINDOW:
        raise t.fail(f"max-pooling over windows of {kh}x{kw}; at most {MAX_WINDOW} elements have a compiled form")
    return t.emit(Opcode.MAX_POOL, input, shape, ints=ints)


def _avg_pool2d(
    t: Tracer,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Tensor:
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
    return _emit_max_pool(t, input, (t.map(input)[1][0], oh, ow), (kh, kw, kh, kw, 0, 0))


def _mean(
    t: Tracer, input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, dtype: Any = None
) -> Tensor:
    dim = axis if dim is None else dim
    axes = sorted(d % input.dim() for d in flat([dim])) if dim is not None else []
    cell = t.cell(input)
    if cell.rows is not None and axes == [1] and not keepdim:
        table, padding = cell.rows
        return _embed_mean(t, input, cell.value, table, padding, input.shape[2])
    why = f"mean over dimensions {axes}; only over both of a map, or over the tokens of embeddings"
    if cell.rows is not None:
        raise t.fail(why)
    _, (c, h, w) = t.map(input)
    one_left = tuple(input.shape[1:]) == (c, h) and w == 1  # a mean over the columns came before
    if not (input.dim() == 4 and axes in ([2, 3], [3]) or one_left and axes == [2]):
        raise t.fail(why)
    kernel = (1 if axes == [3] else h, w)
    shape = (c, h // kernel[0], 1)
    out = t.emit(Opcode.AVG_POOL, input, shape, ints=(*kernel, *kernel, 0, 0, 1))
    sizes = [1 if d in axes else s for d, s in enumerate(input.shape) if keepdim or d not in axes]
    return alias(t, out, sizes)


def _embed_mean(t: Tracer, tokens: Any, value: int, table: int, padding: int, width: int) -> Tensor:
    like = tokens.new_zeros((tokens.shape[0], width), dtype=torch.get_default_dtype())
    source = t.track(like.clone(), Cell(value))
    return t.emit(Opcode.EMBED_MEAN, source, (width, 1, 1), like, weight=table, ints=(padding,))


def _tokens(t: Tracer, input: Any) -> int:
    cell = t.cell(input)
    if cell.value != 0 or input.dim() != 2 or input.is_floating_point():
        raise t.fail("an embedding of something else than the tokens [N, L]")
    return cell.value


def _embedding(
    t: Tracer,
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
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
    if (
        mode != "mean"
        or offsets is not None
        or per_sample_weights is not None
        or max_norm is not None
        or scale_grad_by_freq
    ):
        raise t.fail("only nn.EmbeddingBag(mode='mean') of tokens [N, L], without offsets, weights and max_norm")
    value, table = _tokens(t, input), t.param(weight, "weight")
    padding = -1 if padding_idx is None else int(padding_idx)
    if padding_idx is not None and padding < 0:  # from the end
        padding += weight.shape[0]
    return _embed_mean(t, input, value, table, padding, weight.shape[1])


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
        return alias(t, input)
    if not 0 < p < 1:
        raise t.fail(f"dropout with p={p}")
    out = t.emit(Opcode.DROPOUT, input, t.map(input)[1], input, attributes=(float(p),))
    return _finish(t, out, input, inplace)


def _other_dropout(t: Tracer, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        raise t.fail("dropout of whole channels has no compiled form; use nn.Dropout")
    return alias(t, input)


F = nn.functional
HANDLERS: dict[Any, Callable[..., Tensor]] = {
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
    "view": shapes.reshape,
    "reshape": shapes.reshape,
    "flatten": shapes.flatten,
    "unflatten": shapes.unflatten,
    "squeeze": shapes.squeeze,
    "unsqueeze": shapes.unsqueeze,
    "contiguous": shapes.same,
    "to": shapes.same,
    "float": shapes.to_float,
    "clone": shapes.clone,
}
HANDLERS.update(
    dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), _other_dropout)
)
_PROPERTIES = "shape ndim dtype device requires_grad is_cuda is_nested layout is_leaf grad_fn"
FREE = {getattr(Tensor, name).__get__ for name in _PROPERTIES.split()}
FREE_NAMES = set(
    "size dim numel nelement is_floating_point is_complex is_contiguous stride __len__ get_device element_size".split()
)
NOT_DIFFERENTIABLE = set(
    "detach detach_ argmax argmin argsort sign round floor ceil trunc heaviside "
    "eq ne gt ge lt le __eq__ __ne__ __gt__ __ge__ __lt__ __le__".split()
)
RANDOM = set(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ multinomial normal normal_ "
    "poisson uniform_ random_ exponential_ log_normal_ geometric_ cauchy_ rrelu".split()
)
VALUES = set("__bool__ item tolist numpy __float__ __int__ __index__ __array__ is_nonzero allclose equal".split())
