"""Three ways to the gradients of several models on one batch: a native program, a stacked module, or in turn."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metafast.hpo._stack import NotStackableError, stack
from metafast.innerloop import InnerLoop
from metafast.models._small import _seeded

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs [N, ...], targets [N, ...]) to losses [N]
EVAL_ROWS = 2048  # examples of all models in one call of an evaluation


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared errors of each example, `[N]`."""
    return (outputs - targets).square().flatten(1).mean(1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example, `[N]`."""
    return F.cross_entropy(outputs, targets, reduction="none")


class Engine(Protocol):
    """K models in training."""

    name: str
    params: list[list[nn.Parameter]]  # of each model; `gradient` fills their grads

    def gradient(self, x: Tensor, y: Tensor, alive: Sequence[int], step: int) -> Tensor:
        """Losses `[len(alive)]` of these models on one batch, their gradients in place."""

    def outputs(self, x: Tensor, alive: Sequence[int]) -> Tensor:
        """`[len(alive), N, ...]`, in evaluation mode."""


class InTurn:
    """One model after another, by autograd."""

    name = "loop"

    def __init__(self, models: Sequence[nn.Module], loss: Loss, seed: int) -> None:
        self.models, self.loss, self.seed = list(models), loss, seed
        self.params = [list(model.parameters()) for model in models]

    def gradient(self, x: Tensor, y: Tensor, alive: Sequence[int], step: int) -> Tensor:
        """Losses, with gradients in place."""
        losses = []
        for index in alive:
            model = self.models[index].train()
            for param in self.params[index]:
                param.grad = None
            with _seeded(_draws(self.seed, step, index)):
                loss = self.loss(model(x), y).mean()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def outputs(self, x: Tensor, alive: Sequence[int]) -> Tensor:
        """Outputs in evaluation mode."""
        return torch.stack([torch.cat([self.models[i].eval()(part) for part in x.split(EVAL_ROWS)]) for i in alive])


class Side:
    """All models as one stacked module, by autograd."""

    name = "stacked"

    def __init__(self, models: Sequence[nn.Module], loss: Loss, seed: int) -> None:
        self.model, self.loss, self.seed = stack(models), loss, seed
        self.copies = len(models)
        self.params: list[list[nn.Parameter]] = [[] for _ in models]
        for weight in self.model.weights:
            weight.grad = torch.zeros_like(weight)
            for own, piece, grad in zip(self.params, weight.detach(), weight.grad, strict=True):
                param = nn.Parameter(piece)
                param.grad = grad
                own.append(param)

    def gradient(self, x: Tensor, y: Tensor, alive: Sequence[int], step: int) -> Tensor:
        """Losses, with gradients in place; the models that are not alive are computed all the same."""
        self.model.train()
        for weight in self.model.weights:
            assert weight.grad is not None
            weight.grad.zero_()
        with _seeded(_draws(self.seed, step, 0)):
            out = self.model(_repeated(x, self.copies))
        losses = self.loss(out, _repeated(y, self.copies)).view(self.copies, -1).mean(1)
        losses.sum().backward()
        return losses.detach()[list(alive)]

    @torch.no_grad()
    def outputs(self, x: Tensor, alive: Sequence[int]) -> Tensor:
        """Outputs in evaluation mode."""
        parts = x.split(max(1, EVAL_ROWS // self.copies))
        return torch.cat([self.each(part.expand(self.copies, *part.shape)) for part in parts], 1)[list(alive)]

    @torch.no_grad()
    def each(self, batches: Tensor) -> Tensor:
        """Outputs of batches `[K, B, ...]`, one for each model."""
        out: Tensor = self.model.eval()(batches.flatten(0, 1))
        return out.unflatten(0, (self.copies, -1))


class Compiled:
    """The native engine of the inner loops; models that differ in dropout are programs of their own."""

    name = "compiled"

    def __init__(self, models: Sequence[nn.Module], kind: str, seed: int) -> None:
        self.seed = seed
        self.model = copy.deepcopy(models[0]).eval()
        alike: defaultdict[tuple[float, ...], list[int]] = defaultdict(list)
        for index, model in enumerate(models):
            alike[tuple(m.p for m in model.modules() if isinstance(m, nn.Dropout))].append(index)
        order = [index for rows in alike.values() for index in rows]  # a program's models lie side by side
        self.places = [order.index(index) for index in range(len(models))]
        self.groups: list[tuple[InnerLoop, range]] = []
        for rows in alike.values():
            begin = self.places[rows[0]]
            loop = InnerLoop(copy.deepcopy(models[rows[0]]).train(), loss=kind, engine="compiled")
            self.groups.append((loop, range(begin, begin + len(rows))))
        first = self.groups[0][0]
        shapes = first.shapes.values()
        sizes = [math.prod(shape) for shape in shapes]
        self.flat = torch.stack([first.flatten(dict(models[i].named_parameters())).detach() for i in order])
        self.grads = torch.zeros_like(self.flat)
        self.params: list[list[nn.Parameter]] = [[] for _ in models]
        for index, row, grad in zip(order, self.flat, self.grads, strict=True):
            own = self.params[index]
            for piece, part, shape in zip(row.split(sizes), grad.split(sizes), shapes, strict=True):
                param = nn.Parameter(piece.view(shape))
                param.grad = part.view(shape)
                own.append(param)

    @torch.no_grad()
    def gradient(self, x: Tensor, y: Tensor, alive: Sequence[int], step: int) -> Tensor:
        """Losses, with gradients in place."""
        found = torch.zeros(len(self.flat))
        places = [self.places[index] for index in alive]
        living = set(places)
        inputs, targets = _each(x, len(self.flat)), _each(y, len(self.flat))
        for loop, rows in self.groups:
            for run in _runs([row for row in rows if row in living]):
                losses, _, grads = loop.gradient(
                    self.flat[run], inputs[run], targets[run], seed=self.seed, step=step, first_task=run.start
                )
                self.grads[run] = grads
                found[run] = losses
        return found[places]

    @torch.no_grad()
    def outputs(self, x: Tensor, alive: Sequence[int]) -> Tensor:
        """Outputs in evaluation mode."""
        return torch.stack([torch.cat([self._output(row, part) for part in x.split(EVAL_ROWS)]) for row in alive])

    @torch.no_grad()
    def each(self, batches: Tensor) -> Tensor:
        """Outputs of batches `[K, B, ...]`, one for each model."""
        return torch.stack([self._output(row, batch) for row, batch in enumerate(batches)])

    def _output(self, row: int, x: Tensor) -> Tensor:
        weights = self.groups[0][0].unflatten(self.flat[self.places[row]])
        out: Tensor = functional_call(self.model, weights, (x,))
        return out


def _runs(numbers: Sequence[int]) -> Iterator[slice]:
    """Slices that hold ascending numbers."""
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield slice(numbers[begin], numbers[at - 1] + 1)
            begin = at


def _each(x: Tensor, copies: int) -> Tensor:
    return x.unsqueeze(0).expand(copies, *x.shape).contiguous()


def _repeated(x: Tensor, copies: int) -> Tensor:
    return x.unsqueeze(0).expand(copies, *x.shape).flatten(0, 1)


def _draws(seed: int, step: int, index: int) -> int:
    """Seed of a step's dropout, which depends on its number alone."""
    return (seed * 1_000_003 + step) * 1_009 + index


def make_engine(
    models: Sequence[nn.Module], loss: Loss, x: Tensor, y: Tensor, seed: int, engine: str
) -> tuple[Engine, str]:
    """The engine that is asked for, or the fastest that takes these models, and why not a faster one.

    Args:
        models: of the same architecture.
        loss: per example.
        x: a few examples.
        y: their targets.
        seed: of dropout.
        engine: "auto", "compiled", "stacked" or "loop".
    """
    reasons = []
    kinds = {cross_entropy: "cross_entropy", mse: "mse"}
    if engine in ("auto", "compiled"):
        try:
            if loss not in kinds:
                raise ValueError("its loss has no compiled form")
            made = Compiled(models, kinds[loss], seed)
            made.gradient(x, y, range(len(models)), 0)
            _compare(made.each, models, x)
            return made, ""
        except (ValueError, TypeError, NotImplementedError) as error:
            if engine == "compiled":
                raise ValueError(f'engine="compiled" does not take these models: {error}') from error
            reasons.append(f"not compiled: {error}")
    if engine in ("auto", "stacked"):
        try:
            side = Side(models, loss, seed)
            _compare(side.each, models, x)
            return side, "; ".join(reasons)
        except (NotStackableError, RuntimeError) as error:
            if engine == "stacked":
                raise ValueError(f'engine="stacked" does not take these models: {error}') from error
            reasons.append(f"not stacked: {error}")
    return InTurn(models, loss, seed), "; ".join(reasons)


@torch.no_grad()
def _compare(each: Callable[[Tensor], Tensor], models: Sequence[nn.Module], x: Tensor) -> None:
    """One program for all may be wrong where a model's code differs or mixes examples: looked at before it is used."""
    places = torch.arange(len(x))
    batches = torch.stack([x[(places * (k + 1) + k) % len(x)] for k in range(len(models))])  # no two are alike
    got = each(batches)
    for index, model in enumerate(models):
        want = model.eval()(batches[index])
        if got[index].shape != want.shape or not torch.allclose(got[index], want, rtol=1e-3, atol=1e-4):
            raise NotStackableError("together they do not compute what each model computes")
