"""Where a frozen model adapts: wrappers around its modules, each with numbers of its own for every task."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Values = dict[str, Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Tap(NamedTuple):
    """One call of a site in a forward pass.

    Args:
        left: what its numbers were multiplied with; its gradient is a product of this and that of `out`.
        out: the output, of which the gradient is taken.
        versions: of both, when they were noted.
    """

    left: Tensor
    out: Tensor
    versions: tuple[int, int]

    @property
    def changed(self) -> bool:
        """Whether the model wrote over them since."""
        return (self.left._version, self.out._version) != self.versions


class Site(nn.Module):
    """A module of the frozen model, and what every task adds to it.

    Tasks are folded into the batch: inputs are `[T * N, ...]` and the frozen module runs once for all of them, while
    the numbers of the tasks are `[T, *shape]`. While `tape` is a list, every call is noted in it.

    Args:
        name: of the module in the model.
        module: the frozen module.

    Source:
        N. Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; the kinds name their own.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.module: Any = module
        self.values: Values = {}
        self.tape: list[Tap] | None = None
        self.copies = False  # for models that write over outputs and inputs, as ReLU(inplace=True) does
        self.reuse: Any = None
        self.examples = 0  # of all tasks, in a pass

    def __getattr__(self, name: str) -> Any:
        """What callers look up on the wrapped module, such as `weight`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    # ---- what a kind says

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The numbers of one task."""
        raise NotImplementedError

    def start(self) -> Values:
        """Numbers with which the site computes what the module does."""
        return {name: torch.zeros(shape, **self._like()) for name, shape in self.shapes.items()}

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """The output `[T * N, ...]`, and what the numbers were multiplied with."""
        raise NotImplementedError

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        """The gradients of the numbers from `left` and the gradient of the output, both as `run` has them."""
        raise NotImplementedError

    def merged(self, values: Values) -> nn.Module:
        """A module without a wrapper for the numbers of one task, `[*shape]`."""
        raise NotImplementedError

    @property
    def modulations(self) -> int:
        """How many numbers of a task shift its start, where one is read off the support set."""
        return 0

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        """The start `[*shape]` moved by `[T, modulations]`, `[T, *shape]`; zero moves nothing."""
        raise NotImplementedError

    # ---- the factors of a gradient, for networks that transform it

    @property
    def widths(self) -> tuple[int, int] | None:
        """Channels of `left` and of the output, where both have the same positions; else None."""
        return None

    # ---- inside

    @property
    def channels_last(self) -> bool:
        """Whether the channels of an output are its last dimension."""
        return not isinstance(self.module, (*CONVOLUTIONS, *BATCH_NORMS, nn.GroupNorm))

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return channels(self.module)

    def forward(self, x: Tensor) -> Tensor:
        """The module's output with the numbers of each task."""
        out, left = self.run(x, self.values)
        if self.reuse is not None:
            self.reuse.entered = True
        if self.tape is not None:
            leaf = not out.requires_grad
            out = out.detach().requires_grad_() if leaf else out
            left = left.clone() if self.copies and left is x else left
            self.tape.append(Tap(left, out, (left._version, out._version)))
            return out.clone() if self.copies or leaf else out
        return out

    def _like(self) -> dict[str, Any]:
        weight = next(p for p in self.module.parameters() if p.is_floating_point())
        return {"dtype": weight.dtype, "device": weight.device}

    def _rows(self, x: Tensor, tasks: int) -> Tensor:
        """`[T, R, C]` of an output or of inputs with the same layout."""
        return (x if self.channels_last else x.movedim(1, -1)).reshape(tasks, -1, self._width(x))

    def _width(self, x: Tensor) -> int:
        return x.shape[-1] if self.channels_last else x.shape[1]

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        """`[T, C]` spread over the examples and positions of `[T * N, ...]`."""
        each = values.repeat_interleave(len(like) // len(values), 0) if len(values) > 1 else values
        if self.channels_last:
            return each.view(len(each), *[1] * (like.dim() - 2), -1)
        return each.view(*each.shape, *[1] * (like.dim() - 2))


class LoRALinear(Site):
    r"""\(y = W x + \frac{\alpha}{r} B_t A_t x\).

    Source:
        E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, equation 3.
    """

    kind = "lora"

    def __init__(self, name: str, module: nn.Linear, r: int = 4, alpha: float | None = None) -> None:
        super().__init__(name, module)
        self.r, self.alpha = r, float(r if alpha is None else alpha)
        self.scale = self.alpha / r

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.r, self.module.in_features), "B": (self.module.out_features, self.r)}

    @property
    def widths(self) -> tuple[int, int]:
        return self.module.in_features, self.module.out_features

    def start(self) -> Values:
        found = super().start()
        nn.init.kaiming_uniform_(found["A"], a=5**0.5)
        return found

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        y = self.module(x)
        a, b = values["A"], values["B"]
        rows = x.reshape(len(a), -1, x.shape[-1])  # [T, R, in]
        low = torch.bmm(torch.bmm(rows, a.transpose(1, 2)), b.transpose(1, 2) * self.scale)
        return y + low.view(y.shape), x

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        a, b = values["A"], values["B"]
        x, d = self._rows(left, len(a)), self._rows(delta, len(a)) * self.scale
        return {
            "A": torch.bmm(torch.bmm(d, b).transpose(1, 2), x),
            "B": torch.bmm(d.transpose(1, 2), torch.bmm(x, a.transpose(1, 2))),
        }

    def merged(self, values: Values) -> nn.Module:
        return with_weights(self.module, self.module.weight + self.scale * values["B"] @ values["A"])

    @property
    def modulations(self) -> int:
        return self.r

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        return {"A": start["A"].expand(len(amounts), -1, -1), "B": start["B"] * (1 + amounts[:, None])}


