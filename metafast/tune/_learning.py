"""How hypergradients move hyperparameters: normalized, clipped, by an optimizer of their own, inside bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metafast._checks import positive
from metafast.tune._knobs import Knob
from metafast.tune._record import Tuned, listed

MEMORY = 0.9  # of the running mean square


class HyperLearning:
    """The hyper-optimizer of a tuner, and the record of what it did."""

    def __init__(
        self,
        knobs: Sequence[Knob],
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        hyper_lr: float,
        normalize: bool,
        clip: float | None,
    ) -> None:
        hyper_lr = positive("hyper_lr", hyper_lr)
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize must be True or False, got {normalize!r}")
        self.knobs = list(knobs)
        self.normalize = normalize
        self.clip = None if clip is None else positive("clip", clip)
        groups = [{"params": [knob.raw], "lr": knob.spec.rate or hyper_lr} for knob in knobs]
        self.optimizer = torch.optim.Adam(groups) if make_optimizer is None else make_optimizer(groups)
        if not (hasattr(self.optimizer, "step") and hasattr(self.optimizer, "state_dict")):
            raise TypeError(
                f"hyper_optimizer must return an optimizer, got {type(self.optimizer).__name__}; "
                "for example lambda groups: torch.optim.SGD(groups, momentum=0.9)"
            )
        self._squares = [0.0] * len(self.knobs)
        self._weights = [0.0] * len(self.knobs)
        self._records = {
            knob.name: Tuned(knob.spec.per if knob.tensor is None else "element", history=[(0, listed(knob.written))])
            for knob in knobs
        }

    @torch.no_grad()
    def step(self, calls: int, found: dict[str, Tensor], groups: Sequence[dict[str, Any]]) -> set[str]:
        """Moves the hyperparameters; returns the names of those whose hypergradient was not finite."""
        skipped: set[str] = set()
        before = [knob.raw.clone() for knob in self.knobs]
        for index, knob in enumerate(self.knobs):
            grad = found[knob.name].detach().to(knob.raw)
            self._records[knob.name].hypergradients.append((calls, listed(grad)))
            if bool(grad.isfinite().all()):
                knob.raw.grad = self._shaped(index, grad)
            else:
                knob.raw.grad = None
                skipped.add(knob.name)
        self.optimizer.step()
        for knob, old in zip(self.knobs, before, strict=True):
            record = self._records[knob.name]
            if not bool(knob.raw.isfinite().all()):
                knob.raw.copy_(old)
                skipped.add(knob.name)
            knob.raw.grad = None
            record.skipped += knob.name in skipped
            if knob.name not in skipped:
                knob.clamp(old)
                knob.write(groups)
            record.history.append((calls, listed(knob.written)))
        return skipped

    @torch.no_grad()
    def scale(self, knob: Knob, factor: float, calls: int, groups: Sequence[dict[str, Any]]) -> None:
        """Multiplies the values of a hyperparameter, inside its bounds."""
        knob.raw.copy_(knob.space.raw(knob.value() * factor))
        knob.clamp(knob.raw.clone())
        knob.write(groups)
        self._records[knob.name].history.append((calls, listed(knob.written)))

    def state(self) -> dict[str, Tuned]:
        """The records, with the present values."""
        for knob in self.knobs:
            values = knob.written.double().flatten().tolist()
            self._records[knob.name].values = dict(zip(knob.labels, values, strict=True))
        return dict(self._records)

    def state_dict(self) -> dict[str, Any]:
        """Values, records and the hyper-optimizer."""
        return {
            "knobs": {
                knob.name: {
                    "raw": knob.raw.clone(),
                    "written": knob.written.clone(),
                    "record": self._records[knob.name].state_dict(),
                }
                for knob in self.knobs
            },
            "squares": list(self._squares),
            "weights": list(self._weights),
            "optimizer": self.optimizer.state_dict(),
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raises for a state of other hyperparameters."""
        mine = {knob.name: tuple(knob.raw.shape) for knob in self.knobs}
        came = {name: tuple(kept["raw"].shape) for name, kept in state["knobs"].items()}
        if mine != came:
            raise ValueError(
                f"the state of a tuner does not fit: it tunes {came}, this one {mine} (names and shapes); "
                "make the tuner with the arguments of the run that it comes from"
            )

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], groups: Sequence[dict[str, Any]]) -> None:
        """Takes back what `state_dict` returned."""
        for knob in self.knobs:
            kept = state["knobs"][knob.name]
            knob.raw.copy_(kept["raw"])
            knob.write(groups, kept["written"])
            record, came = self._records[knob.name], kept["record"]
            record.history = [(calls, list(values)) for calls, values in came["history"]]
            record.hypergradients = [(calls, list(values)) for calls, values in came["hypergradients"]]
            record.skipped = came["skipped"]
        self._squares, self._weights = list(state["squares"]), list(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _shaped(self, index: int, grad: Tensor) -> Tensor:
        """Divided by the running root mean square, with this one in it, and clipped."""
        size = float(grad.double().square().mean())
        if self.normalize:
            self._squares[index] = MEMORY * self._squares[index] + (1 - MEMORY) * size
            self._weights[index] = MEMORY * self._weights[index] + (1 - MEMORY)
            scale = (self._squares[index] / self._weights[index]) ** 0.5
            if scale > 0:
                grad, size = grad / scale, size / scale**2
        if self.clip is not None and size > self.clip**2:
            grad = grad * (self.clip / size**0.5)
        return grad
