"""Everything that is timed: metafast's optimizers, PyTorch's and the peers, with the memory traffic of each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.adam_baydin import AdamBaydin
from benchmarks.peers.adam_hd import AdamHD
from metafast import optim
from metafast.tune import Forward, OnlineTuner

Step = Callable[[], Any]
Build = Callable[[Sequence[Tensor]], Step]

LR = 1e-4
MAX_NORM = 1.0


@dataclass(frozen=True)
class Pass:
    """One pass over memory: bytes of an element of each stream that is read and written, and of each only read."""

    writes: tuple[int, ...]
    reads: tuple[int, ...]

    @property
    def bytes_per_param(self) -> int:
        return 2 * sum(self.writes) + sum(self.reads)


Traffic = tuple[Pass, ...]
ADAM: Traffic = (Pass((4, 4, 4), (4,)),)  # p, m, v; g
EXACT: Traffic = (Pass((4, 4), (4,)), Pass((4,), (4, 4)))  # m, v; g, then p; m, v
ELEMENT: Traffic = (Pass((4, 4, 4, 4), (4,)),)  # p, m, v, rate; g
ELEMENT_BF16: Traffic = (Pass((4, 4, 4, 2), (4,)),)
BF16_STATES: Traffic = (Pass((4, 2, 2), (4,)),)
CLIPPED: Traffic = (Pass((), (4,)), *ADAM)  # the norm of g first
PRODIGY: Traffic = (Pass((4, 4, 4, 4), (4, 4)),)  # p, m, v, s; g, p_0
SGD: Traffic = (Pass((4, 4), (4,)),)  # p, momentum; g
SGD_EXACT: Traffic = (Pass((), (4, 4)), *SGD)
SGD_ELEMENT: Traffic = (Pass((4, 4, 4), (4,)),)


def tangents(traffic: Traffic, values: int) -> Traffic:
    """The traffic of a step that moves the tangents of all that it writes, for each of some values."""
    (one,) = traffic
    return (Pass(one.writes * (1 + values), one.reads),)


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: what the table says.
        family: rows are compared with the baseline of their family.
        traffic: bytes that the update has to move, the least for the maths that the row does.
        build: takes parameters with gradients, returns a function that performs one step.
        reference: builds what must give the same numbers; None where no second implementation exists, and then a
            step only has to move the parameters and keep them finite.
        tolerance: relative to the distance that the parameters have moved.
        needs: package to import.
        work_bytes: memory beyond parameters and gradients, per parameter.
        is_ours: a row of metafast.
        slow: many times slower than the baseline; timed fewer times.
    """

    name: str
    family: str
    traffic: Traffic
    build: Build
    reference: Build | None
    tolerance: float = 1e-4
    needs: str | None = None
    work_bytes: int = 8
    is_ours: bool = False
    slow: bool = False

    @property
    def bytes_per_param(self) -> int:
        return sum(p.bytes_per_param for p in self.traffic)

    @property
    def available(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None


def _torch(cls: Any, **options: Any) -> Build:
    return lambda params: cls(params, lr=LR, **options).step


def _clipped_torch(bites: bool = False, **options: Any) -> Build:
    def build(params: Sequence[Tensor]) -> Step:
        optimizer = torch.optim.AdamW(params, lr=LR, **options)
        # Clipping writes the gradients: where it does not bite, every round sees the same ones at the same cost.
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))
        limit = MAX_NORM if bites else 2 * norm

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, limit)
            optimizer.step()

        return step

    return build


def _metafast(cls: Any, **options: Any) -> Build:
    # Bounds keep thousands of steps with the same gradient from running away.
    if "hypergrad" in options:
        options = {"lr_bounds": (1e-8, 1e-2), **options}
    return lambda params: cls(params, lr=LR, **options).step


