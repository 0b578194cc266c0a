"""`metafast demo`: runs, writes, resumes to the same numbers, and says what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="the demo extra is not installed")
pytest.importorskip("sklearn", reason="the demo extra is not installed")

from metafast import _trainings
from metafast.cli import _demo_report, _demo_train, build_app
from metafast.runs import Run, list_runs

METRICS = ("loss", "val_accuracy", "test_accuracy")


@pytest.fixture
def small(monkeypatch):
    """Trainings of one epoch, so that the whole demo takes seconds."""
    monkeypatch.delenv("METAFAST_DATA", raising=False)
    setup = _demo_train.SETUPS["digits"]
    tiny = _demo_train.Setup(**{**vars(setup), "epochs": 1, "quick_epochs": 1})
    monkeypatch.setitem(_demo_train.SETUPS, "digits", tiny)


def call(*arguments):
    return CliRunner().invoke(build_app("demo"), ["demo", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


def numbers(root):
    return {run.name: [run.curve(metric).values.tolist() for metric in METRICS] for run in list_runs(root)}


def test_the_whole_demo_twice(small, tmp_path):
    first = call("--output", tmp_path, "--jobs", 1, "--seed", 3)
    assert first.exit_code == 0, first.output
    for text in ("Fashion-MNIST is left out", "steps to", "ms per", "Within 1 point of the best fixed rate"):
        assert text in words(first)
    assert str(tmp_path / "report.html") in first.output.replace("\n", "")
    runs = list_runs(tmp_path / "runs" / "demo-001", status="finished", tags=["demo"], seed=3)
    assert len(runs) == 21
    assert {run.config["method"] for run in runs} == set(_demo_train.METHODS)
    for stem in ("accuracy", "loss", "rate"):
        for ending in ("png", "svg"):
            assert (tmp_path / f"digits_{stem}.{ending}").stat().st_size > 10_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["results"]) == 21
    assert results["versions"]["torch"] == torch.__version__

    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing outside the file
    for text in ("metafast demo --seed 3", "One seed", "2.13" if torch.__version__.startswith("2.13") else "torch"):
        assert text in page

    second = call("--output", tmp_path, "--jobs", 1, "--seed", 3)
    assert second.exit_code == 0, second.output
    assert numbers(tmp_path / "runs" / "demo-001") == numbers(tmp_path / "runs" / "demo-002")


def test_kill_9_and_another_number_of_processes_give_the_same_numbers(tmp_path):
    """Two processes, killed outright in the middle, then one process to the end: as if nothing had happened."""
    tasks = [_demo_train.Task("digits", method, 1e-2, 0, 5) for method in _demo_train.METHODS]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom metafast import _trainings\nfrom metafast.cli import _demo_train\n"
        "if __name__ == '__main__':\n"
        "    tasks = [_demo_train.Task('digits', method, 1e-2, 0, 5) for method in _demo_train.METHODS]\n"
        "    _trainings.run_all(tasks, _demo_train.train, Path(sys.argv[1]), 2, lambda task, step: None)\n"
    )
    log, session = tmp_path / "log", tmp_path / "killed"
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        victim = subprocess.Popen([sys.executable, script, session], env=environment, stdout=file, stderr=file)
    deadline = time.time() + 100
    while not list(session.glob("*/checkpoints/*.json")):
        assert victim.poll() is None, log.read_text()
        assert time.time() < deadline, "no checkpoint"
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    while list_runs(session, status="running"):
        assert time.time() < deadline, "a worker outlived the demo"
        time.sleep(0.02)
    assert list_runs(session, status="killed")

    _trainings.run_all(tasks, _demo_train.train, session, 1, lambda task, step: None)
    _trainings.run_all(tasks, _demo_train.train, tmp_path / "whole", 1, lambda task, step: None)
    assert len(list_runs(session, status="finished")) == 3
    assert numbers(session) == numbers(tmp_path / "whole")


def test_a_stopped_training_goes_on_bit_for_bit(small, tmp_path):
    task = _demo_train.Task("digits", "cosine", 1e-2, 0, 2)
    _demo_train.train(task, tmp_path / "whole", lambda step: None, lambda: False)
    seen = []
    with pytest.raises(_trainings.StoppedError):
        _demo_train.train(task, tmp_path / "parts", seen.append, lambda: len(seen) > 7)
    assert Run.open(tmp_path / "parts" / task.name).status == "killed"
    _demo_train.train(task, tmp_path / "parts", seen.append, lambda: False)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert seen[-1] == _demo_train.steps_of(task)
    _demo_train.train(task, tmp_path / "parts", seen.append, lambda: pytest.fail("a finished run is not trained"))


def test_ctrl_c_says_how_to_go_on(small, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_trainings, "run_all", interrupt)
    result = call("--output", tmp_path)
    assert result.exit_code == 130
    assert f"metafast demo --resume --output {tmp_path}" in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--jobs", "-1"], "--jobs"),
        (["--data", "cifar"], "--data"),
        (["--resume"], "nothing to go on with"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_options(small, tmp_path, arguments, text):
    result = call("--output", tmp_path, *arguments)
    assert result.exit_code == 2
    assert text in words(result)
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_a_file(small, tmp_path):
    (tmp_path / "file").touch()
    result = call("--output", tmp_path / "file")
    assert result.exit_code == 2
    assert "cannot be written to" in words(result)


def test_resume_with_other_options_names_them(small, tmp_path):
    session = tmp_path / "runs" / "demo-001"
    session.mkdir(parents=True)
    (session / "demo.json").write_text(json.dumps({"seed": 0, "quick": False, "data": ["digits"]}))
    result = call("--output", tmp_path, "--resume", "--seed", 5)
    assert result.exit_code == 2
    assert "seed 0, not 5" in words(result)


def test_data_that_is_missing_is_a_clear_error(small, tmp_path, monkeypatch):
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    (tmp_path / "fashion_mnist").mkdir()
    (tmp_path / "fashion_mnist" / "other.parquet").touch()
    result = call("--output", tmp_path / "out", "--data", "fashion_mnist")
    assert result.exit_code == 2
    assert "no split 'train'" in words(result)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = call("--output", tmp_path)
    assert result.exit_code == 1
    assert "pip install 'metafast[demo]'" in result.output


def test_the_summary_counts_what_the_rows_say():
    accuracy = {
        "fixed": [0.1, 0.5, 0.97, 0.98, 0.9, 0.1, 0.1],
        "hypergradient": [0.97] * 6 + [0.5],
        "cosine": [0.1] * 6 + [0.99],
    }
    rows = [
        {"data": "digits", "method": m, "rate": r, "test_accuracy": a, "steps_to_threshold": None, "ms_per_step": 1.0}
        for m, values in accuracy.items()
        for r, a in zip(_demo_train.RATES, values, strict=True)
    ]
    text = _demo_report.summary("digits", rows)
    assert "97.0 to" not in text
    assert "50.0 to 97.0 % with the hypergradient, 10.0 to 98.0 % with a fixed rate" in text
    assert (
        "best fixed rate (98.0 %): 6 of 7 with the hypergradient, 2 with a fixed rate, 1 with the cosine schedule"
        in text
    )
    assert "The best accuracy, 99.0 %, is that of AdamW, cosine schedule from 1." in text
    assert "Starting from 1 the hypergradient run ends more than 5 points below" in text


def test_nothing_to_train_needs_no_process(tmp_path):
    _trainings.run_all([], _demo_train.train, tmp_path, 2, lambda task, step: None)
