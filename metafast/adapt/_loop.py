"""Adaptation to a batch of tasks: K steps of each, all in one pass through the frozen model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metafast.adapt._losses import task_losses
from metafast.adapt._net import Memory, MetaNetwork
from metafast.adapt._sites import Site, Values
from metafast.adapt._tasks import Examples
from metafast.adapt._tree import Tree

if TYPE_CHECKING:
    from metafast.data import TaskBatch


@dataclass
class Course:
    """What adaptation to a batch of tasks came to.

    Args:
        losses: `[T]` of the query sets after the last step, differentiable.
        support_losses: `[T, K]`, before each step.
        query_losses: `[T, K + 1]`; NaN where not asked for.
        outputs: of the query examples, `[T, Q, C]` or `[T, Q, L, 2]`, at the steps asked for.
        values: of each site after the last step, and of the head.
    """

    losses: Tensor
    support_losses: Tensor
    query_losses: Tensor
    outputs: list[Tensor]
    values: list[Values]


@dataclass
class Loop:
    """What an adaptation needs.

    Args:
        tree: the frozen model with its sites.
        net: makes updates of gradients.
        starts: of the sites' numbers, by `key`.
        head: the start of a head of fixed classes; None: zeros for as many classes as there are.
        loss: see `task_losses`.
        order: of the learner's meta-gradient.
        like: a tensor of the numbers' type, on their device.
    """

    tree: Tree
    net: MetaNetwork
    starts: nn.ParameterDict
    head: nn.ParameterDict | None
    loss: str
    order: int
    like: Tensor

    def run(
        self, batch: TaskBatch, steps: int, order: int, classes: int, *, every: bool = False, query: bool = True
    ) -> Course:
        """Adaptation to a batch of tasks.

        Args:
            batch: of T tasks.
            steps: K.
            order: of the gradients that the losses have: 2, 1, or 0 for none.
            classes: of the heads.
            every: evaluate on the query sets at the start and after each step; else after the last alone.
            query: whether to evaluate on them at all.
        """
        tasks, like = len(batch), self.like
        support, asked = (Examples.of(batch, part) for part in ("support", "query"))
        memory = Memory()
        query_losses, outputs = [], []
        with torch.set_grad_enabled(order > 0):
            values = self._starts(tasks, classes, like)
            if self.net.initial is not None:
                values = self._read_off(values, support, classes)
            for step in range(steps + 1):
                if query and (every or step == steps):
                    found = self._outputs(asked, values)
                    losses = task_losses(self.loss, found, asked.y, asked.mask, batch.classes)
                    query_losses.append(losses)
                    outputs.append(found)
                else:
                    query_losses.append(torch.full((tasks,), math.nan, device=like.device, dtype=like.dtype))
                if step < steps:
                    grads = self._gradients(support, values, batch.classes, order, step, memory)
                    values = self._moved(values, grads, step, memory)
        return Course(
            query_losses[-1],
            torch.stack(memory.losses, 1),
            torch.stack([losses.detach() for losses in query_losses], 1),
            outputs,
            values,
        )

    def _starts(self, tasks: int, classes: int, like: Tensor) -> list[Values]:
        """The numbers of each site and of the head before adaptation, `[T, *shape]`."""
        found = [
            {name: self.starts[key(site, name)].expand(tasks, *shape) for name, shape in site.shapes.items()}
            for site in self.tree.sites
        ]
        if self.head is not None:
            found.append({name: value.expand(tasks, *value.shape) for name, value in self.head.items()})
        else:
            width = self.tree.backbone.width
            found.append({"weight": like.new_zeros(tasks, classes, width), "bias": like.new_zeros(tasks, classes)})
        return found

    def _read_off(self, values: list[Values], support: Examples, classes: int) -> list[Values]:
        """Starts read off the support set."""
        assert self.net.initial is not None
        common = [{name: self.starts[key(site, name)] for name in site.shapes} for site in self.tree.sites]
        with torch.no_grad():  # the features are what they are; what is made of them is learned
            features = self._features(support, values[:-1])
        moved = self.net.initial.sites(features, support.mask, self.tree.sites, common)
        if any(site.modulations for site in self.tree.sites):
            with self._second_order() if torch.is_grad_enabled() and self.order == 2 else nullcontext():
                features = self._features(support, moved)
        if self.order == 1:
            features = features.detach()
        head = self.net.initial.head(features, support.y, support.mask, classes)
        if self.head is not None:
            head = {name: value + self.head[name] for name, value in head.items()}
        return [*moved, head]

    def _features(self, examples: Examples, values: list[Values]) -> Tensor:
        """`[T, N, D]`, or `[T, N, L, D]`."""
        found, _ = self.tree.features(examples.flat, values, kept=examples.kept)
        return found.view(*examples.y.shape, *found.shape[1:])

    def _outputs(self, examples: Examples, values: list[Values]) -> Tensor:
        return _head(self._features(examples, values[:-1]), values[-1])

    def _gradients(
        self, support: Examples, values: list[Values], classes: Tensor | None, order: int, step: int, memory: Memory
    ) -> list[Values]:
        """The gradients of the support losses, with their factors edited."""
        through = order == 2
        # a head of zeros lets no gradient into the model: there is nothing to go back for
        blank = step == 0 and self.head is None and self.net.initial is None
        inner = values if through else [{n: v.detach() for n, v in own.items()} for own in values]
        with torch.enable_grad(), self._second_order() if through else nullcontext():
            flat, tapes = self.tree.features(support.flat, inner[:-1], tape=not blank, kept=support.kept)
            features = flat.view(*support.y.shape, *flat.shape[1:])
            outputs = _head(features, inner[-1])
            outputs = outputs if outputs.requires_grad else outputs.requires_grad_()
            losses = task_losses(self.loss, outputs, support.y, support.mask, classes)
            taps = [(number, tap) for number, tape in enumerate(tapes) for tap in tape]
            targets = [*(tap.out for _, tap in taps), outputs]
            deltas = torch.autograd.grad(losses.sum(), targets, create_graph=through, allow_unused=True)
        memory.note(losses.detach(), step / self.net.steps)
        grads: list[Values] = [{} for _ in values]
        for (number, tap), delta in zip(taps, deltas[:-1], strict=True):
            if delta is None:  # nothing of this call reaches the loss
                continue
            tap = tap if through else tap._replace(left=tap.left.detach())
            site = self.tree.sites[number]
            for name, grad in self.net.gradient(number, site, tap, delta, inner[number], memory.signals).items():
                grads[number][name] = grads[number][name] + grad if name in grads[number] else grad
        delta = deltas[-1].flatten(1, -2)  # [T, N, C]
        rows = (features if through else features.detach()).flatten(1, -2)
        grads[-1] = {"weight": torch.bmm(delta.transpose(1, 2), rows), "bias": delta.sum(1)}
        for own, found in zip(values, grads, strict=True):
            for name, value in own.items():
                if name not in found:
                    found[name] = torch.zeros_like(value)
        return grads

    def _moved(self, values: list[Values], grads: list[Values], step: int, memory: Memory) -> list[Values]:
        flat = [value for own in values for value in own.values()]
        slopes = [grads[i][name] for i, own in enumerate(values) for name in own]
        after = iter(self.net.step(flat, slopes, step, memory))
        return [{name: next(after) for name in own} for own in values]

    @staticmethod
    def _second_order() -> Any:
        """The other kernels of attention have no second derivative."""
        return sdpa_kernel(SDPBackend.MATH)


def key(site: Site, name: str) -> str:
    """The name of a site's number among the starts."""
    return f"{site.name.replace('.', '/')}:{name}"


def _head(features: Tensor, values: Values) -> Tensor:
    """`[T, N, C]` of `[T, N, D]`, or `[T, N, L, C]` of `[T, N, L, D]`."""
    rows = features.flatten(1, -2)
    found = torch.baddbmm(values["bias"][:, None], rows, values["weight"].transpose(1, 2))
    return found.view(*features.shape[:-1], -1)
