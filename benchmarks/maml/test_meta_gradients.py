"""Meta-gradients under pytest-benchmark: one group for each workload, number of steps and order.

In this one process peers share an allocator and warm libraries; `python -m benchmarks.maml` gives each its own, and
measures memory.
"""

from __future__ import annotations

from typing import Any

import pytest

from . import check
from .contenders import CONTENDERS, Contender
from .workloads import MAIN, WORKLOADS

# JAX and a tuned malloc want a process of their own.
ROWS = [c for c in CONTENDERS if c.kind != "jax" and "tuned" not in c.name]


@pytest.mark.parametrize("contender", ROWS, ids=[row.name.replace(" ", "_") for row in ROWS])
@pytest.mark.parametrize("order", [2, 1])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("workload", MAIN)
def test_meta_gradient(benchmark: Any, workload: str, steps: int, order: int, contender: Contender) -> None:
    if order not in contender.orders or (contender.workloads is not None and workload not in contender.workloads):
        pytest.skip(f"{contender.name} does not take part")
    reason = contender.missing()
    if reason is not None:
        pytest.skip(reason)
    grads = contender.build(check.problem(workload, steps, order))()
    error = check.error(grads, check.reference(workload, steps, order))
    if error > check.tolerance(workload):
        pytest.skip(f"wrong gradient: {error:.1e} from float64")
    benchmark.group = f"{workload}, {steps} steps, order {order}"
    benchmark.extra_info["gflop"] = WORKLOADS[workload].flops(steps, order) / 1e9
    run = contender.build(WORKLOADS[workload].problem(steps, order))
    benchmark.pedantic(run, rounds=51 if workload == "sinusoid" else 3, warmup_rounds=1)
