"""What a backbone takes: found from its configuration or its first layer, and checked before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.models import SequenceTransformer
from metafast.models._encoders import _positions

SIDE = 32  # of a blank picture


@dataclass(frozen=True)
class InputKind:
    """Token numbers `[N, L]` where there is a vocabulary, else floating point numbers.

    Args:
        vocabulary: how many tokens there are.
        length: the most tokens of a text.
        padding: the token that fills up texts.
        channels: of pictures (or other input of convolutions).
        dimensions: of pictures, the batch's included.
        features: numbers per example, of models that begin with an `nn.Linear`.
    """

    vocabulary: int | None = None
    length: int | None = None
    padding: int | None = None
    channels: int | None = None
    dimensions: int = 4
    features: int | None = None

    def check(self, x: Any) -> None:
        """Says what is wrong with `x` before a layer does."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if self.vocabulary is not None:
            self._check_tokens(x, self.vocabulary)
            return
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, as the base takes, got {x.dtype}; x.float() makes it so")
        if self.channels is not None and (x.dim() != self.dimensions or x.shape[1] != self.channels):
            shape = ["N", self.channels, *["D", "H", "W"][5 - self.dimensions :]]
            raise ValueError(f"x must be [{', '.join(map(str, shape))}], as the base takes, got {list(x.shape)}")

    def blank(self) -> Tensor | None:
        """Two examples of nothing; None where their shape is not known."""
        if self.vocabulary is not None:
            return torch.zeros(2, self.length or 4, dtype=torch.int64)
        if self.channels is not None:
            return torch.zeros(2, self.channels, *[SIDE] * (self.dimensions - 2))
        return None if self.features is None else torch.zeros(2, self.features)

    def _check_tokens(self, x: Tensor, vocabulary: int) -> None:
        if x.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"x must be token numbers of int64, as the base takes, got {x.dtype}")
        if x.dim() != 2:
            raise ValueError(f"x must be token numbers [N, L], got shape {list(x.shape)}")
        if self.length is not None and x.shape[1] > self.length:
            raise ValueError(
                f"x has {x.shape[1]} tokens per text, and the base has positions for {self.length}: cut the texts, "
                f"with length={self.length} where they are made of tokens"
            )
        # on a device the look would wait for it, and there the embedding's own check speaks up
        if x.device.type == "cpu" and x.numel() and (int(x.min()) < 0 or int(x.max()) >= vocabulary):
            raise ValueError(
                f"x must be token numbers from 0 to {vocabulary - 1}, got {int(x.min())} to {int(x.max())}; "
                "encode the texts with the tokenizer of the base"
            )


def inputs_of(model: nn.Module, padding: int | None) -> InputKind:
    """What a module takes, by its first layer with parameters."""
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is None or next(module.children(), None) is not None:
            continue
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            known = module.padding_idx if padding is None else padding
            length = (
                model.positions.shape[1] if isinstance(model, SequenceTransformer) else getattr(model, "length", None)
            )
            return InputKind(vocabulary=module.num_embeddings, length=length, padding=known)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return InputKind(channels=module.in_channels, dimensions=module.weight.dim())  # as many as its inputs
        if isinstance(module, nn.Linear):
            return InputKind(features=module.in_features)
        break
    return InputKind()


def most_tokens(config: Any) -> int | None:
    """Tokens that a model of transformers has positions for."""
    return _positions(config, 0) or None
