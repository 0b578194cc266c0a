"""Predictors on disk: loaded whole or refused whole."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from metafast.hpo import Predictor
from tests.hpo.model_cases import about, line, new_task, predictor, runs


def test_a_saved_predictor_believes_the_same(tmp_path):
    task = new_task()
    mixed = Predictor(list(map(line, "ab"))).fit([new_task()])
    for one in (predictor(), mixed):
        one.save(tmp_path / "one.safetensors")
        other = Predictor.load(tmp_path / "one.safetensors")
        assert other.tasks == one.tasks and other.settings == one.settings
        mine, its = (p.belief(task.space, task.configs, runs(task, [1, 50]), **about(task)) for p in (one, other))
        np.testing.assert_array_equal(mine.mean, its.mean)
        np.testing.assert_array_equal(mine.seconds, its.seconds)


def test_the_shipped_one_is_small_and_knows_something():
    shipped = Predictor.load("default")
    assert len(shipped.tasks) >= 8
    from metafast.hpo import _predictor

    assert (_predictor.SHIPPED / "default.safetensors").stat().st_size < 10e6


@pytest.mark.usefixtures("one_thread")
def test_the_shipped_one_is_fast():
    shipped, task = Predictor.load("default"), new_task()
    known = [
        part for family in shipped._surrogate.families for part in (family.codes, *(t.curves for t in family.tasks))
    ]
    assert sum(part.size for part in known) < 2e6
    observed, times = runs(task, range(0, 500, 20)), []
    for _ in range(8):
        began = time.process_time()
        shipped.belief(task.space, task.configs, observed, **about(task))
        times.append(time.process_time() - began)
    assert len(task.configs) == 486 and len(observed) == 25
    assert min(times) < 0.05


def _change(path, tensors=None, **about):
    from safetensors import safe_open

    with safe_open(path, framework="np") as opened:
        told = json.loads(opened.metadata()["metafast"])
    save_file({**load_file(path), **(tensors or {})}, path, metadata={"metafast": json.dumps({**told, **about})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "damaged"),
        (lambda path: path.write_text("no tensors"), "damaged"),
        (lambda path: _change(path, {"0.0.curves": np.zeros((5, 1), np.float32)}), "checksum"),
        (lambda path: _change(path, format="another"), "holds no predictor"),
        (lambda path: _change(path, version=99), "version 99"),
        (lambda path: _change(path, settings={}), "incomplete"),
        (lambda path: _change(path, families=[{"axes": {}}]), "incomplete"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    path = tmp_path / "one.safetensors"
    Predictor([line()]).save(path)
    change(path)
    with pytest.raises(ValueError, match=message):
        Predictor.load(path)


def test_a_missing_file_says_what_ships(tmp_path):
    with pytest.raises(FileNotFoundError, match="default"):
        Predictor.load(tmp_path / "none.safetensors")
