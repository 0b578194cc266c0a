"""Optimizer steps under pytest-benchmark: one group for each size and family.

Each round of a contender comes right after one of its baseline, and `extra_info` has the speed against it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from torch import Tensor

from .check import check
from .contenders import BASELINES, Contender, contenders
from .measure import TURN_SECONDS, make_params, shapes_of
from .sizes import SIZES

ROUNDS = 7
ROWS = contenders()


@pytest.fixture(scope="module", params=list(SIZES))
def sized(request: pytest.FixtureRequest) -> tuple[str, list[Tensor]]:
    return request.param, make_params(shapes_of(request.param))


@pytest.mark.parametrize("contender", ROWS, ids=[row.name.replace(" ", "_") for row in ROWS])
def test_step(benchmark: Any, sized: tuple[str, list[Tensor]], contender: Contender) -> None:
    size, params = sized
    check(contender)
    baseline = next(row for row in ROWS if row.name == BASELINES[contender.family])
    step, reference = contender.build(params), baseline.build(params)
    for warm in (step, reference, step):
        start = time.perf_counter()
        warm()
    repeats = max(1, min(200, round(TURN_SECONDS / (time.perf_counter() - start))))
    beside: list[float] = []

    def turn_of_baseline() -> None:
        start = time.perf_counter()
        for _ in range(repeats):
            reference()
        beside.append(time.perf_counter() - start)

    def turn() -> None:
        for _ in range(repeats):
            step()

    benchmark.group = f"{size}: {contender.family}"
    benchmark.pedantic(turn, setup=turn_of_baseline, rounds=ROUNDS, warmup_rounds=1)
    numel = sum(p.numel() for p in params)
    benchmark.extra_info["steps_per_round"] = repeats
    if benchmark.stats is None:  # --benchmark-disable
        return
    times = benchmark.stats.stats.data
    ratios = [b / s for b, s in zip(beside[-len(times) :], times, strict=True)]
    seconds = statistics.median(times) / repeats
    benchmark.extra_info["ns_per_parameter"] = 1e9 * seconds / numel
    benchmark.extra_info["gb_per_s"] = 1e-9 * contender.bytes_per_param * numel / seconds
    benchmark.extra_info["speed_against_baseline"] = statistics.median(ratios)
