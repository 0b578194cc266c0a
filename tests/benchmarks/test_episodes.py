"""The benchmark of making meta-batches runs, and refuses a contender that makes something else."""

import json

import pytest
import torch

from benchmarks.episodes.__main__ import check, main, markdown
from benchmarks.episodes.contenders import CONTENDERS, SMOKE


def test_command_writes_results_and_prints_every_row(tmp_path, capsys):
    output = tmp_path / "results.json"
    main(["--workloads", "smoke", "--rounds", "2", "--output", str(output)])
    results = json.loads(output.read_text(encoding="utf-8"))
    assert {"date", "commit", "machine", "versions", "workloads"} <= results.keys()
    [row] = results["workloads"]
    assert set(row["milliseconds"]) >= set(CONTENDERS) - {"metafast, C++"}
    assert capsys.readouterr().out.strip() == markdown(results)


def test_wrong_batches_are_refused():
    source = SMOKE.source()
    batch = CONTENDERS["PyTorch, loop over classes"](source, SMOKE)()
    check(batch, source, SMOKE)
    batch.query_y[0, 0] = (batch.query_y[0, 0] + 1) % SMOKE.ways
    with pytest.raises(AssertionError):
        check(batch, source, SMOKE)
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        check(batch[:1], source, SMOKE)
