"""`metafast schedule`: meta-train, twice and with wrong options; show."""

import json
import re

import pytest
from typer.testing import CliRunner

from metafast.cli import build_app
from metafast.schedule import LRController, _meta_train
from tests.schedule.cases import task

pytest.importorskip("datasets")
pytest.importorskip("PIL")


def call(*arguments):
    return CliRunner().invoke(build_app("schedule"), ["schedule", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(_meta_train, "training_suite", lambda: [task("a")])
    monkeypatch.setattr(_meta_train, "validation_suite", lambda: [task("b", seed=1)])


def test_trains_and_goes_on(toys, tmp_path):
    first = call("meta-train", "--updates", 1, "--output", tmp_path / "out")
    assert first.exit_code == 0, first.output
    assert "Kept update" in words(first)
    one = LRController.load(tmp_path / "out" / "controller.safetensors")
    assert one.record["updates"] == 1
    second = call("meta-train", "--updates", 2, "--output", tmp_path / "out")
    assert second.exit_code == 0, second.output
    assert LRController.load(tmp_path / "out" / "controller.safetensors").record["updates"] == 2
    assert (tmp_path / "out" / "curve.png").exists()
    other = call("meta-train", "--updates", 2, "--method", "truncated", "--output", tmp_path / "out")
    assert other.exit_code == 2
    assert "other settings" in words(other)


def test_wrong_options(toys, tmp_path):
    wrong = call("meta-train", "--budget", "soon", "--output", tmp_path)
    assert wrong.exit_code == 2
    assert '"20min"' in words(wrong)
    (tmp_path / "file").write_text("x")
    wrong = call("meta-train", "--output", tmp_path / "file")
    assert wrong.exit_code == 2
    assert "cannot be written" in words(wrong)


def test_show(tmp_path):
    shown = call("show")
    assert shown.exit_code == 0
    assert json.loads(shown.output)["interval"] == 10
    missing = call("show", tmp_path / "none.safetensors")
    assert missing.exit_code == 2
    assert "no controller" in words(missing)


@pytest.mark.parametrize("command", ["", "meta-train", "show"])
def test_help(command):
    told = call(*filter(None, [command]), "--help")
    assert told.exit_code == 0
    assert "Usage" in told.output
