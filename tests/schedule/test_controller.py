"""Files and few-shot adaptation."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import metafast.optim
from metafast.schedule import LRController, Task
from metafast.schedule._adapt import FIRST_SHIFT, LARGEST_SHIFT, _next
from tests.schedule.cases import controller, task, train


def test_the_shipped_one_is_small_and_says_how_it_was_made() -> None:
    from metafast.schedule import _file

    file = _file.SHIPPED / "default.safetensors"
    assert file.stat().st_size < 200_000
    record = LRController.load("default").record
    for key in ("meta_training", "meta_validation", "settings", "seed", "versions", "cpu_seconds", "updates"):
        assert key in record
    assert not set(record["meta_training"]["data"]) & set(record["meta_validation"]["data"])


def test_round_trip(tmp_path) -> None:
    made = controller(shift=0.25)
    made.save(tmp_path / "mine.safetensors")
    again = LRController.load(tmp_path / "mine.safetensors")
    assert torch.equal(again.learned.weights, made.learned.weights)
    assert (again.learned.shift, again.learned.max_change, again.record) == (0.25, made.learned.max_change, made.record)
    first, second = made.copy(), again
    train(lambda params: metafast.optim.Adam(params, lr=1e-3), 20, first, interval=5)
    train(lambda params: metafast.optim.Adam(params, lr=1e-3), 20, second, interval=5)
    assert first.history == second.history
    assert made.optimizer is None


def _rewritten(source, target, about=None, tensors=None):
    with safe_open(source, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(file.metadata()["metafast"])
    told.update(about or {})
    kept.update(tensors or {})
    save_file({k: v for k, v in kept.items() if v is not None}, target, metadata={"metafast": json.dumps(told)})


def test_damaged_and_foreign_files_are_refused(tmp_path) -> None:
    good = tmp_path / "good.safetensors"
    controller().save(good)
    cases = {
        "version": ({"version": 99}, {}, "version 99"),
        "inputs": ({"inputs": ["loss"]}, {}, "other inputs"),
        "missing": ({}, {"head": None}, "lacks the tensor 'head'"),
        "shape": ({}, {"head": torch.zeros(3)}, "must be float32"),
        "values": ({}, {"offset": torch.tensor([9.0])}, "checksum"),
        "format": ({"format": "other"}, {}, "no controller"),
    }
    for name, (about, tensors, match) in cases.items():
        bad = tmp_path / f"{name}.safetensors"
        _rewritten(good, bad, about, tensors)
        with pytest.raises(ValueError, match=match):
            LRController.load(bad)
    whole = good.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        LRController.load(tmp_path / "cut.safetensors")
    (tmp_path / "plain.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="damaged"):
        LRController.load(tmp_path / "plain.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no controller"):
        LRController.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="default"):
        LRController.load(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="default"):
        LRController.load("unknown")


def test_adaptation_never_loses_by_its_own_runs() -> None:
    ctl = controller()
    fitted = ctl.adapt(task(), steps=5, seed=1)
    runs = fitted.record["adapted"]["runs"]
    assert len(runs) == 5
    assert runs[0]["shift"] == ctl.learned.shift == 0.0
    assert min(run["loss"] for run in runs) <= runs[0]["loss"]
    assert fitted.learned.shift == min(runs, key=lambda run: run["loss"])["shift"]
    assert "adapted" not in ctl.record
    assert ctl.optimizer is None and fitted.optimizer is None
    assert fitted.adapt(task(), steps=1).learned.shift == fitted.learned.shift


def test_adaptation_leaves_random_states_alone_and_repeats() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = controller().adapt(task(), steps=3)
    assert torch.equal(torch.rand(3), expected)
    assert controller().adapt(task(), steps=3).record["adapted"] == first.record["adapted"]


def test_where_adaptation_looks() -> None:
    def found(curve, steps=5):
        shifts, losses = [], []
        for _ in range(steps):
            shifts.append(_next(shifts, losses))
            losses.append(curve(shifts[-1]))
        return shifts, losses

    shifts, _ = found(lambda s: (s - 0.15) ** 2)
    assert shifts[:3] == [0.0, FIRST_SHIFT, -FIRST_SHIFT]
    assert shifts[3] == pytest.approx(0.15, abs=0.02)
    shifts, _ = found(lambda s: (s - 5) ** 2)
    assert max(shifts) <= LARGEST_SHIFT + 1e-9 and shifts[3] == pytest.approx(2 * FIRST_SHIFT)
    assert len(set(found(lambda s: 1.0)[0])) == 5
    assert len(set(found(lambda s: float("inf") if s else 1.0, 4)[0])) == 4


def test_bad_tasks() -> None:
    good = task()
    with pytest.raises(TypeError, match="model"):
        Task("a", 3, good.train, good.val)
    with pytest.raises(ValueError, match="optimizer"):
        Task("a", good.model, good.train, good.val, optimizer="lion")
    with pytest.raises(ValueError, match="loss"):
        Task("a", good.model, good.train, good.val, loss="hinge")
    with pytest.raises(ValueError, match="as many labels"):
        Task("a", good.model, type(good.train)(good.train.inputs, good.val.labels), good.val)
    with pytest.raises(ValueError, match="steps"):
        Task("a", good.model, good.train, good.val, steps=0)
    with pytest.raises(TypeError, match="task"):
        controller().adapt("digits")
    with pytest.raises(ValueError, match="steps"):
        controller().adapt(good, steps=0)