class LoRAConv2d(Site):
    """A convolution to `r` channels and one by one position back, beside the frozen one, as peft has it.

    Source:
        E. Hu et al., LoRA, ICLR 2022, for convolutions as in S. Mangrulkar et al., peft.
    """

    kind = "lora"

    def __init__(self, name: str, module: nn.Conv2d, r: int = 4, alpha: float | None = None) -> None:
        super().__init__(name, module)
        self.r, self.alpha = r, float(r if alpha is None else alpha)
        self.scale = self.alpha / r

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "A": (self.r, self.module.in_channels, *self.module.kernel_size),
            "B": (self.module.out_channels, self.r),
        }

    @property
    def widths(self) -> None:
        return None

    def start(self) -> Values:
        found = super().start()
        nn.init.kaiming_uniform_(found["A"], a=5**0.5)
        return found

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        y = self.module(x)
        a, b = values["A"], values["B"]
        low = self._up(task_conv(x, a, self.module), b)
        return y + low, x

    def _up(self, low: Tensor, b: Tensor) -> Tensor:
        """`[T * N, r, H, W]` to `[T * N, out, H, W]`."""
        rows = low.reshape(len(b), -1, *low.shape[1:]).flatten(3)  # [T, N, r, HW]
        return torch.matmul(b[:, None] * self.scale, rows).view(len(low), -1, *low.shape[2:])

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        a, b = values["A"], values["B"]
        low = task_conv(left, a, self.module)
        d = delta.reshape(len(b), -1, *delta.shape[1:]).flatten(3) * self.scale  # [T, N, out, HW]
        h = low.reshape(len(b), -1, *low.shape[1:]).flatten(3)  # [T, N, r, HW]
        back = torch.matmul(b.transpose(1, 2)[:, None], d).view(low.shape)
        return {
            "A": task_conv_weight(left, back, a.shape[1:], len(a), self.module),
            "B": torch.matmul(d, h.transpose(2, 3)).sum(1),
        }

    def merged(self, values: Values) -> nn.Module:
        added = torch.einsum("or,rihw->oihw", values["B"], values["A"])
        return with_weights(self.module, self.module.weight + self.scale * added)

    @property
    def modulations(self) -> int:
        return self.r

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        return {"A": start["A"].expand(len(amounts), -1, -1, -1, -1), "B": start["B"] * (1 + amounts[:, None])}


