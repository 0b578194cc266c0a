"""The vision transformer, in any width and depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.models._small import _seeded, _sizes


class ViT(nn.Module):
    """A vision transformer: patches as tokens with learned positions, pre-norm blocks, the mean over tokens, one layer.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        image_size: height and width of the square images; `patch` must divide it.
        patch: height and width of a patch.
        dim: width of a token; `heads` must divide it. 192 with 12 layers and 3 heads is DeiT-Tiny.
        layers: blocks.
        heads: attention heads of each.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or sizes that do not divide.

    Example:
        >>> ViT(1, 10, 28, patch=7, dim=32, layers=2, heads=2, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; the mean in place of a class token:
        L. Beyer et al., Better plain ViT baselines for ImageNet-1k, arXiv 2205.01580.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        image_size: int,
        *,
        patch: int = 4,
        dim: int = 64,
        layers: int = 4,
        heads: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        in_channels, classes, image_size = _sizes(in_channels=in_channels, classes=classes, image_size=image_size)
        patch, dim, layers, heads = _sizes(patch=patch, dim=dim, layers=layers, heads=heads)
        if image_size % patch:
            raise ValueError(f"image_size must be a multiple of patch={patch}, got {image_size}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}")
        with _seeded(seed):
            self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
            self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2, dim))
            self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(layers)))
            self.norm = nn.LayerNorm(dim)
            self.classifier = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, in_channels, image_size, image_size]`."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # [N, patches, dim]
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


class TransformerBlock(nn.Module):
    """Attention between tokens, then two layers on each; both on normalized tokens and added to them."""

    def __init__(self, dim: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.layers_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[N, length, dim]` of the same."""
        parts = self.query_key_value(self.attention_norm(tokens)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [N, heads, length, dim / heads]
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(mixed)
        found: Tensor = tokens + self.layers(self.layers_norm(tokens))
        return found
