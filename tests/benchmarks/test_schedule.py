"""The benchmark of controllers runs: a small net, few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks import periods
from benchmarks.schedule import adaptation, overhead
from metafast.models import MLP
from tests.schedule.cases import task


def test_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(overhead, "WORKLOADS", {"small": (lambda: MLP(6, (5,), 10, seed=0), (6,))})
    output = tmp_path / "overhead.json"
    overhead.main(["--rounds", "1", "--clock", "cpu", "--output", str(output)])
    torch.set_num_threads(threads)
    (run,) = json.loads(output.read_text())["runs"]
    assert len(run["rows"]) == len(overhead.OPTIMIZERS) * (1 + len(overhead.PER))
    assert all(row["ratio"]["median"] == 1 for row in run["rows"] if row["name"] in overhead.OPTIMIZERS)


def test_periods_take_turns() -> None:
    now, order = [0.0], []

    def period(name: str, cost: float) -> periods.Period:
        def run() -> None:
            order.append(name)
            now[0] += cost

        return run

    rows = periods.measure_periods({"a": period("a", 1.0), "b": period("b", 3.0)}, "a", 2, 3, lambda: now[0])
    assert [row["ratio"]["median"] for row in rows] == [1.0, 3.0]
    assert [row["ms"] for row in rows] == [500.0, 1500.0]
    assert order == [*"ab", *"aabb", *"bbaa", *"aabb"]


def test_adaptation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "STEPS", 20)
    row = adaptation.measure(task(), [10, 20], [7], runs=2)
    text = adaptation.table({"lengths": [10, 20], "rows": {"toy": row}})
    assert list(row) == ["10", "20"]
    assert text.count("\n") == 3