def _schedulefree(params: Sequence[Tensor], foreach: bool = True) -> Step:
    import schedulefree

    optimizer = schedulefree.AdamWScheduleFree(params, lr=LR, weight_decay=1e-2, foreach=foreach)
    optimizer.train()
    return optimizer.step


def _prodigy(params: Sequence[Tensor]) -> Step:
    import prodigyopt

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its options
        # Growth is off: with the same gradient for ever, its distance estimate would overflow.
        return prodigyopt.Prodigy(params, weight_decay=1e-2, growth_rate=1.0).step


def _torchopt(params: Sequence[Tensor]) -> Step:
    import torchopt

    return torchopt.AdamW(params, lr=LR, weight_decay=1e-2).step


TUNED = ("lr", "weight_decay", "beta1", "beta2")


def _tuned(values: int, cls: Any, fused: bool = True, **options: Any) -> Build:
    """A step under `OnlineTuner`, with the tangents of the first of `TUNED`; not fused: by torch's forward mode."""

    def build(params: Sequence[Tensor]) -> Step:
        optimizer = cls(params, lr=LR, weight_decay=1e-2, **options)
        model, never = torch.nn.ParameterList(params), 10**9
        tuner = OnlineTuner(model, optimizer, TUNED[:values], [()], Forward(hvp=False), never)

        def apart() -> None:
            tuner.before_step()
            optimizer.step()
            tuner.after_step()

        return tuner.update if fused else apart

    return build


HYPER_LR = 1e-7  # of the additive rule: enough to move the rate in the check


def _adam_hd(params: Sequence[Tensor], hyper_lr: float = HYPER_LR) -> Step:
    return AdamHD(params, lr=LR, hypergrad_lr=hyper_lr).step


def _adam_baydin(params: Sequence[Tensor], hyper_lr: float = HYPER_LR) -> Step:
    return AdamBaydin(params, lr=LR, hyper_lr=hyper_lr).step


_hd_reference = _metafast(
    optim.Adam, hypergrad="global", hyper_exact=True, hyper_rule="additive", hyper_lr=HYPER_LR, backend="reference"
)
_adamw_loop = _torch(torch.optim.AdamW, foreach=False, fused=False)
_sgd_loop = _torch(torch.optim.SGD, momentum=0.9, foreach=False, fused=False)
_sgd_decay_loop = _torch(torch.optim.SGD, momentum=0.9, weight_decay=1e-2, foreach=False, fused=False)

BASELINES = {"AdamW": "torch AdamW fused", "clipped": "torch clip_grad_norm_ + AdamW fused", "SGD": "torch SGD fused"}


def _ours(name: str, family: str, traffic: Traffic, cls: Any, extra: int = 0, **options: Any) -> Contender:
    """A row of metafast that is checked against the reference backend."""
    tolerance = 2e-2 if torch.bfloat16 in options.values() else 1e-4
    reference = _metafast(cls, **options, backend="reference")
    return Contender(
        f"metafast {name}", family, traffic, _metafast(cls, **options), reference, tolerance,
        work_bytes=8 + extra, is_ours=True,
    )  # fmt: skip


