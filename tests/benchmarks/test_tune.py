"""The benchmarks of online tuning run, and their contenders answer the same question; small nets, few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.convergence.study import RESULTS
from benchmarks.tune import clarke, overhead, unroll
from benchmarks.tune.workloads import WORKLOADS, Workload
from metafast.models import MLP


def tiny(adam: bool = False) -> Workload:
    return Workload(
        lambda: MLP(6, (5,), 10, seed=0), lambda n, generator: torch.randn(n, 6, generator=generator), 4, adam=adam
    )


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("adam", [False, True])
def test_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adam: bool) -> None:
    monkeypatch.setitem(WORKLOADS, "mlp", tiny(adam))
    output = tmp_path / "overhead.json"
    overhead.main(["--workloads", "mlp", "--rounds", "1", "--clock", "cpu", "--output", str(output)])
    (run,) = json.loads(output.read_text())["runs"]
    assert [row["name"] for row in run["rows"]] == [overhead.PLAIN, *overhead.CONTENDERS]
    assert all(row["ms"] > 0 for row in run["rows"])
    assert run["rows"][0]["ratio"]["median"] == 1


def test_overhead_marks_what_is_missed() -> None:
    def row(name: str, ratio: float, aim: float | None) -> dict[str, object]:
        return {"name": name, "ms": 1.0, "ratio": {"median": ratio}, "aim": aim}

    rows = [row(overhead.PLAIN, 1.0, None), row("a", 1.2, 1.15), row("b", 1.1, 1.15)]
    text = overhead.table({"runs": [{"workload": "mlp", "threads": 1, "rows": rows}]})
    assert "**1.20**" in text and "**1.10**" not in text and "| 1.10 |" in text


def test_reverse_and_unroll_find_the_same_hypergradients() -> None:
    found = [run(tiny(), 7) for run in unroll.CONTENDERS.values()]
    for other in found[:-1]:
        assert other == pytest.approx(found[-1], rel=1e-4)


def test_unroll_table_compares_with_the_aim() -> None:
    rows = {
        name: {"mb": mb, "of_the_unroll": mb / 100, "cpu_seconds": 1.0, "off": 0.0}
        for name, mb in zip(unroll.CONTENDERS, (21.0, 20.0, 100.0), strict=True)
    }
    lines = unroll.table({"runs": [{"workload": "mlp", "steps": 100, "rows": rows}]}).splitlines()
    assert "missed" in lines[2] and "reached" in lines[3] and "aim" not in lines[4]


def test_clarke_runs_and_resumes(tmp_path: Path, data_folder: Callable[[str], Path]) -> None:
    data_folder("fashion_mnist")
    output = tmp_path / "clarke.json"
    arguments = ["--methods", "not tuned", "one_step", "--seeds", "2", "--max-steps", "40", "--output", str(output)]
    clarke.main(arguments)
    content = json.loads(output.read_text())
    assert len(content["rows"]) == 4
    assert len(content["rows"]["one_step | 1"]["curves"]["lr"]) == 5
    removed = content["rows"].pop("one_step | 1")
    output.write_text(json.dumps(content))
    clarke.main(arguments)
    again = json.loads(output.read_text())["rows"]["one_step | 1"]
    assert {k: v for k, v in again.items() if k not in ("cpu_seconds", "commit")} == {
        k: v for k, v in removed.items() if k not in ("cpu_seconds", "commit")
    }
    with pytest.raises(SystemExit):
        clarke.main([*arguments[:-2], "--trial", "--output", str(RESULTS / "tune_clarke.json")])


def test_clarke_starts_and_summary() -> None:
    starts = [clarke.start_of(number) for number in range(200)]
    assert all(1e-6 <= s["lr"] <= 1e-1 and 1e-7 <= s["weight_decay"] <= 1e-2 and 0 <= s["momentum"] < 1 for s in starts)
    assert min(s["lr"] for s in starts) < 1e-5 and max(s["lr"] for s in starts) > 1e-2
    rows = {
        f"reverse | {i}": {"loss": loss, "cpu_seconds": 1.0} for i, loss in enumerate((0.40, 0.45, 0.46, None, 0.44))
    }
    found = clarke.summary(rows, "reverse")
    assert found is not None
    assert (found["median"], found["best"], found["share"]) == (0.45, 0.40, 0.6)
    assert clarke.summary(rows, "one_step") is None
