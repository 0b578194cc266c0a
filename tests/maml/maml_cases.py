"""One case per algorithm: how it is built, and its meta-gradient from `plain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.data import TaskBatch
from metafast.maml import ALGORITHMS, MetaLearner
from tests.maml import plain

WAYS, SHOTS, QUERIES, TASKS, STEPS = 3, 2, 4, 4, 3


class Net(nn.Module):
    """A convolution, a batch norm, pooling and two linear layers: small, but of all the kinds that matter."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 5),
            nn.Tanh(),
        )
        self.classifier = nn.Linear(5, WAYS)
        self.to(dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def make_batch(dtype: torch.dtype = torch.float64, tasks: int = TASKS, seed: int = 0) -> TaskBatch:
    """Classes are noisy patterns, different in every task, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(tasks, WAYS, 1, 6, 6, generator=generator, dtype=torch.float64)
    parts = []
    for count in (SHOTS, QUERIES):
        y = torch.arange(WAYS).repeat(count).expand(tasks, -1).contiguous()
        noise = torch.randn(tasks, WAYS * count, 1, 6, 6, generator=generator, dtype=torch.float64)
        parts += [(patterns.repeat(1, count, 1, 1, 1) + 0.5 * noise).to(dtype), y]
    return TaskBatch(*parts)


@dataclass(frozen=True)
class Case:
    """`options` of the algorithm's class, and its meta-gradient by plain autograd."""

    algorithm: str
    expected: Callable[[MetaLearner, TaskBatch], dict[str, Tensor]]
    options: dict[str, Any]

    def make(self, dtype: torch.dtype = torch.float64, **more: Any) -> MetaLearner:
        torch.manual_seed(1)
        maml = ALGORITHMS[self.algorithm](Net(dtype), **{**self.options, **more})
        if getattr(maml, "norm_weights", None) is not None:  # else they start as the model's own
            with torch.no_grad():
                maml.norm_weights += 0.3 * torch.randn(maml.norm_weights.shape, dtype=torch.float64)
        return maml


def differentiated(loss: Callable[[MetaLearner, TaskBatch], Tensor]) -> Callable[..., dict[str, Tensor]]:
    def gradient(maml: MetaLearner, batch: TaskBatch) -> dict[str, Tensor]:
        named = dict(maml.named_parameters())
        grads = torch.autograd.grad(loss(maml, batch), list(named.values()), allow_unused=True)
        return {n: torch.zeros_like(named[n]) if g is None else g for n, g in zip(named, grads, strict=True)}

    return gradient


def prefixed(gradient: Callable[[MetaLearner, TaskBatch], dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    return lambda maml, batch: {f"model.{name}": value for name, value in gradient(maml, batch).items()}


def _unrolled(rate: Callable[[MetaLearner], Any], **options: Any) -> Callable[..., dict[str, Tensor]]:
    return differentiated(lambda maml, batch: plain.unrolled(maml.model, batch, rate=rate(maml), **options))


def _constant(maml: MetaLearner) -> Any:
    return lambda step, name: 0.3


def _elements(maml: MetaLearner) -> Any:
    named = dict(maml.model.named_parameters())
    parts = maml.inner_lr[0].split([p.numel() for p in named.values()])
    rates = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
    return lambda step, name: rates[name]


def _per_step(maml: MetaLearner) -> Any:
    order = {name: index for index, (name, _) in enumerate(maml.model.named_parameters())}
    return lambda step, name: maml.inner_lr[step, order[name]]


def _with_norms(maml: MetaLearner, batch: TaskBatch) -> Tensor:
    """MAML++ whose batch norm has weights of its own for each step."""
    weight, bias = maml.norm_weights.split(4, 1)  # type: ignore[operator, union-attr]
    return plain.unrolled(
        maml.model, batch, steps=STEPS, rate=_per_step(maml), weights=[0, 1 / 3, 1 / 3, 1 / 3],
        given=lambda step: {"features.1.weight": weight[step], "features.1.bias": bias[step]},
    )  # fmt: skip


def _is_head(name: str) -> bool:
    return name.startswith("classifier.")


BASE: dict[str, Any] = {"inner_lr": 0.3, "steps": STEPS}
CASES = {
    "maml": Case("maml", _unrolled(_constant, steps=STEPS), BASE),
    "maml with a learned rate": Case(
        "maml",
        _unrolled(lambda maml: lambda step, name: maml.inner_lr, steps=STEPS),
        {**BASE, "learn_lr": True},
    ),
    "maml with a rate per step": Case(
        "maml",
        _unrolled(lambda maml: lambda step, name: maml.inner_lr[step], steps=STEPS),
        {**BASE, "learn_lr": True, "inner_lr": torch.tensor([0.3, 0.2, 0.1])},
    ),
    "fomaml": Case("fomaml", _unrolled(_constant, steps=STEPS, order=1), BASE),
    "anil": Case("anil", _unrolled(_constant, steps=STEPS, adapted=_is_head), BASE),
    "boil": Case("boil", _unrolled(_constant, steps=STEPS, adapted=lambda name: not _is_head(name)), BASE),
    "reptile": Case(
        "reptile",
        prefixed(lambda maml, batch: plain.reptile(maml.model, batch, rate=_constant(maml), steps=STEPS)),
        BASE,
    ),
    "metasgd": Case("metasgd", _unrolled(_elements, steps=STEPS), BASE),
    "metasgd, first order": Case("metasgd", _unrolled(_elements, steps=STEPS, order=1), {**BASE, "order": 1}),
    "mamlpp": Case("mamlpp", _unrolled(_per_step, steps=STEPS, weights=[0, 1 / 3, 1 / 3, 1 / 3]), BASE),
    "mamlpp with norm weights per step": Case(
        "mamlpp", differentiated(_with_norms), {**BASE, "norm_weights": "per_step"}
    ),
    "imaml": Case(
        "imaml",
        prefixed(lambda maml, batch: plain.implicit(maml.model, batch, 20.0, rate=lambda s, n: 0.02, steps=8)),
        {"inner_lr": 0.02, "steps": 8, "strength": 20.0, "cg_steps": 300, "cg_tolerance": 1e-13},
    ),
    "alfa": Case(
        "alfa",
        differentiated(
            lambda maml, batch: plain.alfa(
                maml.model, batch, maml.generator, maml.inner_lr, maml.inner_decay, STEPS  # type: ignore[attr-defined]
            )
        ),
        BASE,
    ),
    "protomaml": Case(
        "protomaml",
        differentiated(
            lambda maml, batch: plain.protomaml(
                maml.model, maml.model.features, "classifier", batch, WAYS, rate=_constant(maml), steps=STEPS
            )
        ),
        {"inner_lr": 0.3, "steps": STEPS},
    ),
}  # fmt: skip
