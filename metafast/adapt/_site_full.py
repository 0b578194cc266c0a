"""All weights of a layer, anew for every task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.adapt._site import Site, Values, own_weights, with_weights
from metafast.adapt._task_conv import task_conv, task_conv_weight


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
    def widths(self) -> tuple[int, int]:
        return 0, self.module.out_channels

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
