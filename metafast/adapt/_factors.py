"""Networks that transform a gradient by its factors: what went into a site, and the gradient of what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.adapt._feedback import SIGNALS
from metafast.adapt._sites import Site

TINY = 1e-12


class Pointwise(nn.Module):
    """MEND's layer on each position by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        """`[N, P, width]`, or `[N, H, W, width]`."""
        return F.relu(self.layer(rows))


class Convolution(nn.Module):
    """A 3 × 3 convolution over the positions of a map; along a sequence, three positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, rows: Tensor) -> Tensor:
        """As `Pointwise`'s."""
        maps = rows if rows.dim() == 4 else rows.unsqueeze(2)
        found = F.relu(self.layer(maps.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return found.reshape(rows.shape)


class Attention(nn.Module):
    """One block of a transformer over the positions of an example."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        """As `Pointwise`'s."""
        flat = rows.flatten(1, -2)
        q, k, v = self.qkv(self.norm(flat)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
        mixed = flat + self.back(weights @ v)
        return F.relu(self.layer(mixed)).view(rows.shape)


class Recurrence(nn.Module):
    """A gated recurrent unit along the positions of an example, written out so that it has second derivatives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """As `Pointwise`'s."""
        flat = rows.flatten(1, -2)
        state = flat.new_zeros(len(flat), flat.shape[-1])
        found = []
        for each in self.inputs(flat).unbind(1):
            gate, new = (each + self.states(state)).chunk(2, -1)
            gate = torch.sigmoid(gate)
            state = gate * state + (1 - gate) * torch.tanh(new)
            found.append(state)
        return torch.stack(found, 1).view(rows.shape)


MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "mend": Pointwise,
    "conv": Convolution,
    "transformer": Attention,
    "rnn": Recurrence,
}


class Factors(nn.Module):
    r"""Edits the factors of a gradient \(\sum_p \delta_p u_p^\top\): both get a low-rank correction that is learned.

    In units of their mean square, \([u, \delta] \leftarrow [u, \delta] + V \mathrm{mix}(s_l \odot U [u, \delta] +
    o_l + W f)\), or \(\delta\) alone where the two have other positions (convolutions), with one U, V and mixer for all
    sites of the same widths, a scale and an offset per site, and the task's feedback f. V starts at 0: at first the
    gradient is what it is.

    Args:
        sites: those that adapt.
        mixer: "mend" (each position by itself), "conv", "transformer" or "rnn" (over the positions of an example).
        width: rank of the correction.
        dropout: of what is mixed.

    Raises:
        ValueError: no site has such factors.

    Source:
        E. Mitchell et al., Fast Model Editing at Scale, ICLR 2022 (MEND); mixers over positions are ours.
    """

    def __init__(self, sites: Sequence[Site], mixer: str, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.covers = [number for number, site in enumerate(sites) if site.widths is not None]
        if not self.covers:
            raise ValueError(
                f"net: {mixer!r} transforms the factors of gradients at adapted modules, and adapt chooses none that "
                "have some; leave it out, or adapt more than the head and embeddings"
            )
        pairs: list[tuple[int, int]] = []
        self.member: dict[int, tuple[int, int]] = {}
        for number in self.covers:
            widths = sites[number].widths
            assert widths is not None
            if widths not in pairs:
                pairs.append(widths)
            self.member[number] = pairs.index(widths), sum(sites[n].widths == widths for n in self.covers if n < number)
        self.pairs = pairs
        counts = [sum(sites[n].widths == pair for n in self.covers) for pair in pairs]
        self.down = nn.ModuleList(nn.Linear(sum(pair), width, bias=False) for pair in pairs)
        self.mix = nn.ModuleList(MIXERS[mixer](width) for _ in pairs)
        ups = [nn.Linear(width, sum(pair), bias=False) for pair in pairs]
        self.up = nn.ModuleList(ups)
        self.scale = nn.ParameterList(torch.ones(count, width) for count in counts)
        self.offset = nn.ParameterList(torch.zeros(count, width) for count in counts)
        self.told = nn.Linear(SIGNALS, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for layer in (*ups, self.told):
            nn.init.zeros_(layer.weight)

    def forward(self, number: int, left: Tensor, delta: Tensor, signals: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """The factors of a site, edited.

        Args:
            number: of the site.
            left: `[T * N, ...]`.
            delta: likewise.
            signals: `[T, 3]`, see `feedback`.
            last: whether their channels are the last dimension; else they are the second.
        """
        group, place = self.member[number]
        down: Any = self.down[group].weight
        up: Any = self.up[group].weight
        given = (left, delta) if self.pairs[group][0] else (delta,)
        parts = [x.unsqueeze(1 if last else 2) if x.dim() == 2 else x for x in given]
        shape = parts[-1].shape
        places = shape[:-1] if last else (shape[0], *shape[2:])  # examples and their positions
        parts = [x.flatten(1, -2) if last else x.flatten(2) for x in parts]
        widths = [x.shape[2 if last else 1] for x in parts]
        squares = [_squares(x, last) for x in parts]
        live = squares[-1] > 0  # [N, P]; padding gets no gradient, and no correction
        sizes = [_size(x, live, len(signals), w) for x, w in zip(squares, widths, strict=True)]
        # sizes are divided out of what is already narrow: the factors themselves are read, not copied
        low = [_down(x, w, last) / size for x, w, size in zip(parts, down.split(widths, 1), sizes, strict=True)]
        offset = self.offset[group][place] + _spread(self.told(signals), shape[0])
        alive = live.unsqueeze(2)
        hidden = alive * (sum(low[1:], low[0]) * self.scale[group][place] + offset)  # [N, P, width]
        mixed = alive * self.dropout(self.mix[group](hidden.view(*places, -1))).flatten(1, -2)
        found = [
            _add_up(x, mixed * size, w, last).view(whole.shape)
            for x, whole, w, size in zip(parts, given, up.split(widths), sizes, strict=True)
        ]
        return (left if len(found) == 1 else found[0]), found[-1]


def _down(x: Tensor, weight: Tensor, last: bool) -> Tensor:
    """`[N, P, width]` of `[N, P, C]`, or of `[N, C, P]` where channels are not `last`."""
    return F.linear(x, weight) if last else torch.bmm(weight.expand(len(x), -1, -1), x).transpose(1, 2)


def _add_up(x: Tensor, mixed: Tensor, weight: Tensor, last: bool) -> Tensor:
    """`x` and its correction from `[N, P, width]`, in one pass over `x`."""
    if last:
        return torch.addmm(x.flatten(0, 1), mixed.flatten(0, 1), weight.t())
    return torch.baddbmm(x, weight.expand(len(x), -1, -1), mixed.transpose(1, 2))


def _spread(each: Tensor, examples: int) -> Tensor:
    """`[T, C]` as `[N, 1, C]` for each example."""
    return each.repeat_interleave(examples // len(each), 0).unsqueeze(1)


@torch.no_grad()
def _squares(x: Tensor, last: bool) -> Tensor:
    """`[N, P]`, the square of each position's length."""
    return torch.linalg.vector_norm(x, dim=2).square() if last else x.square().sum(1)


@torch.no_grad()
def _size(squares: Tensor, live: Tensor, tasks: int, width: int) -> Tensor:
    """Root mean square of each task's part where `live`, `[N, 1, 1]`."""
    count = live.view(tasks, -1).sum(1) * width
    size = ((squares * live).view(tasks, -1).sum(1) / count.clamp(min=1)).sqrt() + TINY
    return _spread(size[:, None], len(squares))