class FiLM(Site):
    r"""\(y = (1 + s_t) \odot f(x) + b_t\), a scale and a shift per channel of a module's output.

    Source:
        E. Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, AAAI 2018, equation 2.
    """

    kind = "film"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"scale": (self.outputs,), "shift": (self.outputs,)}

    @property
    def widths(self) -> tuple[int, int]:
        return self.outputs, self.outputs

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        y = self.module(x)
        out = torch.addcmul(self._per_channel(values["shift"], y), y, self._per_channel(1 + values["scale"], y))
        return out, y

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        tasks = len(values["scale"])
        y, d = self._rows(left, tasks), self._rows(delta, tasks)
        return {"scale": (y * d).sum(1), "shift": d.sum(1)}

    def merged(self, values: Values) -> nn.Module:
        scale = 1 + values["scale"]
        weight, bias = self.module.weight, self.module.bias
        bias = values["shift"] if bias is None else bias * scale + values["shift"]
        return with_weights(self.module, weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias)

    @property
    def modulations(self) -> int:
        return 2 * self.outputs

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        scale, shift = amounts.split(self.outputs, 1)
        return {"scale": start["scale"] + scale, "shift": start["shift"] + shift}


class Bias(Site):
    """A shift per channel of the output: what training the bias alone does.

    Source:
        E. Ben Zaken et al., BitFit, ACL 2022.
    """

    kind = "bias"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"shift": (self.outputs,)}

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        y = self.module(x)
        return y + self._per_channel(values["shift"], y), y

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        return {"shift": self._rows(delta, len(values["shift"])).sum(1)}

    def merged(self, values: Values) -> nn.Module:
        bias = self.module.bias
        return with_weights(self.module, self.module.weight, values["shift"] + (0 if bias is None else bias))

    @property
    def modulations(self) -> int:
        return self.outputs

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        return {"shift": start["shift"] + amounts}


class Norm(Site):
    """The weight and bias of a normalization, anew for every task."""

    kind = "norm"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in own_weights(self.module).items()}

    @property
    def widths(self) -> tuple[int, int]:
        return self.outputs, self.outputs

    def start(self) -> Values:
        return own_weights(self.module)

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        left = self._normalized(x)
        out = left * self._per_channel(values["weight"], left)
        return out + self._per_channel(values["bias"], left) if "bias" in values else out, left

    def _normalized(self, x: Tensor) -> Tensor:
        module: Any = self.module
        if isinstance(module, BATCH_NORMS):
            return F.batch_norm(x, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, None, None, module.eps)
        if isinstance(module, nn.RMSNorm):
            return F.rms_norm(x, module.normalized_shape, None, module.eps)
        return F.layer_norm(x, module.normalized_shape, None, None, module.eps)

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        tasks = len(values["weight"])
        d = self._rows(delta, tasks)
        found = {"weight": (self._rows(left, tasks) * d).sum(1)}
        return {**found, "bias": d.sum(1)} if "bias" in values else found

    def merged(self, values: Values) -> nn.Module:
        return with_weights(self.module, values["weight"], values.get("bias"))

    @property
    def modulations(self) -> int:
        return sum(shape[0] for shape in self.shapes.values())

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        parts = amounts.split([len(value) for value in start.values()], 1)
        return {name: value + part for (name, value), part in zip(start.items(), parts, strict=True)}


