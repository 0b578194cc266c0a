"""Small frozen models, tasks, and what plain autograd makes of one task at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metafast.adapt import Backbone, MetaFineTuner, freeze
from metafast.data import TaskBatch


def conv_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two blocks with batch norms that have seen data, a ReLU in place, and a head."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3),
    ).to(dtype)  # fmt: skip
    model.train()
    model(torch.randn(16, 2, 6, 6, dtype=dtype))
    return model.eval()


def bert(dtype: torch.dtype = torch.float64) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertModel(config).to(dtype).eval()


def pictures(tasks: int = 3, ways: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    support, query = 2 * ways, ways
    x = torch.randn(tasks, support + query, 2, 6, 6, generator=generator, dtype=dtype)
    y = (torch.arange(support + query) % ways).expand(tasks, -1).contiguous()
    return TaskBatch(x[:, :support], y[:, :support], x[:, support:], y[:, support:])


def sentences(tasks: int = 2, ways: int = 3, seed: int = 1) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 30, (tasks, 3 * ways, 7), generator=generator)
    x[:, ::2, 5:] = 0
    y = (torch.arange(3 * ways) % ways).expand(tasks, -1).contiguous()
    return TaskBatch(x[:, : 2 * ways], y[:, : 2 * ways], x[:, 2 * ways :], y[:, 2 * ways :])


# ---- one task by plain autograd: adapters as functions of a model's own parameters


def lora_weights(meta: MetaFineTuner, values: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters of base.model that the numbers of one task amount to, by what each kind means."""
    found: dict[str, Tensor] = {}
    for site in meta.sites:
        own, module = values[site.name], site.module
        weight, bias = module.weight, getattr(module, "bias", None)
        if site.kind == "lora":
            up = torch.einsum("or,r...->o...", own["B"], own["A"])
            found[f"{site.name}.weight"] = weight + site.scale * up
        elif site.kind == "film":
            scale = 1 + own["scale"]
            found[f"{site.name}.weight"] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            found[f"{site.name}.bias"] = bias * scale + own["shift"]
        elif site.kind == "bias":
            found[f"{site.name}.bias"] = bias + own["shift"]
        else:
            found |= {f"{site.name}.{name}": value for name, value in own.items()}
    return found


def plain_course(
    meta: MetaFineTuner, base: Backbone, batch: TaskBatch, task: int, starts: dict[str, dict[str, Tensor]], rate: float
) -> tuple[Tensor, list[Tensor]]:
    """The query loss of one task after plain gradient steps, and its support losses."""
    one = batch.task(task)
    classes = int(one.support_y.max()) + 1
    names = [(site.name, name) for site in meta.sites for name in site.shapes]
    like = next(base.parameters())
    flat = [starts[site][name] for site, name in names]
    flat += [like.new_zeros(classes, base.width, requires_grad=True), like.new_zeros(classes, requires_grad=True)]

    def loss(flat: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        values: dict[str, dict[str, Tensor]] = {}
        for (site, name), value in zip(names, flat, strict=False):
            values.setdefault(site, {})[name] = value
        weights = {f"model.{name}": value for name, value in lora_weights(meta, values).items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            features = functional_call(base, weights, (x,))
        return F.cross_entropy(F.linear(features, flat[-2], flat[-1]), y)

    losses = []
    for _ in range(meta.steps):
        value = loss(flat, one.support_x, one.support_y)
        losses.append(value.detach())
        grads = torch.autograd.grad(value, flat, create_graph=True, allow_unused=True)
        flat = [v if g is None else v - rate * g for v, g in zip(flat, grads, strict=True)]
    return loss(flat, one.query_x, one.query_y), losses


def jiggled(meta: MetaFineTuner, size: float = 0.1, only: str = "") -> MetaFineTuner:
    """Every meta-parameter moved a little, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in meta.named_parameters():
            if only in name:
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return meta


def starts_of(meta: MetaFineTuner) -> dict[str, dict[str, Tensor]]:
    return {
        site.name: {name: meta.starts[f"{site.name.replace('.', '/')}:{name}"] for name in site.shapes}
        for site in meta.sites
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], TaskBatch]]] = {
    "conv": (conv_net, pictures),
    "bert": (bert, sentences),
}


def tuner(model: str, adapt: Any, net: str | None = None, **options: Any) -> tuple[MetaFineTuner, TaskBatch]:
    build, tasks = MODELS[model]
    base = freeze(copy.deepcopy(build()))
    return MetaFineTuner(base, adapt, net, **{"steps": 2, "inner_lr": 0.3, "dropout": 0.0, **options}), tasks()
