"""A module as a function of its parameters: what the generic engines differentiate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metafast.innerloop._arguments import check_kind
from metafast.innerloop._layout import Layout
from metafast.innerloop._loss import LossKind
from metafast.innerloop._model import NormLayer, logits_of, norm_layers
from metafast.innerloop._rules import SGD, Adam, Rule
from metafast.ops._program import Loss


class Steps:
    """The inner optimizer in differentiable operations, on flat `[..., A]` tensors of the adapted parameters."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.m: Tensor | None = None
        self.v: Tensor | None = None
        self.t = 0

    def update(self, g: Tensor, theta: Tensor, start: Tensor) -> Tensor:
        rule = self.rule
        assert isinstance(rule, SGD | Adam)
        self.t += 1
        d = g + rule.weight_decay * theta if rule.weight_decay else g
        if rule.prox:
            d = d + rule.prox * (theta - start)
        if isinstance(rule, SGD):
            self.m = d if self.m is None or not rule.momentum else rule.momentum * self.m + d
            return self.m
        self.m = (1 - rule.beta1) * d if self.m is None else rule.beta1 * self.m + (1 - rule.beta1) * d
        self.v = (1 - rule.beta2) * d * d if self.v is None else rule.beta2 * self.v + (1 - rule.beta2) * d * d
        v_hat = self.v / (1 - rule.beta2**self.t)
        moving = v_hat > 0  # the root has no derivative at 0
        root = torch.where(moving, torch.where(moving, v_hat, 1).sqrt(), 0)
        return self.m / (1 - rule.beta1**self.t) / (root + rule.eps)


@dataclass
class Functional:
    """A model and its loss as functions of the parameters.

    Args:
        model: any module.
        layout: of its parameters.
        loss: what is minimized.
        batch_norm: "auto", "batch" or "running".
    """

    model: nn.Module
    layout: Layout
    loss: LossKind
    batch_norm: str

    def __post_init__(self) -> None:
        self.norms = norm_layers(self.model)
        self.norm_modules = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        self.inside = [name in self.layout.adapted for name in self.layout.names]

    @property
    def stats_width(self) -> int:
        """S, the elements of all batch statistics."""
        return sum(2 * layer.channels for layer in self.norms)

    def forward(
        self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, stats: Tensor | None, key: int | None,
        where: str,
    ) -> Tensor:  # fmt: skip
        """Logits; batch norms as `batch_norm` says, random layers seeded by `key` (None: under vmap, left alone).

        Raises:
            ValueError: the model fails; `where` names the argument and the task.
        """
        before = [(module, module.training, dict(module._buffers)) for module in self.norm_modules]
        try:
            for layer, module in zip(self.norms, self.norm_modules, strict=True):
                if self._set_norm(layer, module, stats):
                    buffers = {name: b for name, b in buffers.items() if name not in layer.buffers}
            if key is None:
                return self.call(params, buffers, x)
            with _seeded(key, x.device):
                return self.named_call(params, buffers, x, where)
        finally:
            for module, training, own in before:
                module.training = training
                module._buffers.update(own)

    def _set_norm(self, layer: NormLayer, module: nn.Module, stats: Tensor | None) -> bool:
        """The mode of a batch norm for one forward pass; whether `stats` took the place of its own statistics."""
        if self.batch_norm != "auto":
            module.training = self.batch_norm == "batch"
        own = layer.buffers[0] is not None
        if module.training or not own and self.batch_norm != "running":
            return False
        if stats is None:
            if not own:
                raise ValueError(f"stats is needed: batch norm {layer.name!r} keeps no running statistics")
            return False
        c, o = layer.channels, layer.offset
        module._buffers["running_mean"] = stats[o : o + c]
        module._buffers["running_var"] = stats[o + c : o + 2 * c]
        return True

    def named_call(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, where: str) -> Tensor:
        """Logits; where the model fails, most often by the shape of the examples, `where` says on which."""
        try:
            return self.call(params, buffers, x)
        except (RuntimeError, ValueError, IndexError) as error:
            if type(error) not in (RuntimeError, ValueError, IndexError):  # out of memory, not implemented
                raise
            size = f"{list(x.shape)} of {x.dtype}"
            raise ValueError(f"{where}: the model cannot run on its examples, {size}: {error}") from error

    def call(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits by kernels that can be differentiated twice: fused attention and cuDNN's recurrent layers cannot."""
        with ExitStack() as contexts:
            contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.recurrent and x.is_cuda:
                tf32 = torch.backends.cudnn.allow_tf32
                contexts.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=tf32))
            return _tensor(functional_call(self.model, (params, buffers), (x,)))

    def split(self, params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The adapted parameters as one vector, and the others."""
        flat = torch.cat(
            [params[n].reshape(-1) for n, inside in zip(self.layout.names, self.inside, strict=True) if inside]
        )
        return flat, {n: params[n] for n, inside in zip(self.layout.names, self.inside, strict=True) if not inside}

    def join(self, flat: Tensor, others: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `split`."""
        inner = [n for n, inside in zip(self.layout.names, self.inside, strict=True) if inside]
        shapes = [self.layout.shapes[n] for n in inner]
        parts = flat.split([math.prod(shape) for shape in shapes])
        return {**others, **{n: part.view(shape) for n, part, shape in zip(inner, parts, shapes, strict=True)}}

    def rate(self, rates: Tensor, k: int) -> Tensor:
        """The rates of step k, for the adapted elements only."""
        row = rates[k if rates.shape[0] > 1 else 0]
        sizes = self.layout.sizes
        if row.numel() == 1:
            return row.view(())
        if row.numel() == len(sizes):
            chosen = [i for i, inside in enumerate(self.inside) if inside]
            repeats = torch.tensor([sizes[i] for i in chosen], device=row.device)
            return row[chosen].repeat_interleave(repeats, output_size=sum(sizes[i] for i in chosen))
        return torch.cat([part for part, inside in zip(row.split(sizes), self.inside, strict=True) if inside])

    # ---- one task

    def judge(self, z: Tensor, y: Tensor, name: str, task: int | None) -> Tensor:
        """The loss, 0 for no examples; what does not fit the logits is named."""
        if y.shape[0] == 0:
            return z.sum() * 0
        check_kind(name, y, self.loss.kind, z.dtype)
        if self.loss.kind is Loss.MSE and y.shape != z.shape:  # torch would broadcast
            raise ValueError(
                f"{name} must be [tasks, examples, numbers], {list(z.shape)} for each task as the model's output, "
                f"got {list(y.shape)}"
            )
        if self.loss.kind is Loss.CROSS_ENTROPY and task is not None:
            low, high = y.aminmax()
            if int(low) < 0 or int(high) >= z.shape[1]:
                raise ValueError(
                    f"{name}: task {task} has labels {int(low)} to {int(high)}, the model has {z.shape[1]} classes"
                )
        value = self.loss.function(z, y)
        if value.dim() != 0:
            raise ValueError(f"loss must return a scalar for one task, got shape {list(value.shape)}")
        return value


@contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of the device start from `key`, and go on afterwards where they were."""
    generators = [torch.default_generator]  # torch.manual_seed would format a stack trace for every device
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _tensor(output: Any) -> Tensor:
    logits = logits_of(output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits, or an object with .logits, got {type(output).__name__}")
    return logits
