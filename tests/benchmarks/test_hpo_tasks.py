"""The page of the meta-data set says what the packed tasks say, and its figures are those of the benchmark."""

import json
from pathlib import Path

import pytest

from benchmarks.hpo import tasks
from metafast.hpo import load_tasks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hpo-data.md").read_text(encoding="utf-8")


def test_every_task_is_on_the_page_as_it_is_packed():
    lines = tasks.table(load_tasks(tasks.FILE), load_tasks(tasks.FILE, scores="test")).splitlines()
    assert len(lines) == 28  # two of the head, one for each task, the sum
    missing = [line for line in lines if line and line not in PAGE]
    assert not missing


@pytest.mark.parametrize("run", json.loads((ROOT / "benchmarks/results/hpo_batched.json").read_text())["runs"])
def test_speedups_on_the_page_are_the_measured_ones(run):
    base, ours = (f"{row['ms']:,.0f}" for row in run["rows"])
    verdict = "reached" if run["speedup"]["median"] >= 5 else "**missed**"
    row = f"| {run['workload']} | {run['engine']} | {base} | {ours} | {run['speedup']['median']:.1f}: {verdict} |"
    assert row in PAGE
