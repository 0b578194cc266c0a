"""Several models of one architecture as one module: the same code, each layer with the weights of all of them.

Activations keep the batch dimension first, `[K * B, ...]`: the examples of the first model, then those of the second.
Layers with weights split it, everything else runs as it is, as long as it treats examples one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NotStackableError(ValueError):
    """The models have no stacked form; the message says which layer stands in the way."""


def stack(models: Sequence[nn.Module]) -> Stacked:
    """One module that computes what each of the models computes on its own part of the batch.

    Args:
        models: K models with the same layers; weights and probabilities of dropout may differ.

    Returns:
        A `Stacked`; its weights are copies.

    Raises:
        NotStackableError: a layer that mixes examples or has no stacked form, or models that differ.

    Example:
        >>> models = [nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(2)]
        >>> x = torch.randn(2, 5, 4)  # five examples for each
        >>> y = stack(models)(x.flatten(0, 1)).view(2, 5, 3)
        >>> torch.allclose(y[1], models[1](x[1]))
        True

    Source:
        S. Wang et al., Horizontally Fused Training Array, MLSys 2021 (the idea: one operator for all models).
    """
    if not models:
        raise NotStackableError("models must not be empty")
    names = [name for name, _ in models[0].named_parameters()]
    for other in models[1:]:
        if [(n, p.shape) for n, p in other.named_parameters()] != [
            (n, p.shape) for n, p in models[0].named_parameters()
        ]:
            raise NotStackableError("the models have parameters of different names or shapes")
    shared = [n for n, p in models[0].named_parameters(remove_duplicate=False) if n not in names]
    if shared:
        raise NotStackableError(f"the weights {shared} are shared between layers")
    return Stacked(models)


class Stacked(nn.Module):
    """What `stack` makes. `weights` are `[K, ...]`, in the order of the models' own parameters."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.copies = len(models)
        self.shape = _Shape(self.copies)
        self.inner = _stacked(list(models), self.shape, "")
        self._names = [name for name, _ in models[0].named_parameters()]

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of all models, `[K, *shape]` each."""
        own = dict(self.inner.named_parameters())
        return [own[name] for name in self._names]

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[K * B, ...]` of inputs `[K * B, ...]`."""
        self.shape.batch = len(inputs) // self.copies
        out: Tensor = self.inner(inputs)
        return out


class _Shape:
    """How the batch dimension splits, known at each call."""

    def __init__(self, copies: int) -> None:
        self.copies, self.batch = copies, 0


def _stacked(models: list[nn.Module], shape: _Shape, path: str) -> nn.Module:
    first = models[0]
    for kind, make in _MAKERS.items():
        if type(first) is kind:
            return make(models, shape, path)
    name = f"{path or 'the model'} ({type(first).__name__})"
    if any(True for _ in first.buffers(recurse=False)):
        raise NotStackableError(f"{name} has buffers")
    if type(first).__module__.startswith("torch.nn.") and not isinstance(first, _PLAIN):
        raise NotStackableError(f"{name} has no stacked form")
    new = copy.copy(first)  # its code; what it holds is replaced below
    new.__dict__ = {**first.__dict__, "_modules": {}, "_parameters": {}}
    new._modules = {
        key: None
        if child is None
        else _stacked([m.get_submodule(key) for m in models], shape, f"{path}.{key}".strip("."))
        for key, child in first._modules.items()
    }
    own = {key for key, p in first._parameters.items() if p is not None}
    if own:
        new.__class__ = _spread(type(first), frozenset(own))
        new.__dict__["_shape"] = shape
        new._parameters = {key: _together([m._parameters[key] for m in models]) for key in first._parameters}
    return new


def _together(tensors: Sequence[Any]) -> nn.Parameter:
    return nn.Parameter(torch.stack([t.detach() for t in tensors]))


