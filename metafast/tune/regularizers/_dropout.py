"""Dropout with probabilities that are tuned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafast._checks import fraction, positive
from metafast.tune._dynamics import compute_dtype
from metafast.tune._tune import Tune
from metafast.tune.regularizers._tunable import Tunable, check_floating

LOWEST, HIGHEST = 1e-3, 0.9
Dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d
CHANNEL_DIMS: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}
PER = ("layer", "global")


class ConcreteDropout(Tunable):
    r"""Dropout whose mask is smooth in its probability p.

    The mask is \(1 - \sigma((\operatorname{logit} p + \operatorname{logit} u) / t)\) with uniform u: close to 0 or 1
    for a low temperature t, and in between for the few u that decide on the derivative. Values are divided by
    \(1 - p\), as `nn.Dropout` does; in evaluation mode they pass. Of the paper, this is the relaxation alone: p is
    tuned by a validation loss, and needs no prior.

    Args:
        p: where the probability of being dropped starts, above 0 and below 1; or the `p` of another layer, to share it.
            Default 0.5.
        temperature: t, above 0. Low: closer to `nn.Dropout`, with a noisier derivative. Default 0.1.
        channel_dims: trailing dimensions of a channel, which is dropped as a whole: 0 (default) as `nn.Dropout`, 1 as
            `nn.Dropout1d`, 2 and 3 in the same way.

    Attributes:
        p: 0-d, tuned in logit space between 1e-3 and 0.9.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or an input of another number of dimensions.

    Example:
        >>> dropout = ConcreteDropout(0.3)
        >>> model = nn.Sequential(nn.Linear(4, 8), dropout, nn.Linear(8, 2))
        >>> len(list(dropout.parameters())), "1.p" in model.state_dict()
        (0, True)
        >>> x = torch.randn(5, 8)
        >>> torch.equal(dropout.eval()(x), x)
        True

    Source:
        Y. Gal, J. Hron, A. Kendall, Concrete Dropout, NeurIPS 2017, equation 5.
    """

    p: Tensor

    def __init__(self, p: float | Tensor = 0.5, temperature: float = 0.1, channel_dims: int = 0) -> None:
        super().__init__("dropout")
        self.temperature = positive("temperature", temperature)
        if channel_dims not in CHANNEL_DIMS.values():
            raise ValueError(f"channel_dims must be 0, 1, 2 or 3, got {channel_dims!r}")
        self.channel_dims = channel_dims
        if isinstance(p, Tensor) and p.ndim > 0:
            raise TypeError(f"p must be a number or a 0-d tensor, got shape {list(p.shape)}")
        start = fraction("p", p.item() if isinstance(p, Tensor) else p)
        self._add("p", p if isinstance(p, Tensor) else torch.tensor(start), "logit", (LOWEST, HIGHEST))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with a random part of its values, or channels, close to 0; of its shape and dtype."""
        check_floating("x", x, "dropout goes behind an embedding or a layer")
        if not self.training:
            return x
        p = self.p.to(compute_dtype(x.dtype))
        noise = torch.rand(self._mask_shape(x), dtype=p.dtype, device=x.device)
        kept = torch.sigmoid(-(p.logit() + noise.logit()) / self.temperature)
        return x * (kept / (1 - p)).to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments, with the present probability."""
        channels = f", channel_dims={self.channel_dims}" if self.channel_dims else ""
        return f"{super().extra_repr()}, temperature={self.temperature:g}{channels}"

    def _mask_shape(self, x: Tensor) -> torch.Size:
        dims = self.channel_dims
        if dims == 0:
            return x.shape
        if x.ndim not in (dims + 1, dims + 2):
            raise ValueError(
                f"x must have {dims + 1} or {dims + 2} dimensions, [C, ...] or [N, C, ...], for channel_dims={dims}, "
                f"got shape {list(x.shape)}"
            )
        leading = 2 if x.ndim == dims + 2 or dims == 2 else 1  # nn.Dropout2d takes 3 dimensions as [N, C, L]
        return torch.Size([*x.shape[:leading], *[1] * (x.ndim - leading)])


def replace_dropout(
    model: nn.Module, per: str = "layer", p: float | None = None, temperature: float = 0.1
) -> list[Tune]:
    """Puts a `ConcreteDropout` in the place of every `nn.Dropout`, `Dropout1d`, `Dropout2d` and `Dropout3d` of a model.

    Dropout that is a number, not a module, is not seen: in `nn.MultiheadAttention`, `nn.LSTM` or `F.dropout`.

    Args:
        model: changed in place.
        per: a probability for each "layer" (default), or one for all ("global").
        p: where they start. Default: as each layer has it; a layer with 0 starts at 0.001.
        temperature: of all.

    Returns:
        What goes into the `tune` of an `OnlineTuner`: `tune=["lr", *replace_dropout(model)]`. The names are those of
        the state dict ("3.p"), or "dropout".

    Raises:
        TypeError, ValueError: no such layer, a probability of 1, unequal ones with "global", or an argument of the
            wrong type or value. The model has not changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> [spec.name for spec in replace_dropout(model)]
        ['1.p']
        >>> model[1]
        ConcreteDropout(p=0.2, temperature=0.1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
    places: dict[Dropout, list[str]] = {}  # a layer may be in several
    for path, module in model.named_modules(remove_duplicate=False):
        if path and isinstance(module, Dropout) and type(module) in CHANNEL_DIMS:
            places.setdefault(module, []).append(path)
    if not places:
        raise ValueError(
            "model has no nn.Dropout, Dropout1d, Dropout2d or Dropout3d inside it to replace; "
            "put a ConcreteDropout(p) where one should be"
        )
    starts = [max(layer.p, LOWEST) if p is None else p for layer in places]
    if per == "global" and len(set(starts)) > 1:
        raise ValueError(
            f"the layers have different probabilities, {', '.join(f'{x:g}' for x in sorted(set(starts)))}; "
            'say where one for all starts, replace_dropout(model, per="global", p=0.1), or use per="layer"'
        )
    made: list[ConcreteDropout] = []
    for layer, start in zip(places, starts, strict=True):
        shared = made[0].p if per == "global" and made else start
        made.append(ConcreteDropout(shared, temperature, CHANNEL_DIMS[type(layer)]).train(layer.training))
    for new, paths in zip(made, places.values(), strict=True):
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
    if per == "global":
        return made[0].tune()
    return [spec for new, paths in zip(made, places.values(), strict=True) for spec in new.tune(f"{paths[0]}.p")]
