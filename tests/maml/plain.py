"""The algorithms again, in the plainest way: one task at a time, `functional_call` and `autograd.grad`, no metafast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Weights = dict[str, Tensor]


def sgd(
    model: nn.Module,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    steps: int,
    rate: Callable[[int, str], Any],
    order: int = 2,
    adapted: Callable[[str], bool] = lambda name: True,
    prox: float = 0.0,
    given: Callable[[int], Weights] = lambda step: {},
) -> list[Weights]:
    """The weights before the first step and after each one; `given` are those that a step sets and does not adapt."""
    path = [weights]
    for step in range(steps):
        now = path[-1]
        names = [name for name in now if adapted(name)]
        loss = F.cross_entropy(functional_call(model, now, (x,)), y)
        grads = torch.autograd.grad(loss, [now[name] for name in names], create_graph=order == 2)
        new = dict(now)
        for name, grad in zip(names, grads, strict=True):
            grad = grad if order == 2 else grad.detach()
            new[name] = now[name] - rate(step, name) * (grad + prox * (now[name] - weights[name]))
        path.append({**new, **given(step)})
    return path


def query_loss(model: nn.Module, weights: Weights, batch: Any, task: int) -> Tensor:
    return F.cross_entropy(functional_call(model, weights, (batch.query_x[task],)), batch.query_y[task])


def start(model: nn.Module) -> Weights:
    return dict(model.named_parameters())


def unrolled(model: nn.Module, batch: Any, weights: list[float] | None = None, **options: Any) -> Tensor:
    """The meta-loss: query losses after each step, weighted (by default the last alone), mean over tasks."""
    total = torch.zeros((), dtype=batch.query_x.dtype)
    for task in range(len(batch)):
        path = sgd(model, start(model), batch.support_x[task], batch.support_y[task], **options)
        chosen = weights or [0.0] * (len(path) - 1) + [1.0]
        for weight, now in zip(chosen, path, strict=True):
            if weight:
                total = total + weight * query_loss(model, now, batch, task)
    return total / len(batch)


def reptile(model: nn.Module, batch: Any, **options: Any) -> Weights:
    """The mean way back from the adapted weights, by parameter."""
    mean = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for task in range(len(batch)):
        adapted = sgd(model, start(model), batch.support_x[task], batch.support_y[task], order=1, **options)[-1]
        for name, p in model.named_parameters():
            mean[name] += (p - adapted[name]).detach() / len(batch)
    return mean


def implicit(model: nn.Module, batch: Any, strength: float, **options: Any) -> Weights:
    """`(I + H / strength)^-1 g` by a dense Hessian and a direct solver, mean over tasks."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]
    mean = torch.zeros(sum(sizes), dtype=torch.float64)

    def unflatten(flat: Tensor) -> Weights:
        parts = flat.split(sizes)
        return {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}

    for task in range(len(batch)):
        x, y = batch.support_x[task], batch.support_y[task]
        end = sgd(model, start(model), x, y, order=1, prox=strength, **options)[-1]
        flat = torch.cat([end[name].detach().flatten() for name in names]).requires_grad_()

        def support(flat: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(functional_call(model, unflatten(flat), (x,)), y)

        (grad,) = torch.autograd.grad(query_loss(model, unflatten(flat), batch, task), flat)
        hessian = torch.autograd.functional.hessian(support, flat)
        mean += torch.linalg.solve(torch.eye(len(flat), dtype=torch.float64) + hessian / strength, grad) / len(batch)
    return unflatten(mean)


def alfa(model: nn.Module, batch: Any, generator: nn.Module, rates: Tensor, decays: Tensor, steps: int) -> Tensor:
    total = torch.zeros((), dtype=batch.query_x.dtype)
    names = [name for name, _ in model.named_parameters()]
    for task in range(len(batch)):
        now = start(model)
        for step in range(steps):
            loss = F.cross_entropy(functional_call(model, now, (batch.support_x[task],)), batch.support_y[task])
            grads = dict(zip(names, torch.autograd.grad(loss, list(now.values()), create_graph=True), strict=True))
            means = [grads[n].detach().mean() for n in names] + [now[n].detach().mean() for n in names]
            made = generator(torch.stack(means))
            now = {
                n: (1 - made[len(names) + i] * decays[step, i]) * now[n] - made[i] * rates[step, i] * grads[n]
                for i, n in enumerate(names)
            }
        total = total + query_loss(model, now, batch, task)
    return total / len(batch)


def proto_start(model: nn.Module, features: nn.Module, head: str, x: Tensor, y: Tensor, classes: int) -> Weights:
    found = features(x)
    centres = torch.stack([found[y == c].mean(0) for c in range(classes)])
    # copies: the inner gradient to the body must not run through the prototypes, the meta-gradient must
    own = {name: p.clone() for name, p in start(model).items()}
    return {**own, f"{head}.weight": 2 * centres, f"{head}.bias": -(centres * centres).sum(1)}


def protomaml(model: nn.Module, features: nn.Module, head: str, batch: Any, classes: int, **options: Any) -> Tensor:
    total = torch.zeros((), dtype=batch.query_x.dtype)
    for task in range(len(batch)):
        x, y = batch.support_x[task], batch.support_y[task]
        first = proto_start(model, features, head, x, y, classes)
        total = total + query_loss(model, sgd(model, first, x, y, **options)[-1], batch, task)
    return total / len(batch)