def _spread(kind: type[nn.Module], own: frozenset[str]) -> type[nn.Module]:
    """The class, but each example sees its own model's parameters: `[K * B, *shape]`, less a leading 1."""

    def getattribute(self: Any, name: str) -> Any:
        found: Any = kind.__getattr__(self, name)
        if name not in own:
            return found
        shape: _Shape = self.__dict__["_shape"]
        each = found if found.dim() == 1 or found.shape[1] != 1 else found.squeeze(1)
        return each.unsqueeze(1).expand(-1, shape.batch, *each.shape[1:]).flatten(0, 1)

    return type(kind.__name__, (kind,), {"__getattr__": getattribute})


# ---- layers


class _Layer(nn.Module):
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        object.__setattr__(self, "shape", shape)

    shape: _Shape

    def split(self, x: Tensor) -> Tensor:
        """`[K, B, ...]`."""
        return x.unflatten(0, (self.shape.copies, -1))


class _Linear(_Layer):
    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        self.weight = _together([m.weight for m in models])
        self.bias = None if models[0].bias is None else _together([m.bias for m in models])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(self.shape.copies, -1, x.shape[-1])
        return _affine(rows, self.weight, self.bias).view(*x.shape[:-1], -1)


def _affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[K, M, out]` of rows `[K, M, in]`."""
    turned = weight.transpose(1, 2)
    return torch.bmm(rows, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, turned)


class _Embedding(_Layer):
    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        first = models[0]
        if first.max_norm is not None or first.scale_grad_by_freq or first.sparse:
            raise NotStackableError(f"{path} is an embedding with max_norm, scale_grad_by_freq or sparse")
        self.weight = _together([m.weight for m in models])
        self.padding = first.padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        count = self.weight.shape[1]
        offset = torch.arange(self.shape.copies, device=tokens.device).mul(count)
        places = (self.split(tokens) + offset.view(-1, *[1] * tokens.dim())).flatten(0, 1)
        found = F.embedding(places, self.weight.flatten(0, 1))
        if self.padding is None:
            return found
        is_padding = (tokens == self.padding).unsqueeze(-1)
        return torch.where(is_padding, found.detach(), found)  # padding takes no gradient


class _LayerNorm(_Layer):
    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        self.normalized_shape, self.eps = models[0].normalized_shape, models[0].eps
        self.weight = None if models[0].weight is None else _together([m.weight for m in models])
        self.bias = None if models[0].bias is None else _together([m.bias for m in models])

    def forward(self, x: Tensor) -> Tensor:
        out = self.split(F.layer_norm(x, self.normalized_shape, eps=self.eps))
        middle = [1] * (out.dim() - 1 - len(self.normalized_shape))
        if self.weight is not None:
            out = out * self.weight.view(len(out), *middle, *self.normalized_shape)
        if self.bias is not None:
            out = out + self.bias.view(len(out), *middle, *self.normalized_shape)
        return out.flatten(0, 1)


class _Dropout(_Layer):
    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        self.register_buffer("p", torch.tensor([float(m.p) for m in models]), persistent=False)
        self.p: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return _drop(x, self.p, self.shape.copies) if self.training else x


def _drop(x: Tensor, p: Tensor, copies: int) -> Tensor:
    if not bool(p.any()):
        return x
    split = x.unflatten(0, (copies, -1))
    p = p.view(-1, *[1] * (split.dim() - 1))
    kept = torch.rand_like(split) >= p
    return (split * kept * (1 / (1 - p)).nan_to_num(posinf=0.0)).flatten(0, 1)


class _Conv(_Layer):
    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        first = models[0]
        if first.padding_mode != "zeros" or first.groups != 1:
            raise NotStackableError(f"{path} is a convolution with groups or a padding mode")
        self.call: Callable[..., Tensor] = F.conv1d if isinstance(first, nn.Conv1d) else F.conv2d
        self.options = {"stride": first.stride, "padding": first.padding, "dilation": first.dilation}
        self.weight = _together([m.weight for m in models])
        self.bias = None if first.bias is None else _together([m.bias for m in models])

    def forward(self, x: Tensor) -> Tensor:
        copies = self.shape.copies
        side_by_side = self.split(x).transpose(0, 1).flatten(1, 2)  # [B, K * channels, ...]
        bias = None if self.bias is None else self.bias.flatten()
        out = self.call(side_by_side, self.weight.flatten(0, 1), bias, groups=copies, **self.options)
        return out.unflatten(1, (copies, -1)).transpose(0, 1).flatten(0, 1)


class _Recurrent(_Layer):
    """nn.GRU or nn.LSTM, batch first and in one direction."""

    def __init__(self, models: list[Any], shape: _Shape, path: str) -> None:
        super().__init__(shape)
        first = models[0]
        if not first.batch_first or first.bidirectional or not first.bias or getattr(first, "proj_size", 0):
            raise NotStackableError(f"{path} must be batch_first, in one direction, with biases and no projection")
        self.layers, self.hidden = first.num_layers, first.hidden_size
        self.scan = _gru if isinstance(first, nn.GRU) else _lstm
        for name, _ in first.named_parameters():
            self.register_parameter(name, _together([getattr(m, name) for m in models]))
        self.register_buffer("p", torch.tensor([float(m.dropout) for m in models]), persistent=False)
        self.p: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """The states of the last layer, `[K * B, T, hidden]`; the final states are not kept apart."""
        for layer in range(self.layers):
            if layer and self.training:
                x = _drop(x, self.p, self.shape.copies)
            weights = [getattr(self, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            x = self.scan(self.split(x), *weights).flatten(0, 1)
        return x, None


def _gru(x: Tensor, weight_x: Tensor, weight_h: Tensor, bias_x: Tensor, bias_h: Tensor) -> Tensor:
    copies, batch, length, _ = x.shape
    hidden = weight_h.shape[2]
    steps = _affine(x.transpose(1, 2).flatten(1, 2), weight_x, bias_x).view(copies, length, batch, 3 * hidden)
    turned, bias = weight_h.transpose(1, 2), bias_h.unsqueeze(1)
    state = x.new_zeros(copies, batch, hidden)
    states = []
    for step in steps.unbind(1):
        inner = torch.baddbmm(bias, state, turned)
        gates = torch.sigmoid(step[..., : 2 * hidden] + inner[..., : 2 * hidden])
        reset, update = gates[..., :hidden], gates[..., hidden:]
        new = torch.tanh(torch.addcmul(step[..., 2 * hidden :], reset, inner[..., 2 * hidden :]))
        state = torch.lerp(new, state, update)
        states.append(state)
    return torch.stack(states, 2)


def _lstm(x: Tensor, weight_x: Tensor, weight_h: Tensor, bias_x: Tensor, bias_h: Tensor) -> Tensor:
    copies, batch, length, _ = x.shape
    hidden = weight_h.shape[2]
    steps = _affine(x.transpose(1, 2).flatten(1, 2), weight_x, bias_x + bias_h).view(copies, length, batch, 4 * hidden)
    turned = weight_h.transpose(1, 2)
    state, cell = x.new_zeros(copies, batch, hidden), x.new_zeros(copies, batch, hidden)
    states = []
    for step in steps.unbind(1):
        gates = torch.baddbmm(step, state, turned)
        opened = torch.sigmoid(gates)
        gate_in, forget, out = (opened[..., i * hidden : (i + 1) * hidden] for i in (0, 1, 3))
        cell = torch.addcmul(forget * cell, gate_in, torch.tanh(gates[..., 2 * hidden : 3 * hidden]))
        state = out * torch.tanh(cell)
        states.append(state)
    return torch.stack(states, 2)


# Layers that see one example at a time and have no weights.
_PLAIN = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.GELU,
    nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.MaxPool1d,
    nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_MAKERS: dict[type[nn.Module], Callable[[list[Any], _Shape, str], nn.Module]] = {
    nn.Linear: _Linear,
    nn.Embedding: _Embedding,
    nn.LayerNorm: _LayerNorm,
    nn.Dropout: _Dropout,
    nn.Conv1d: _Conv,
    nn.Conv2d: _Conv,
    nn.GRU: _Recurrent,
    nn.LSTM: _Recurrent,
}
