"""Times contenders in turns, each turn right after one of its baseline, so that a noisy machine hits both alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metafast.ops import _native
from metafast.ops import stream as _stream

from .check import check
from .contenders import BASELINES, Contender, Pass, Step, Traffic
from .sizes import SIZES, Shapes, smoke

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
TURN_SECONDS = 0.04  # a turn repeats short steps for at least this long
GRAD_SCALE = 0.01


@dataclass
class Row:
    """The times of one contender on one size; a round has one entry in each list.

    Attributes:
        seconds: of one step.
        baseline_seconds: of one step of the family's baseline, in the turn before.
        stream_seconds: of the contender's memory traffic alone, in the turn after; empty without native kernels.
    """

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    baseline_seconds: list[float] = field(default_factory=list)
    stream_seconds: list[float] = field(default_factory=list)

    def summary(self, numel: int) -> dict[str, Any]:
        """What the results file says of the row."""
        seconds = statistics.median(self.seconds)
        ratios = [b / s for b, s in zip(self.baseline_seconds, self.seconds, strict=True)]
        fractions = [t / s for t, s in zip(self.stream_seconds, self.seconds, strict=True)]
        return {
            "name": self.contender.name,
            "family": self.contender.family,
            "baseline": BASELINES[self.contender.family],
            "is_ours": self.contender.is_ours,
            "bytes_per_param": self.contender.bytes_per_param,
            "ns_per_param": 1e9 * seconds / numel,
            "gb_per_s": 1e-9 * self.contender.bytes_per_param * numel / seconds,
            "stream_fraction": statistics.median(fractions) if fractions else None,
            "speedup": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            "seconds": self.seconds,
            "baseline_seconds": self.baseline_seconds,
            "stream_seconds": self.stream_seconds,
        }


class StreamLimit:
    """Moves the bytes of a traffic pattern through arrays of a given size, by `metafast::stream`."""

    def __init__(self, numel: int, arrays: int) -> None:
        self._numel = numel
        self._arrays = [torch.full((numel,), 1e-3) for _ in range(arrays)]

    def step(self, traffic: Traffic) -> Step:
        """A function that makes all passes once."""
        calls = [self._streams(one) for one in traffic]
        overload = _stream.OP.overload

        def run() -> None:
            for writes, reads in calls:
                overload(writes, reads)

        return run

    def _streams(self, one: Pass) -> tuple[list[Tensor], list[Tensor]]:
        arrays = iter(self._arrays)
        views = [self._view(next(arrays), size) for size in (*one.writes, *one.reads)]
        return views[: len(one.writes)], views[len(one.writes) :]

    def _view(self, array: Tensor, size: int) -> Tensor:
        return array if size == 4 else array.view(torch.bfloat16)[: self._numel]


def shapes_of(size: str) -> Shapes:
    """The shapes of a named size."""
    return smoke() if size == "smoke" else SIZES[size]()


def make_params(shapes: Shapes) -> list[Tensor]:
    """Parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    params: list[Tensor] = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator))
        param.grad = torch.randn(shape, generator=generator).mul_(GRAD_SCALE)
        params.append(param)
    return params


def measure(
    rows: Sequence[Contender],
    size: str,
    *,
    threads: int,
    rounds: int,
    clock: str = "wall",
    memory_bytes: float = 6e9,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Times `rows` on one size.

    Args:
        rows: contenders; the baseline of each family is timed beside them, and need not be among them.
        size: a name in `SIZES`, or `"smoke"`.
        threads: of PyTorch's pool.
        rounds: turns of each contender, after a warm-up.
        clock: `"wall"`, or `"cpu"`: time on the processor, for one thread on a machine that others use too.
        memory_bytes: contenders whose states fit into this are timed in turns; more make another group.
        log: is told what happens.

    Returns:
        The part of the results file for this size.
    """
    if clock == "cpu" and threads != 1:
        raise ValueError("clock='cpu' adds up the time of all threads; it only makes sense with one")
    torch.set_num_threads(threads)
    params = make_params(shapes_of(size))
    numel = sum(p.numel() for p in params)
    streams = max(len(one.writes) + len(one.reads) for row in rows for one in row.traffic)
    limit = StreamLimit(numel, streams) if _native.LIBRARIES["cpu"].loaded else None
    done: list[Row] = []
    for family, baseline_name in BASELINES.items():
        members = [row for row in rows if row.family == family]
        if not members:
            continue
        baseline = _baseline(baseline_name)
        for group in _groups(members, numel, memory_bytes):
            log(f"{threads} thread(s), {size}: {', '.join(row.name for row in group)}")
            done += _interleave(group, baseline, params, limit, rounds, CLOCKS[clock])
    order = {row.name: index for index, row in enumerate(rows)}
    done.sort(key=lambda row: order[row.contender.name])
    return {
        "threads": threads,
        "size": size,
        "tensors": len(params),
        "parameters": numel,
        "rounds": rounds,
        "clock": clock,
        "rows": [row.summary(numel) for row in done],
    }


def _baseline(name: str) -> Contender:
    from .contenders import contenders

    return next(row for row in contenders() if row.name == name)


def _groups(rows: Iterable[Contender], numel: int, memory_bytes: float) -> list[list[Contender]]:
    groups: list[list[Contender]] = [[]]
    used = 0.0
    for row in rows:
        needed = float(row.work_bytes) * numel
        if groups[-1] and used + needed > memory_bytes:
            groups.append([])
            used = 0.0
        groups[-1].append(row)
        used += needed
    return groups


def _interleave(
    group: Sequence[Contender],
    baseline: Contender,
    params: list[Tensor],
    limit: StreamLimit | None,
    rounds: int,
    clock: Callable[[], float],
) -> list[Row]:
    for contender in (baseline, *group):
        check(contender)
    steps = [contender.build(params) for contender in group]
    reference = baseline.build(params)
    streams = [limit.step(contender.traffic) if limit is not None else None for contender in group]
    turns = {step: _turn(step, clock) for step in (*steps, reference, *streams) if step is not None}
    rows = [Row(contender) for contender in group]
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            # A new order in each round: nobody always runs after the same neighbour.
            for offset in range(len(rows)):
                index = (offset + number) % len(rows)
                rows[index].baseline_seconds.append(turns[reference]())
                rows[index].seconds.append(turns[steps[index]]())
                stream = streams[index]
                if stream is not None:
                    rows[index].stream_seconds.append(turns[stream]())
    finally:
        if enabled:
            gc.enable()
    for p in params:  # slow peers leave a graph or a new gradient behind
        p.requires_grad_(True)
    return rows


def _turn(step: Step, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that times one turn, in seconds for one step. Warms up, and finds how often to repeat."""
    for _ in range(3):
        start = time.perf_counter()
        step()
        once = time.perf_counter() - start
    repeats = max(1, min(200, round(TURN_SECONDS / max(once, 1e-7))))

    def turn() -> float:
        if once < TURN_SECONDS:
            step()  # its states are warm, as they are in a loop of its own
        start = clock()
        for _ in range(repeats):
            step()
        return (clock() - start) / repeats

    return turn
