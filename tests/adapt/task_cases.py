"""Small frozen models and task models with numbers that are not those of the start."""

import torch
from torch import nn

from metafast.adapt import TaskModel, freeze
from metafast.adapt._choice import sites as sites_of


def bert_config(**changes):
    from transformers import BertConfig

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    return BertConfig(**sizes, max_position_embeddings=32, **changes)


def resnet_config(**changes):
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **changes)


def text(n=6, length=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(5, 100, (n, length), generator=generator)
    x[1, 8:] = 0  # padding
    return x


def pictures(n=4, channels=3, size=32):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def task_model(model, adapt, classes=5, **options):
    """A task model of `model` whose numbers are random."""
    base = freeze(model, **options)
    sites = sites_of(base.model, adapt)
    generator = torch.Generator().manual_seed(2)

    def moved(value):
        return value + 0.3 * torch.randn(value.shape, generator=generator)

    values = {site.name: {name: moved(value) for name, value in site.start().items()} for site in sites}
    weight, bias = torch.randn(classes, base.width, generator=generator), torch.randn(classes, generator=generator)
    return TaskModel(base, sites, values, weight, bias), base
