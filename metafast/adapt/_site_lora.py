"""Low-rank factors beside a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafast.adapt._site import Site, Values, with_weights
from metafast.adapt._task_conv import task_conv, task_conv_weight


class LoRA(Site):
    """What linear layers and convolutions share.

    Args:
        name: of the module in the model.
        module: the frozen module.
        r: rank.
        alpha: the scale of both factors times the rank. Default: `r`.
    """

    kind = "lora"

    def __init__(self, name: str, module: nn.Module, r: int = 4, alpha: float | None = None) -> None:
        super().__init__(name, module)
        self.r, self.alpha = r, float(r if alpha is None else alpha)
        self.scale = self.alpha / r

    def start(self) -> Values:
        found = super().start()
        nn.init.kaiming_uniform_(found["A"], a=5**0.5)
        return found

    @property
    def modulations(self) -> int:
        return self.r

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        return {"A": start["A"].expand(len(amounts), *start["A"].shape), "B": start["B"] * (1 + amounts[:, None])}


class LoRALinear(LoRA):
    r"""\(y = W x + \frac{\alpha}{r} B_t A_t x\).

    Source:
        E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, equation 3.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.r, self.module.in_features), "B": (self.module.out_features, self.r)}

    @property
    def widths(self) -> tuple[int, int]:
        return self.module.in_features, self.module.out_features

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


class LoRAConv2d(LoRA):
    """A convolution to `r` channels and one by one position back, beside the frozen one, as peft has it.

    Source:
        E. Hu et al., LoRA, ICLR 2022, for convolutions as in S. Mangrulkar et al., peft.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "A": (self.r, self.module.in_channels, *self.module.kernel_size),
            "B": (self.module.out_channels, self.r),
        }

    @property
    def widths(self) -> tuple[int, int]:
        return 0, self.module.out_channels

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
