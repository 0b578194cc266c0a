"""The meta-gradient benchmark: peers agree, wrong gradients are refused, rounds resume, every row is reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.maml import __main__ as command
from benchmarks.maml import check, measure, report, tables, transfer
from benchmarks.maml.contenders import BY_NAME, CONTENDERS
from benchmarks.maml.peak import fma_probe
from benchmarks.maml.worker import Worker, WorkerError
from benchmarks.maml.workloads import WORKLOADS
from benchmarks.peers import maml_loop

ARGUMENTS = ["--workloads", "tiny_mlp", "--steps", "2", "--orders", "2", "--only", "^plain torch loop$|^higher$"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("workload", ["tiny_mlp", "tiny_conv", "tiny_pool"])
@pytest.mark.parametrize("name", [c.name for c in CONTENDERS if "tuned" not in c.name and "compile" not in c.name])
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_contender_equals_a_float64_loop(name: str, workload: str, order: int) -> None:
    contender = BY_NAME[name]
    if order not in contender.orders or (contender.workloads is not None and workload not in contender.workloads):
        pytest.skip("does not take part")
    if (reason := contender.missing()) is not None:
        pytest.skip(reason)
    if contender.kind == "jax" and workload != "tiny_mlp" and (order, workload) != (2, "tiny_pool"):
        pytest.skip("XLA compiles for seconds: one convolutional problem")
    steps = 1 if contender.kind == "jax" else 2
    grads = contender.build(check.problem(workload, steps, order))()
    error = check.error(grads, check.reference(workload, steps, order))
    if name == "parallel-metalearn" and workload != "tiny_mlp" and order == 2:
        # loss.backward() over a vmap with batch normalization: torch 2.13 loses a term
        assert error > check.tolerance(workload)
    else:
        assert error < check.tolerance(workload)


def test_flops_are_those_of_the_papers_networks() -> None:
    """Against counts by hand: 5.313 MFLOP forward for Omniglot's Conv4, 54.68 for miniImageNet's."""
    gflop = {
        (w, k, o): WORKLOADS[w].flops(k, o) / 1e9 for w in ("omniglot", "miniimagenet") for k in (1, 5) for o in (1, 2)
    }
    assert gflop["omniglot", 1, 2] == pytest.approx(45.2, rel=2e-3)
    assert gflop["omniglot", 5, 2] == pytest.approx(75.1, rel=2e-3)
    assert gflop["omniglot", 5, 1] == pytest.approx(50.3, rel=2e-3)
    assert gflop["miniimagenet", 5, 2] == pytest.approx(261, rel=2e-3)
    assert gflop["miniimagenet", 5, 1] == pytest.approx(121, rel=5e-3)


def test_command_resumes_and_reports_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.json"
    arguments = [*ARGUMENTS, "--output", str(output)]
    command.main([*arguments, "--rounds", "1"])
    content = json.loads(output.read_text(encoding="utf-8"))
    assert {"date", "commit", "machine", "versions", "groups"} <= content.keys()
    (group,) = content["groups"].values()
    first = group["rows"]["plain torch loop"]["wall"]
    assert len(first) == 1
    assert group["rows"]["plain torch loop"]["error"] < 1e-5

    command.main([*arguments, "--rounds", "2"])
    content = json.loads(output.read_text(encoding="utf-8"))
    (group,) = content["groups"].values()
    assert group["rows"]["plain torch loop"]["wall"][:1] == first
    assert len(group["rows"]["plain torch loop"]["cpu"]) == 2
    printed = capsys.readouterr().out
    assert printed.strip().endswith(report.markdown(content).strip())
    for name in group["rows"]:
        assert name in printed
    assert "not measured" in printed

    monkeypatch.setattr(measure, "Worker", lambda *_, **__: pytest.fail("everything is there"))
    command.main([*arguments, "--rounds", "2"])


def test_report_says_what_was_reached_and_missed() -> None:
    def row(seconds: float, peak: float) -> dict[str, Any]:
        return {
            "kind": "peer",
            "state": "timed",
            "peak_mb": peak,
            "error": 1e-6,
            "wall": [seconds] * 3,
            "cpu": [seconds] * 3,
        }

    group = {
        "workload": "omniglot", "steps": 5, "order": 2, "threads": 1, "gflop": 75.0, "commit": "c", "load": [0.0] * 3,
        "peak_gflops": [{"wall": 100.0, "cpu": 100.0}] * 3,
        "rows": {"metafast": row(1.0, 40), "learn2learn": row(4.5, 78), "JAX scan": row(1.9, 500)},
    }  # fmt: skip
    lines = report.targets([group], "wall").splitlines()
    verdicts = {line.split("|")[2].strip(): line for line in lines[2:]}
    assert "4.50×" in verdicts["speed against learn2learn ≥ 4×"]
    assert "reached" in verdicts["speed against learn2learn ≥ 4×"]
    assert "missed" in verdicts["speed against the best JAX ≥ 2×"]
    assert "missed" in verdicts["memory of metafast, of learn2learn's ≤ 0.5"]
    assert "0.75 | reached" in verdicts["of the FMA peak ≥ 0.75"]


def test_errors_are_refused() -> None:
    expected = check.reference("tiny_conv", 1, 2)
    wrong = maml_loop.build(dataclasses.replace(WORKLOADS["tiny_conv"].problem(1, 2), lr=0.2))()
    assert check.error(wrong, expected) > check.tolerance("tiny_conv")
    assert check.error([torch.full_like(e, float("nan")) for e in expected], expected) == float("inf")
    assert check.error(list(expected)[:-1], expected) == float("inf")


def test_a_contender_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("torchopt" if BY_NAME["torchopt"].missing() is None else "higher", "tiny_mlp", 1, 3, 1)
    try:
        with pytest.raises(WorkerError, match="Error"):
            worker.ask("build")
    finally:
        worker.close()


def test_memory_is_that_of_the_contender() -> None:
    """A process of its own with 64 times the tasks' activations shows them; freed memory of others cannot hide it."""
    peaks = {}
    for queries in (1, 64):
        worker = Worker("plain torch loop", "tiny_pool", 1, 2, 1, queries=queries)
        try:
            worker.ask("build")
            peaks[queries] = worker.ask("first")["peak_mb"]
        finally:
            worker.close()
    assert peaks[64] > peaks[1] + 10


