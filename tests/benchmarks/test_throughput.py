"""The throughput benchmark runs, refuses wrong numbers, and reports every row."""

from __future__ import annotations

import dataclasses
import json
from math import prod
from pathlib import Path

import pytest
import torch

from benchmarks.throughput import report
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.check import check
from benchmarks.throughput.contenders import ADAM, BASELINES, ELEMENT_BF16, EXACT, SGD, contenders, tangents
from benchmarks.throughput.sizes import SIZES

ROWS = {row.name: row for row in contenders()}


def test_command_writes_results_and_prints_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    threads = torch.get_num_threads()
    try:
        main(["--sizes", "smoke", "--rounds", "2", "--only", "^metafast|fused|HD", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    results = json.loads(output.read_text(encoding="utf-8"))
    assert {"date", "commit", "machine", "versions", "runs"} <= results.keys()
    (run,) = results["runs"]
    names = [row["name"] for row in run["rows"]]
    assert set(BASELINES.values()) <= set(names)
    assert "AdamHD, plain PyTorch" in names
    printed = capsys.readouterr().out
    assert printed.strip() == report.markdown(results).strip()
    for row in run["rows"]:
        assert len(row["seconds"]) == len(row["baseline_seconds"]) == 2
        assert row["speedup"]["min"] <= row["speedup"]["median"] <= row["speedup"]["max"]
        assert row["name"] in printed


@pytest.mark.parametrize("name", ROWS)
def test_contender_equals_its_reference(name: str) -> None:
    check(ROWS[name])


def test_wrong_numbers_are_refused() -> None:
    row = ROWS["metafast AdamW"]
    wrong = dataclasses.replace(row, build=lambda params: torch.optim.AdamW(params, lr=2e-4).step)
    with pytest.raises(AssertionError, match="from its reference"):
        check(wrong)
    idle = dataclasses.replace(row, build=lambda params: lambda: None)
    with pytest.raises(AssertionError, match="did not move"):
        check(idle)


def test_sizes_and_bytes() -> None:
    counted = {name: (len(shapes()), sum(map(prod, shapes()))) for name, shapes in SIZES.items()}
    assert counted["one"] == (1, 25_000_000)
    assert counted["resnet18"] == (62, 11_689_512)  # torchvision's count
    assert counted["bert"] == (199, 109_482_240)  # transformers' BertModel
    assert counted["tiny"] == (1000, 2_100_000)
    assert [sum(p.bytes_per_param for p in t) for t in (ADAM, EXACT, ELEMENT_BF16)] == [28, 36, 32]
    for k in (0, 1, 4):
        found = [t[0].bytes_per_param for t in (tangents(ADAM, k), tangents(SGD, k))]
        assert found == [28 + 24 * k, 20 + 16 * k]
