"""Data parallel: two gloo processes with half of every batch find what one process finds with all of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from metafast.tune import OnlineTuner
from metafast.tune._parallel import Parallel
from tests.processes import run_two_ranks
from tests.tune import parallel_worker

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_two_ranks(Path(__file__).with_name("parallel_worker.py"), tmp_path_factory.mktemp("ranks"))


def flat(value):
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [x for item in value for x in flat(item)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("method", [*parallel_worker.METHODS, "update"])
def test_two_processes_find_what_one_finds(ranks, method):
    expected = parallel_worker.train(method)
    for rank in ranks:
        for key in ("weights", "values", "hypergradients", "validation"):
            # the difference of SAMA is divided by its small radius
            assert flat(rank[method][key]) == pytest.approx(flat(expected[key]), rel=1e-6, abs=1e-10), key
    first, second = (rank[method] for rank in ranks)
    for key in ("weights", "values", "hypergradients", "validation"):
        assert first[key] == second[key], key  # to the bit: no process goes its own way
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(expected["losses"], rel=1e-9)


def test_buffers_are_those_of_rank_0_before_each_step(ranks):
    """Rank 1 takes over rank 0's sum before each step, as in DDP's own loop, and adds its own last batch."""
    halves = [[float(x[rank::2].sum()) for x, _ in parallel_worker.batches()][:-1] for rank in range(2)]
    sums = [sum(halves[0]), sum(halves[0][:-1]) + halves[1][-1]]
    for rank, expected in zip(ranks, sums, strict=True):
        for method in ("forward", "update"):
            assert rank[method]["seen"] == pytest.approx(expected), method


def test_one_process_has_nothing_to_average():
    parallel = Parallel(nn.Linear(2, 2))
    tensors = [torch.ones(2), None]
    assert parallel.mean(tensors, [torch.zeros(2), torch.zeros(2)]) == tensors
    assert parallel.size == 1


def test_data_parallel_modules_are_refused():
    model = nn.Linear(2, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        OnlineTuner(nn.DataParallel(model), opt, "lr", [(torch.ones(1, 2), torch.zeros(1).long())])