def test_peak_is_that_of_a_core() -> None:
    probe = fma_probe()
    if probe is None:
        pytest.skip("no C++ compiler")
    assert 1 < probe(1).cpu < 1000


def test_scaling_resumes_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.maml import scaling

    output = tmp_path / "scaling.json"
    arguments = ["--workload", "tiny_mlp", "--tasks", "1", "--steps", "1", "--unroll", "40", "--only", "learn2learn",
                 "--rounds", "1", "--output", str(output)]  # fmt: skip
    if BY_NAME["learn2learn"].missing() is not None:
        pytest.skip("no learn2learn")
    content = scaling.main(arguments)
    summary = content["summary"]["learn2learn"]
    assert summary["mb_at_most_steps"][0] == 40
    assert summary["ms_per_added_step"][0] > 0
    assert output.with_suffix(".png").stat().st_size > 10_000
    monkeypatch.setattr(scaling, "Worker", lambda *_, **__: pytest.fail("everything is there"))
    assert scaling.main(arguments)["summary"] == content["summary"]


def test_readme_shows_the_results() -> None:
    text = tables.README.read_text(encoding="utf-8")
    assert tables.render(text) == text, "run python -m benchmarks.maml.tables"
    with pytest.raises(ValueError, match="one block"):
        tables.render("")


def test_transfer_rows_are_means_over_seeds_with_a_common_threshold() -> None:
    def row(start: str, rate: str, course: list[float]) -> dict[str, Any]:
        return {
            "start": start, "data": "letters", "rate": rate, "inner_lr": 0.1, "seconds_per_step": 0.002,
            "accuracy": [course[-1], 0.02], "f1": [course[-1], 0.04], "course": [[value, 0.02] for value in course],
        }  # fmt: skip

    seeds = [
        [row("random", "chosen", [0.2, 0.3, 0.4]), row("meta", "chosen", [0.2, 0.7, 0.8])],
        [row("random", "chosen", [0.2, 0.5, 0.6]), row("meta", "chosen", [0.2, 0.9, 1.0])],
    ]
    content = {"rows": {str(seed): {"rows": rows} for seed, rows in enumerate(seeds)}}
    random, meta = transfer.summary(content)
    assert random["accuracy"] == pytest.approx((0.5, 0.02)) and meta["f1"] == pytest.approx((0.9, 0.04))
    assert meta["threshold"] == random["threshold"] == pytest.approx(0.9 * 0.9)
    assert random["steps"] is None and meta["steps"] == 2  # means 0.2, 0.8, 0.9 of meta: 0.81 only at the end
    assert meta["ms_per_step"] == pytest.approx(2)