class FullLinear(Site):
    """The weight and bias of a linear layer, anew for every task."""

    kind = "all"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in own_weights(self.module).items()}

    @property
    def widths(self) -> tuple[int, int]:
        return self.module.in_features, self.module.out_features

    def start(self) -> Values:
        return own_weights(self.module)

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        weight = values["weight"]
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if "bias" in values:
            out = torch.baddbmm(values["bias"][:, None], rows, weight.transpose(1, 2))
        else:
            out = torch.bmm(rows, weight.transpose(1, 2))
        return out.view(*x.shape[:-1], -1), x

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        tasks = len(values["weight"])
        x, d = self._rows(left, tasks), self._rows(delta, tasks)
        found = {"weight": torch.bmm(d.transpose(1, 2), x)}
        return {**found, "bias": d.sum(1)} if "bias" in values else found

    def merged(self, values: Values) -> nn.Module:
        return with_weights(self.module, values["weight"], values.get("bias"))


class FullConv2d(Site):
    """The weight and bias of a convolution, anew for every task."""

    kind = "all"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in own_weights(self.module).items()}

    def start(self) -> Values:
        return own_weights(self.module)

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        out = task_conv(x, values["weight"], self.module)
        return out + self._per_channel(values["bias"], out) if "bias" in values else out, x

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        weight = values["weight"]
        found = {"weight": task_conv_weight(left, delta, weight.shape[1:], len(weight), self.module)}
        return {**found, "bias": self._rows(delta, len(weight)).sum(1)} if "bias" in values else found

    def merged(self, values: Values) -> nn.Module:
        return with_weights(self.module, values["weight"], values.get("bias"))


class FullEmbedding(Site):
    """The table of an embedding, anew for every task."""

    kind = "all"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": tuple(self.module.weight.shape)}

    def start(self) -> Values:
        return own_weights(self.module)

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        tables = values["weight"]
        if len(x) == 1 and len(tables) > 1:  # positions, the same for the whole batch
            x = x.expand(self.examples, *x.shape[1:])
        rows = x.reshape(len(tables), -1) + torch.arange(len(tables), device=x.device)[:, None] * tables.shape[1]
        return F.embedding(rows, tables.flatten(0, 1)).view(*x.shape, -1), rows

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        table = values["weight"]
        flat = table.new_zeros(table.shape[0] * table.shape[1], table.shape[2])
        padding = self.module.padding_idx
        d = delta.reshape(-1, table.shape[2])
        if padding is not None:
            d = d * (left.reshape(-1, 1) % table.shape[1] != padding)
        return {"weight": flat.index_add(0, left.reshape(-1), d).view(table.shape)}

    def merged(self, values: Values) -> nn.Module:
        return with_weights(self.module, values["weight"])


# ---- what several kinds use


def channels(module: nn.Module) -> int:
    """Channels of a module's output."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    weight: Any = module.weight
    return int(weight.shape[0])


def own_weights(module: Any) -> Values:
    """Copies of a module's weight and bias."""
    found = {"weight": module.weight, "bias": getattr(module, "bias", None)}
    return {name: value.detach().clone() for name, value in found.items() if value is not None}


def task_conv(x: Tensor, weights: Tensor, module: Any) -> Tensor:
    """A convolution of `[T * N, in, H, W]` by the weights `[T, out, in, kh, kw]` of each task, without bias."""
    parts = zip(x.chunk(len(weights)), weights, strict=True)
    outs = [F.conv2d(each, w, None, module.stride, module.padding, module.dilation, module.groups) for each, w in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def task_conv_weight(x: Tensor, delta: Tensor, shape: Any, tasks: int, module: Any) -> Tensor:
    """The gradient of the weights of `task_conv`, `[T, *shape]`."""
    grads = [
        conv2d_weight(each, shape, d, module.stride, module.padding, module.dilation, module.groups)
        for each, d in zip(x.chunk(tasks), delta.chunk(tasks), strict=True)
    ]
    return torch.stack(grads)


def with_weights(module: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A module like another with a weight and bias of its own; None keeps the bias."""
    new = copy.copy(module)
    new._parameters = dict(module._parameters)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            new._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
    result: nn.Module = new
    return result
