"""A few numbers per channel: scales, shifts, the weights of a normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.adapt._site import BATCH_NORMS, Site, Values, own_weights, with_weights


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
    def widths(self) -> tuple[int, int]:
        return 0, self.outputs

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
