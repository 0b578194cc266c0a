"""DDP and FSDP2 on two processes: the numbers of one process, and the same rates on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import OPTIONS, STEPS, make_model, make_optimizer, summary, train

from tests.processes import run_two_ranks

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    worker = Path(__file__).with_name("distributed_worker.py")
    return run_two_ranks(worker, tmp_path_factory.mktemp("ranks"))


def one_process(case: str) -> dict[str, Any]:
    model = make_model()
    opt = make_optimizer(model, case)
    train(model, opt, slice(None), range(STEPS))
    return summary(model, opt)


def assert_close(mine: dict[str, Any], expected: dict[str, Any]) -> None:
    for a, b in zip(mine["params"], expected["params"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert mine["rates"] == pytest.approx(expected["rates"], rel=1e-4)
    for a, b in zip(mine["stats"], expected["stats"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", OPTIONS)
def test_equals_one_process(ranks: list[dict[str, Any]], kind: str, case: str) -> None:
    expected = one_process(case)
    first, second = (results[f"{kind} {case}"] for results in ranks)
    assert first["rates"] == second["rates"], "ranks learn different rates"
    assert first["params"] == second["params"]
    assert_close(first, expected)


@pytest.mark.parametrize("case", OPTIONS)
def test_fsdp_resumes_through_distributed_state_dicts(ranks: list[dict[str, Any]], case: str) -> None:
    result = ranks[0][f"fsdp {case}"]
    assert result["is_dtensor"]
    assert result["resumed"]["params"] == result["params"]
    assert result["resumed"]["rates"] == result["rates"]


@pytest.mark.parametrize(
    ("case", "most"), [("fixed", 2), ("global", 4), ("group exact", 2), ("tensor", 2), ("element", 0)]
)
def test_fsdp_reduces_small_sums_only(ranks: list[dict[str, Any]], case: str, most: int) -> None:
    """One all-reduce of a few numbers for each bucket and kind of sum, however many parameters it has."""
    assert ranks[0][f"fsdp {case}"]["all_reduces"] <= most


@pytest.mark.parametrize("placement", ["replicate", "rows", "columns"])
def test_tensor_parallel_gradients(ranks: list[dict[str, Any]], placement: str) -> None:
    for results in ranks:
        result = results[f"tensor parallel {placement}"]
        assert result["partial"], "the gradient came whole: this test tests nothing"
        # Partial sums round differently, and Adam's quotients magnify that where a gradient nearly vanishes.
        assert result["sharded"]["params"] == pytest.approx(result["whole"]["params"], rel=1e-3, abs=1e-3)
        assert result["sharded"]["rates"] == pytest.approx(result["whole"]["rates"], rel=1e-4)
