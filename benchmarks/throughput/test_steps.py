"""Optimizer steps under pytest-benchmark: one group for each size and family.

Each round is one step of a contender, right after one of its baseline, and `extra_info` has the speed against it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from torch import Tensor

from .check import check
from .contenders import BASELINES, Contender, contenders
from .measure import make_params, shapes_of
from .sizes import SIZES

ROUNDS = {"tiny": 51, "resnet18": 15}  # 7 of the others
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
    for warm in (reference, step, reference, step):
        warm()
    beside: list[float] = []

    def baseline_step() -> None:
        start = time.perf_counter()
        reference()
        beside.append(time.perf_counter() - start)

    benchmark.group = f"{size}: {contender.family}"
    benchmark.pedantic(step, setup=baseline_step, rounds=ROUNDS.get(size, 7), warmup_rounds=1)
    numel = sum(p.numel() for p in params)
    if benchmark.stats is None:  # --benchmark-disable
        return
    times = benchmark.stats.stats.data
    ratios = [b / s for b, s in zip(beside[-len(times) :], times, strict=True)]
    seconds = statistics.median(times)
    benchmark.extra_info["ns_per_parameter"] = 1e9 * seconds / numel
    benchmark.extra_info["gb_per_s"] = 1e-9 * contender.bytes_per_param * numel / seconds
    benchmark.extra_info["speed_against_baseline"] = statistics.median(ratios)
