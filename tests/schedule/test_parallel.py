"""Data parallel: two gloo processes with half of every batch steer as one process does with all of it."""

from pathlib import Path

import pytest
import torch

from tests.processes import run_two_ranks
from tests.schedule import parallel_worker

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_two_ranks(Path(__file__).with_name("parallel_worker.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", parallel_worker.MAKERS)
def test_two_processes_steer_as_one(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first == second  # to the bit: no process goes its own way
    expected = parallel_worker.train(name)
    assert first["events"] == [list(event) for event in expected["events"]]
    assert bool(first["events"]) == (name == "wrecked")
    for (step, rates), (at, others) in zip(first["history"], expected["history"], strict=True):
        assert step == at
        # Features of losses: their spread inside an interval is that of half batches.
        assert rates == pytest.approx(others, rel=0.05)
