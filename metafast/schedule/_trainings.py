"""Many trainings of one task side by side, each with weights, data, length and learning rates of its own.

The gradients of all come from one call of `metafast.innerloop`, the steps from one call of a fused optimizer, which
also returns the statistics that a controller looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast.innerloop import InnerLoop
from metafast.optim import SGD, Adam, AdamW
from metafast.schedule import _features, _policy
from metafast.schedule._tasks import Task

MAKERS: dict[str, Callable[..., Any]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": lambda params, lr: SGD(params, lr, momentum=0.9),
}
VAL_EXAMPLES = 128
LOG_BOUNDS = (math.log(1e-8), math.log(10.0))


@dataclass(frozen=True)
class Start:
    """A training before its first step.

    Args:
        seed: of its weights.
        rate: learning rate where it starts.
        steps: its length.
        open_end: whether the controller is not told the length.
    """

    seed: int
    rate: float
    steps: int
    open_end: bool = False


class Trainings:
    """`copies` trainings of every start, with the same weights and data at first: what differs is who steers them.

    Args:
        task: what is trained.
        starts: one for each place.
        copies: trainings of each place.
        per: "global" or "tensor": what has a rate of its own.
        interval: steps between two decisions.
        seed: of the order of the data.
    """

    def __init__(self, task: Task, starts: Sequence[Start], copies: int, per: str, interval: int, seed: int) -> None:
        self.task, self.copies, self.interval = task, copies, interval
        self.loop = InnerLoop(task.model(0), loss=task.loss)
        self.count = len(starts) * copies
        sizes = [math.prod(shape) for shape in self.loop.shapes.values()]
        self.flat = torch.zeros(self.count, sum(sizes))
        self.grads = torch.zeros_like(self.flat)
        self.params: list[nn.Parameter] = []
        for row, grad in zip(self.flat, self.grads, strict=True):
            for piece, part in zip(row.split(sizes), grad.split(sizes), strict=True):
                param = nn.Parameter(piece)
                param.grad = part
                self.params.append(param)
        self.opt = MAKERS[task.optimizer](self.params, lr=1.0)
        tensors = len(sizes)
        own = per == "tensor"
        segments = torch.arange(tensors) if own else torch.zeros(tensors, dtype=torch.int64)
        self.units = _features.Units(segments, torch.tensor(sizes).double(), tensors if own else 1)
        self.generator = torch.Generator().manual_seed(seed)
        self.log_rates = torch.zeros(self.count, self.units.count)
        self.done = torch.zeros(self.count)
        self.steps = torch.zeros(self.count)
        self.told = torch.zeros(self.count)  # the length as the controller knows it
        self.first_loss = torch.full((self.count,), math.nan)
        self.calls = 0
        self.seen = _features.first_state(self.units.count, (self.count,))
        self.memory = torch.zeros(0)
        for place, start in enumerate(starts):
            self.begin(place, start)

    def rows(self, place: int) -> slice:
        """The trainings of a place."""
        return slice(place * self.copies, (place + 1) * self.copies)

    @torch.no_grad()
    def begin(self, place: int, start: Start) -> None:
        """Starts the trainings of a place anew."""
        rows = self.rows(place)
        model = self.task.model(start.seed)
        self.flat[rows] = self.loop.flatten(dict(model.named_parameters()))
        tensors = len(self.units.segments)
        for param in self.params[rows.start * tensors : rows.stop * tensors]:
            for value in self.opt.state.get(param, {}).values():
                value.zero_()
        self.log_rates[rows] = math.log(start.rate)
        self.done[rows], self.steps[rows] = 0.0, float(start.steps)
        self.told[rows] = math.nan if start.open_end else float(start.steps)
        fresh = _features.first_state(self.units.count, (self.copies,))
        for name, value in fresh.items():
            self.seen[name][rows] = value
        if self.memory.numel():
            self.memory[:, rows] = 0.0
        self.first_loss[rows] = self._losses(self.task.val, VAL_EXAMPLES, rows)

    def finished(self, place: int) -> bool:
        """Whether the trainings of a place are at their end."""
        row = self.rows(place).start
        return bool(self.done[row] >= self.steps[row])

    def _draw(self, part: Any, size: int, places: int) -> tuple[Tensor, Tensor]:
        """A batch for every training; copies of a place get the same one."""
        index = torch.randint(len(part.labels), (places, size), generator=self.generator)
        x, y = part.inputs[index], part.labels[index]
        if self.copies > 1:
            x, y = x.repeat_interleave(self.copies, 0), y.repeat_interleave(self.copies, 0)
        return x, y

    def _losses(self, part: Any, size: int, rows: slice) -> Tensor:
        places = (rows.stop - rows.start) // self.copies
        losses: Tensor = self.loop.gradient(self.flat[rows], *self._draw(part, size, places))[0]
        return losses

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Loss of every training on some validation examples, `[N]`."""
        return self._losses(self.task.val, VAL_EXAMPLES, slice(0, self.count))

    @torch.no_grad()
    def run(self, shape: _policy.Shape, weights: Tensor, max_change: float, keep: Tensor | None = None) -> None:
        """One interval of every training, then a decision of its controller.

        Args:
            shape, max_change, keep: as for `decide`.
            weights: `[D]`, or `[N, D]`: a controller for each training.
        """
        rates = self.log_rates.exp()[:, self.units.segments]
        self.opt.scale_rates(rates.double().reshape(-1))
        places, losses = self.count // self.copies, []
        for _ in range(self.interval):
            x, y = self._draw(self.task.train, self.task.batch_size, places)
            loss, _, grads = self.loop.gradient(self.flat, x, y, step=self.calls)
            self.grads.copy_(grads)
            self.opt.step()
            self.calls += 1
            losses.append(loss)
        self.done += self.interval
        table = self.opt.tensor_stats().view(self.count, -1, 4)
        each = torch.stack(losses)
        features, self.seen = _features.observe(
            self.seen, self.units, table, rates, each.mean(0), each.std(0, correction=0), self.done / self.told
        )
        if not self.memory.numel():
            self.memory = _policy.first_memory(shape, self.units.count, (self.count,))
        change, self.memory = _policy.decide(shape, weights, features, self.memory, max_change, keep)
        self.seen["change"] = change / max_change
        self.log_rates = (self.log_rates + change).clamp(*LOG_BOUNDS)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "flat": self.flat,
            "states": {str(i): dict(self.opt.state.get(param, {})) for i, param in enumerate(self.params)},
            "generator": self.generator.get_state(),
            "tensors": {name: getattr(self, name) for name in _TENSORS},
            "seen": self.seen,
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        with torch.no_grad():
            self.flat.copy_(state["flat"])
        for i, param in enumerate(self.params):
            kept = state["states"].get(str(i), {})
            if kept:
                self.opt.state[param] = {name: value.clone() for name, value in kept.items()}
        self.generator.set_state(state["generator"])
        for name in _TENSORS:
            setattr(self, name, state["tensors"][name].clone())
        self.seen = {name: value.clone() for name, value in state["seen"].items()}
        self.calls = state["calls"]


_TENSORS = ("log_rates", "done", "steps", "told", "first_loss", "memory")


def score(losses: Tensor, first: Tensor) -> Tensor:
    """What meta-training lowers: the logarithm of the loss in first losses, bounded also where a training diverged."""
    share = torch.where(losses.isfinite(), losses / first, 3.0).clamp(max=3.0)
    return (0.03 + share).log()
