"""Data parallel over tasks: two gloo processes give the meta-gradient and the weights of one."""

import json
from pathlib import Path

import pytest
import torch

from metafast.runs import Run
from tests.maml import parallel_worker
from tests.processes import run_two_ranks

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(Path(__file__).with_name("parallel_worker.py"), folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", parallel_worker.cases())
def test_two_processes_give_the_meta_gradient_of_one(ranks, case):
    expected = parallel_worker.gradients()[case]
    for rank in ranks:
        actual = rank["gradients"][case]
        assert actual["dropped"] == expected["dropped"]
        for key in ("grads", "buffers"):
            assert set(actual[key]) == set(expected[key])
            for name, values in expected[key].items():
                actual_values = torch.tensor(actual[key][name])
                torch.testing.assert_close(actual_values, torch.tensor(values), rtol=1e-6, atol=1e-7)
        kept = [task for task in range(parallel_worker.TASKS) if task not in expected["dropped"]]
        assert [actual["accuracy"][task] for task in kept] == pytest.approx([expected["accuracy"][t] for t in kept])
    assert ranks[0]["gradients"][case]["grads"] == ranks[1]["gradients"][case]["grads"]  # bit for bit


def test_dropped_tasks_were_counted(ranks):
    for case, tasks in parallel_worker.BAD.items():
        assert ranks[0]["gradients"][case]["dropped"] == list(tasks)


def test_every_process_hears_whose_task_is_not_finite(ranks):
    for rank in ranks:
        assert rank["refused"].startswith("process 1, whose tasks are 2 to 4 of the meta-batch: task 1: its query loss")


def test_two_processes_train_to_the_weights_of_one(ranks, folder, tmp_path):
    alone = parallel_worker.trained(str(tmp_path), 0, 1, 4, False)
    assert ranks[0]["half"] == ranks[1]["half"]
    torch.testing.assert_close(torch.tensor(ranks[0]["half"]), torch.tensor(alone), rtol=0, atol=1e-6)
    record = Run.open(folder / "2-processes")
    assert record.status == "finished" and record.config["processes"] == 2
