"""Truncated back-propagation: the meta-gradient of a window of a training, by reverse mode through its steps.

    theta_{t+1} = theta_t - lr_k u(g_t, m, v),   lr_{k+1} = lr_k exp(change_k),   change_k = LSTM(features_k)

The window's scores are differentiated by the learner's weights through rates and parameters; with order 2 also through
the gradients, by the Hessian-vector products of `metafast.innerloop`. Features count as given, as does everything
before the window: this is cheap and of low variance, but it does not see beyond its window (Wu et al. 2018), so it
lowers rates early. `PES` does not.

1. Wu, Ren, Liao & Grosse, Understanding short-horizon bias in stochastic meta-optimization, ICLR 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metafast.schedule import _features, _policy
from metafast.schedule._suite import Draw
from metafast.schedule._tasks import Task
from metafast.schedule._trainings import LOG_BOUNDS, VAL_EXAMPLES, Trainings, score


class Truncated:
    """Trainings of one task, and the meta-gradient of a window of each.

    Args:
        task: what is trained, with Adam, AdamW or SGD.
        count: how many trainings.
        per: "global" or "tensor".
        interval: steps between two decisions.
        seed: of everything.
        intervals: decisions in a window.
        draw: makes the start of a training.
        order: 2, or 1: gradients do not depend on the parameters.
    """

    def __init__(
        self, task: Task, count: int, per: str, interval: int, seed: int, intervals: int, draw: Draw, order: int = 2
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.draw, self.intervals, self.order, self.places = draw, intervals, order, count
        starts = [draw(self.generator) for _ in range(count)]
        self.trainings = Trainings(task, starts, 1, per, interval, seed + 1)
        self.trainings.steps *= torch.rand(count, generator=self.generator).clamp(min=0.2)
        self.kept = _States(self.trainings)

    def gradient(
        self, shape: _policy.Shape, weights: Tensor, max_change: float, dropout: float
    ) -> tuple[Tensor, float]:
        """(meta-gradient `[D]`, mean score) of one window, at `weights` `[D]`."""
        t, kept = self.trainings, self.kept
        meta = weights.detach().clone().requires_grad_()
        theta, log_rates = t.flat.clone(), t.log_rates.clone()
        if not t.memory.numel():
            t.memory = _policy.first_memory(shape, t.units.count, (t.count,))
        memory, total = t.memory, torch.zeros(())
        if self.order == 2:
            theta.requires_grad_()
        for _ in range(self.intervals):
            rates = log_rates.exp()[:, t.units.segments]  # [N, tensors]
            losses = []
            for _ in range(t.interval):
                x, y = t._draw(t.task.train, t.task.batch_size, t.count)
                with torch.set_grad_enabled(self.order == 2):
                    loss, _, grads = t.loop.gradient(theta, x, y, step=t.calls)
                t.calls += 1
                losses.append(loss.detach())
                before = (grads.detach(), kept.direction, theta.detach())
                theta = kept.step(theta, grads, rates)
            table = kept.table(*before)  # as a fused step has it: of the parameters before the last step
            t.done += t.interval
            each = torch.stack(losses)
            features, t.seen = _features.observe(
                t.seen, t.units, table, rates.detach(), each.mean(0), each.std(0, correction=0), t.done / t.told
            )
            keep = None
            if dropout:
                keep = (torch.rand(t.count, 1, shape.hidden, generator=self.generator) >= dropout) / (1 - dropout)
            change, memory = _policy.decide(shape, meta, features, memory, max_change, keep)
            t.seen["change"] = change.detach() / max_change
            log_rates = (log_rates + change).clamp(*LOG_BOUNDS)
            total = total + score(self._val(theta), t.first_loss).mean()
        (gradient,) = torch.autograd.grad(total / self.intervals, meta)
        with torch.no_grad():
            t.flat.copy_(theta.detach())
        kept.detach()
        t.log_rates, t.memory = log_rates.detach(), memory.detach()
        for place in range(self.places):
            if t.finished(place) or not bool(t.flat[place].isfinite().all()):
                t.begin(place, self.draw(self.generator))
                kept.clear(place)
        return gradient.nan_to_num(0.0, 0.0, 0.0), float(total.detach()) / self.intervals

    def _val(self, theta: Tensor) -> Tensor:
        """Losses on validation examples, differentiable by the parameters whatever the order."""
        t = self.trainings
        x, y = t._draw(t.task.val, VAL_EXAMPLES, t.count)
        with torch.no_grad():
            losses, _, grads = t.loop.gradient(theta.detach(), x, y)
        grads = grads * losses.isfinite()[:, None]
        return losses + ((theta - theta.detach()) * grads).sum(1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next window depends on."""
        return {
            "trainings": self.trainings.state_dict(),
            "generator": self.generator.get_state(),
            "kept": self.kept.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.trainings.load_state_dict(state["trainings"])
        self.generator.set_state(state["generator"])
        self.kept.load_state_dict(state["kept"])


class _States:
    """The optimizer's states of all trainings, in tensors that autograd goes through."""

    def __init__(self, trainings: Trainings) -> None:
        self.trainings, self.kind = trainings, trainings.task.optimizer
        zeros = torch.zeros_like(trainings.flat)
        self.m, self.v, self.direction = zeros, zeros.clone(), zeros.clone()
        self.count = torch.zeros(trainings.count, 1)
        sizes = trainings.units.numels.long()
        self.columns = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # the tensor of each element

    def step(self, theta: Tensor, grads: Tensor, rates: Tensor) -> Tensor:
        """The parameters after a step with rates `[N, tensors]`."""
        if self.kind == "sgd":
            self.m = 0.9 * self.m + grads
            u = self.m
        else:
            self.count = self.count + 1
            self.m = 0.9 * self.m + 0.1 * grads
            self.v = 0.999 * self.v + 0.001 * grads.square()
            # The root of an exact zero has no derivative.
            root = (self.v / (1 - 0.999**self.count)).clamp(min=1e-30).sqrt()
            u = self.m / (1 - 0.9**self.count) / (root + 1e-8)
        self.direction = u.detach()
        decay = 0.01 if self.kind == "adamw" else 0.0
        return theta - rates[:, self.columns] * (u + decay * theta)

    def table(self, grads: Tensor, direction: Tensor, theta: Tensor) -> Tensor:
        """The statistics of a fused step, `[N, tensors, 4]`."""
        rows = torch.stack([grads.square(), grads * direction, direction.square(), theta.square()], -1).double()
        sums = rows.new_zeros(len(rows), len(self.trainings.units.segments), 4)
        return sums.index_add_(1, self.columns, rows)

    def detach(self) -> None:
        """Ends the window."""
        self.m, self.v = self.m.detach(), self.v.detach()

    def clear(self, place: int) -> None:
        """A new training in this place."""
        for tensor in (self.m, self.v, self.direction, self.count):
            tensor[place] = 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in ("m", "v", "direction", "count")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes it back."""
        for name, value in state.items():
            setattr(self, name, value.clone())
