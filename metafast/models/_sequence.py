"""A transformer over tokens or over values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafast.models._small import _dropout, _seeded, _sizes
from metafast.models._vit import TransformerBlock


class SequenceTransformer(nn.Module):
    """A transformer encoder: learned positions, pre-norm blocks, the mean over positions, dropout, one layer.

    Args:
        outputs: classes, or steps of a forecast.
        length: of the sequences.
        buckets: rows of the embedding of token numbers; None: the inputs are values `[N, length]`, or
            `[N, length, features]`.
        features: numbers per position where the inputs are values.
        dim: width of a position; `heads` must divide it.
        layers: blocks.
        heads: attention heads of each.
        expansion: width of the two layers on each position, in widths of it.
        dropout: of the mean over positions, in [0, 1).
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer, a dropout that is no number.
        ValueError: a size below 1, sizes that do not divide, or a dropout outside [0, 1).

    Example:
        >>> SequenceTransformer(4, 12, buckets=100, dim=16, seed=0)(torch.zeros(2, 12, dtype=torch.int64)).shape
        torch.Size([2, 4])

    Source:
        A. Vaswani et al., Attention Is All You Need, NeurIPS 2017.
    """

    def __init__(
        self,
        outputs: int,
        length: int,
        *,
        buckets: int | None = None,
        features: int = 1,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        outputs, length, features, dim = _sizes(outputs=outputs, length=length, features=features, dim=dim)
        layers, heads, expansion = _sizes(layers=layers, heads=heads, expansion=expansion)
        dropout = _dropout(dropout)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}")
        with _seeded(seed):
            self.embed: nn.Module
            if buckets is None:
                self.embed = nn.Linear(features, dim)
            else:
                self.embed = nn.Embedding(_sizes(buckets=buckets)[0], dim)
            self.positions = nn.Parameter(0.02 * torch.randn(1, length, dim))
            self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, expansion) for _ in range(layers)))
            self.norm = nn.LayerNorm(dim)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(dim, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, outputs]` of token numbers `[N, length]` or values."""
        if isinstance(self.embed, nn.Embedding) or inputs.dim() == 3 or inputs.dtype == torch.int64:
            tokens = self.embed(inputs)
        else:
            tokens = self.embed(inputs.unsqueeze(-1))
        found: Tensor = self.head(self.dropout(self.norm(self.blocks(tokens + self.positions)).mean(1)))
        return found
