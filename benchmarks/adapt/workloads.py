"""Frozen models and tasks on which adaptation is timed: random weights and random inputs, which change no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.adapt import Backbone, freeze
from metafast.data import TaskBatch

VOCABULARY = 30_522
FIRST = 1000  # the tokens before it mark beginnings, ends and padding
QUERY_VALUE = ("*.query", "*.value")


def bert(layers: int = 12, width: int = 768) -> nn.Module:
    """BERT's architecture with random weights, in evaluation mode; BERT-base unless told otherwise."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=max(1, width // 64),
        vocab_size=VOCABULARY,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def resnet50() -> nn.Module:
    """ResNet-50 of transformers with random weights."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    return ResNetModel(ResNetConfig()).eval()


def conv4() -> nn.Module:
    """Conv4 with 64 channels, as for Omniglot."""
    from metafast.models import Conv4

    return Conv4(1, 20, 28, channels=64, track_running_stats=True, seed=0).eval()


def lora(layers: tuple[int, ...] | None = None, rank: int = 4) -> dict[str, str]:
    """LoRA on the query and value of BERT's layers; None: of all."""
    if layers is None:
        return dict.fromkeys(QUERY_VALUE, f"lora:r={rank}")
    return {f"encoder.layer.{layer}.{pattern}": f"lora:r={rank}" for layer in layers for pattern in QUERY_VALUE}


def texts(tasks: int, ways: int, shots: int, lengths: Tensor | int) -> TaskBatch:
    """Tasks of random tokens; as many query as support examples.

    Args:
        tasks, ways, shots: their sizes.
        lengths: of each text, `[tasks, 2 * ways * shots]` (the rest is padding), or of all.
    """
    generator = torch.Generator().manual_seed(1)
    count = ways * shots
    longest = lengths if isinstance(lengths, int) else int(lengths.max())
    x = torch.randint(FIRST, VOCABULARY, (tasks, 2 * count, longest), generator=generator)
    if not isinstance(lengths, int):
        x = torch.where(torch.arange(longest) < lengths[..., None], x, 0)
    return _tasks(x, ways, shots)


def pictures(tasks: int, ways: int, shots: int, shape: tuple[int, ...]) -> TaskBatch:
    """Tasks of random pictures; as many query as support examples."""
    generator = torch.Generator().manual_seed(1)
    return _tasks(torch.randn(tasks, 2 * ways * shots, *shape, generator=generator), ways, shots)


def few_rel_lengths(tasks: int, each: int) -> Tensor:
    """Lengths of FewRel's validation sentences in words, and the six tokens that mark entities and ends."""
    from metafast.data import load

    words = torch.tensor([len(tokens) for tokens in load("few_rel", "val_wiki")["tokens"][:]])
    chosen = torch.randperm(len(words), generator=torch.Generator().manual_seed(1))[: tasks * each]
    return (words[chosen] + 6).view(tasks, each)


@dataclass(frozen=True)
class Workload:
    """A frozen model, where it adapts, and tasks.

    Args:
        title: for tables.
        model: makes the model.
        adapt: where, as `MetaFineTuner` takes it.
        batch: makes the tasks.
        steps: of adaptation.
        lr: of plain gradient descent.
    """

    title: str
    model: Callable[[], nn.Module]
    adapt: Mapping[str, str] | str
    batch: Callable[[], TaskBatch]
    steps: int = 5
    lr: float = 0.01

    def base(self) -> Backbone:
        """The frozen model."""
        return freeze(self.model(), padding=0)


def _tasks(x: Tensor, ways: int, shots: int) -> TaskBatch:
    y = torch.arange(ways).repeat_interleave(shots).expand(len(x), -1).contiguous()
    count: Any = ways * shots
    return TaskBatch(x[:, :count].contiguous(), y, x[:, count:].contiguous(), y)