def contenders() -> list[Contender]:
    """All rows, baselines first."""
    adamw, sgd = partial(_ours, cls=optim.AdamW), partial(_ours, cls=optim.SGD, momentum=0.9)
    rows = [
        Contender(BASELINES["AdamW"], "AdamW", ADAM, _torch(torch.optim.AdamW, fused=True), _adamw_loop),
        Contender(
            "metafast AdamW", "AdamW", ADAM, _metafast(optim.AdamW), _adamw_loop, is_ours=True
        ),
        *(
            adamw(f"AdamW hypergrad={mode}", "AdamW", ADAM, hypergrad=mode)
            for mode in ("global", "group", "tensor")
        ),
        adamw("AdamW hypergrad=tensor, exact", "AdamW", EXACT, hypergrad="tensor", hyper_exact=True),
        adamw("AdamW hypergrad=element", "AdamW", ELEMENT, extra=4, hypergrad="element"),
        adamw("AdamW hypergrad=element, bf16 rates", "AdamW", ELEMENT_BF16, extra=2, hypergrad="element",
              rate_dtype=torch.bfloat16),
        adamw("AdamW hypergrad=tensor, bf16 states, stochastic rounding", "AdamW", BF16_STATES, hypergrad="tensor",
              state_dtype=torch.bfloat16, stochastic_rounding=True),
        *(
            Contender(f"metafast AdamW, {k} tangent{'s' * (k > 1)}", "AdamW", tangents(ADAM, k),
                      _tuned(k, torch.optim.AdamW), _adamw_loop, work_bytes=8 + 12 * k, is_ours=True)
            for k in (1, 2, 4)
        ),
        Contender("AdamW, 2 tangents by torch's forward mode", "AdamW", tangents(ADAM, 2),
                  _tuned(2, torch.optim.AdamW, fused=False), _adamw_loop, work_bytes=120, slow=True),
        Contender("torch AdamW foreach", "AdamW", ADAM, _torch(torch.optim.AdamW, foreach=True), _adamw_loop,
                  work_bytes=16),
        Contender("torch AdamW for-loop", "AdamW", ADAM, _adamw_loop, _torch(torch.optim.AdamW, fused=True)),
        Contender("torchopt AdamW", "AdamW", ADAM, _torchopt, _adamw_loop, needs="torchopt", work_bytes=24, slow=True),
        Contender("schedule-free AdamW", "AdamW", ADAM, _schedulefree, partial(_schedulefree, foreach=False),
                  needs="schedulefree", work_bytes=16, slow=True),
        Contender("Prodigy", "AdamW", PRODIGY, _prodigy, None, needs="prodigyopt", work_bytes=24, slow=True),
        Contender("AdamHD, plain PyTorch", "AdamW", EXACT, _adam_hd, _hd_reference, work_bytes=20, slow=True),
        Contender("AdamBaydin (gdtuo style)", "AdamW", EXACT, _adam_baydin, _hd_reference, work_bytes=48, slow=True),
        Contender(BASELINES["clipped"], "clipped", CLIPPED, _clipped_torch(fused=True),
                  _clipped_torch(foreach=False, fused=False)),
        Contender("metafast AdamW max_grad_norm", "clipped", CLIPPED, _metafast(optim.AdamW, max_grad_norm=MAX_NORM),
                  _clipped_torch(bites=True, foreach=False, fused=False), is_ours=True),
        Contender(BASELINES["SGD"], "SGD", SGD, _torch(torch.optim.SGD, momentum=0.9, fused=True), _sgd_loop,
                  work_bytes=4),
        Contender("torch SGD foreach", "SGD", SGD, _torch(torch.optim.SGD, momentum=0.9, foreach=True), _sgd_loop,
                  work_bytes=4),
        Contender("metafast SGD", "SGD", SGD, _metafast(optim.SGD, momentum=0.9), _sgd_loop, work_bytes=4,
                  is_ours=True),
        sgd("SGD hypergrad=tensor", "SGD", SGD, hypergrad="tensor"),
        sgd("SGD hypergrad=tensor, exact", "SGD", SGD_EXACT, hypergrad="tensor", hyper_exact=True),
        sgd("SGD hypergrad=element", "SGD", SGD_ELEMENT, hypergrad="element"),
        Contender("metafast SGD, 2 tangents", "SGD", tangents(SGD, 2), _tuned(2, torch.optim.SGD, momentum=0.9),
                  _sgd_decay_loop, work_bytes=20, is_ours=True),
        Contender("SGD, 2 tangents by torch's forward mode", "SGD", tangents(SGD, 2),
                  _tuned(2, torch.optim.SGD, fused=False, momentum=0.9), _sgd_decay_loop, work_bytes=80, slow=True),
    ]  # fmt: skip
    return [row for row in rows if row.available]
