"""The meta-data set: its tasks, its records, the file they are packed into, and what is not lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from metafast.cli import build_app
from metafast.experiments._running import is_finished
from metafast.hpo import _grid_data, _grid_tasks, batched_train, load_tasks, pack_tasks
from metafast.hpo._collect import cells, collect, features_of, grid
from metafast.runs import Run
from tests.hpo import grid_case


@pytest.fixture
def toy(monkeypatch):
    grid_case.install(monkeypatch.setattr)


def collected(root):
    seen = []
    collect(root, grid_case.tasks(), 0, 1, lambda cell, step: seen.append(cell.folder.name))
    return seen


def test_records_file_and_tasks_say_the_same(toy, tmp_path):
    assert len(grid()) == 8 and len(cells(grid_case.tasks(), 0)) == 4
    assert len(collected(tmp_path / "all")) == 4
    tasks = load_tasks(tmp_path / "all")
    assert pack_tasks(tmp_path / "all", tmp_path / "tasks.safetensors") == 2
    packed = load_tasks(tmp_path / "tasks.safetensors")
    for task, twin in zip(tasks, packed, strict=True):
        assert task.curves.shape == (8, 8) and task.configs == grid() and task.space.size == 8
        assert np.array_equal(task.curves, twin.curves) and np.array_equal(task.seconds, twin.seconds)
        assert (task.name, task.metric, task.reference, task.features) == (
            twin.name, twin.metric, twin.reference, twin.features,
        )  # fmt: skip
        assert task.features["modality_table"] == 1.0 and task.features == features_of(
            next(t for t in grid_case.tasks() if t.name == task.name)
        )
    parts = grid_case.parts(0)
    alone = batched_train(
        lambda config: grid_case.build(parts, config), [grid()[5]], parts.train, parts.val, epochs=8, test=parts.test
    )
    np.testing.assert_allclose(tasks[0].curves[5], alone.scores[0], atol=0.07)  # one example, where rounding decides
    test = load_tasks(tmp_path / "all", scores="test")
    assert test[0].curves.shape == (8, 1) and test[0].final[5] == pytest.approx(alone.test_scores[0], abs=0.07)


def test_what_is_done_is_not_done_again_and_half_records_are(toy, tmp_path):
    collected(tmp_path)
    cell = cells(grid_case.tasks(), 0)[1]
    log = tmp_path / cell.folder / "run.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))  # as a kill leaves it
    assert not is_finished(tmp_path / cell.folder) and len(load_tasks(tmp_path)) == 1
    before = load_tasks(tmp_path)
    assert collected(tmp_path) == [cell.folder.name]
    assert Run.open(tmp_path / cell.folder).status == "finished" and len(load_tasks(tmp_path)) == 2
    assert collected(tmp_path) == []
    assert np.array_equal(load_tasks(tmp_path)[1].curves, before[0].curves)


def test_a_killed_collection_goes_on(tmp_path):
    script = Path(__file__).with_name("collect_and_die.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path, "0"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["kills"] >= 1


def test_wrong_places_and_files(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tasks(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="scores must be one of"):
        load_tasks(tmp_path, scores="train")
    with pytest.raises(ValueError, match="no task whose grid is whole"):
        pack_tasks(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        load_tasks(tmp_path / "bad.safetensors")


def test_a_file_of_another_grid_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        grid_case.install(patch.setattr)
        collected(tmp_path / "toy")
        pack_tasks(tmp_path / "toy", tmp_path / "tasks.safetensors")
    with pytest.raises(ValueError, match="another grid"):
        load_tasks(tmp_path / "tasks.safetensors")


def test_the_real_grid_and_tasks():
    assert len(grid()) == 486
    tasks = _grid_tasks.grid_tasks()
    assert len(tasks) >= 24 and len({t.dataset for t in tasks}) >= 8 and len({t.name for t in tasks}) == len(tasks)
    assert {t.name.split("/")[1] for t in tasks} == {"mlp", "cnn", "rnn", "transformer", "lstm", "deep_speech"}
    assert {t.metric for t in tasks} == {"accuracy", "mse", "wer"}
    assert all(t.epochs % _grid_tasks.POINTS == 0 for t in tasks)


@pytest.mark.parametrize("name", ["mnist/cnn", "few_rel/rnn", "ett_etth2/lstm", "free_spoken_digit/deep_speech"])
def test_parts_are_disjoint_and_models_fit_them(name, data_folder):
    task = next(t for t in _grid_tasks.grid_tasks() if t.name == name)
    data_folder(task.dataset)
    parts = task.parts()
    rows = [{tuple(x.flatten().tolist()) for x in part.inputs} for part in (parts.train, parts.val, parts.test)]
    if task.modality != "series":  # windows of series overlap in their pasts, and are split by time
        assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    model = task.build(parts, {"layers": 2, "width": 64, "dropout": 0.1})
    done = batched_train(
        lambda config: model, [{"lr": 0.01}], (parts.train.inputs[:8], parts.train.targets[:8]),
        (parts.val.inputs[:8], parts.val.targets[:8]), epochs=1, loss=task.loss, metric=task.measure,
    )  # fmt: skip
    assert np.isfinite(done.scores).all()
    worst = task.measure if callable(task.measure) else None
    assert parts.reference > 0 and (worst is None or parts.reference == 1.0)


def test_read_speech_and_hub_series_from_local_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    for split, texts in (("train.100", ["A CAT", "IT'S"]), ("validation", ["A DOG SAT"]), ("test", ["NO"])):
        rows = [
            {"audio": {"array": (1000 * torch.randn(16000, generator=generator)).tolist(), "sampling_rate": 16000},
             "text": text} for text in texts
        ]  # fmt: skip
        (tmp_path / "librispeech").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "librispeech" / f"{split}.parquet")
    parts = _grid_data.read_speech("librispeech", 2, 1)
    assert parts.train.inputs.shape == (2, 256, 16) and parts.val.targets.shape == (1, 9)
    assert parts.train.targets[0].tolist() == [2, 1, 4, 2, 21, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="has 2 utterances"):
        _grid_data.read_speech("librispeech", 3, 1)

    task = next(t for t in _grid_tasks.hub_tasks() if t.name == "librispeech/deep_speech")
    model = task.build(parts, {"layers": 1, "width": 16, "dropout": 0.0})
    out = model(parts.val.inputs)
    assert out.shape == (1, 86, 29) and _grid_tasks.ctc(out, parts.val.targets).isfinite().all()
    spelled = torch.eye(29)[torch.tensor([[2, 0, 1, 5, 16, 8, 1, 21, 2, 21]])]  # "a dog tat"
    assert _grid_tasks.spelled_wer(spelled, parts.val.targets) == pytest.approx(1 / 3)

    loads = [{"id": str(i), "target": torch.sin(torch.arange(1500) / (3.0 + i)).tolist()} for i in range(3)]
    (tmp_path / "electricity").mkdir()
    datasets.Dataset.from_list(loads).to_parquet(tmp_path / "electricity" / "train.parquet")
    series = next(t for t in _grid_tasks.hub_tasks() if t.name == "electricity/lstm").parts()
    assert series.train.inputs.shape == (600, 24) and series.train.targets.shape == (600, 6)


def test_the_command_collects_packs_and_goes_on(toy, tmp_path, monkeypatch):
    from metafast.cli import _hpo_collect

    for name, value in (("grid_tasks", grid_case.tasks), ("hub_tasks", list), ("GRID", grid_case.GRID)):
        monkeypatch.setattr(_hpo_collect, name, value)
    runner = CliRunner()
    call = ["hpo", "collect", "--output", str(tmp_path), "--workers", "1"]
    first = runner.invoke(build_app("hpo"), [*call, "--task", "toy0/mlp"])
    assert first.exit_code == 0 and "1 tasks" in first.output and len(load_tasks(tmp_path / "tasks.safetensors")) == 1
    second = runner.invoke(build_app("hpo"), call)
    assert second.exit_code == 0 and "2 of 4 programs done before" in second.output
    assert len(load_tasks(tmp_path / "tasks.safetensors")) == 2
    for more, message in ((["--task", "toy7/mlp"], "there is no task toy7/mlp"), (["--seed", "1"], "seed")):
        wrong = runner.invoke(build_app("hpo"), [*call, *more])
        assert wrong.exit_code == 2 and message in " ".join(wrong.output.split())
    cell = cells(grid_case.tasks(), 0)[0]
    held = Run.resume(tmp_path / cell.folder)  # as another collection that is at it
    held.restore(rng=False)
    busy = runner.invoke(build_app("hpo"), call)
    held.close()
    assert busy.exit_code == 2 and "being written by another process" in " ".join(busy.output.replace("│", " ").split())
