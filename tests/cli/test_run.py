"""`metafast run online-tuning`: the whole with a tiny recipe, again, interrupted, and with wrong options."""

import json
import re

import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("datasets", reason="the datasets package is not installed")
pytest.importorskip("transformers", reason="the transformers package is not installed")

from benchmarks import experiments
from metafast.cli import build_app
from metafast.data import DatasetNotFoundError
from metafast.experiments import online_tuning as tuning
from metafast.runs import list_runs
from tests.experiments.online_tuning_cases import TINY, make_data, use


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    make_data(tmp_path / "data")
    use(monkeypatch, tmp_path / "data")
    monkeypatch.setitem(tuning.RECIPES, "smoke", TINY)


def call(*arguments):
    return CliRunner().invoke(build_app("run"), ["run", "online-tuning", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


def test_one_experiment_and_then_more_seeds(tiny, tmp_path):
    output = tmp_path / "out"
    first = call("--only", "lstm", "--seeds", 1, "--workers", 1, "--output", output)
    assert first.exit_code == 0, first.output
    assert "LSTM on electricity load 9 of 9" in words(first) and "seasonal naive" in first.output
    assert "not judged (an experiment is missing)" in words(first)
    assert len(list_runs(output / "runs", status="finished", tags=["online-tuning"])) == 9
    for stem in ("cost", "lstm_validation", "lstm_tuned_batch", "lstm_tuned_epoch"):
        for ending in ("png", "svg"):
            assert (output / f"{stem}.{ending}").stat().st_size > 5_000
    page = (output / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing outside the file
    assert "a few steps." in page and "--only lstm --seeds 1" in page

    before = json.loads((output / "results.json").read_text())
    experiments.main(["online-tuning", str(output), "--output", str(tmp_path)])
    kept = json.loads((tmp_path / "online_tuning.json").read_text())
    assert kept["rows"] == before["rows"] and kept["benchmark"] == "online_tuning" and kept["machine"]
    assert (tmp_path / "online_tuning.png").stat().st_size > 5_000
    second = call("--only", "lstm", "--seeds", 2, "--workers", 1, "--output", output)
    assert second.exit_code == 0, second.output
    after = json.loads((output / "results.json").read_text())
    rows = {(row["experiment"], row["method"], row["seed"]): row for row in after["rows"]}
    assert all(rows[row["experiment"], row["method"], row["seed"]] == row for row in before["rows"])
    assert len(after["rows"]) == 2 * len(tuning.METHODS)


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("metafast.experiments._running.run_all", interrupt)
    result = call("--only", "bert", "--seed", 3, "--output", tmp_path / "out")
    assert result.exit_code == 130
    go_on = "go on with: metafast run online-tuning --recipe smoke --only bert --seed 3 --output"
    assert go_on in words(result)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "huge"], "'huge' is not one of"),
        (["--only", "gpt"], "'gpt' is not one of"),
        (["--seeds", "0"], "--seeds"),
        (["--device", "tpu"], "device must be cpu or cuda"),
    ],
)
def test_wrong_options(tiny, tmp_path, arguments, text):
    result = call(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert text in words(result)
    assert not (tmp_path / "out" / "runs").exists()


def test_another_seed_needs_another_folder(tiny, tmp_path):
    plan = tuning.Plan(TINY, ("lstm",), 0)
    (tmp_path / "out").mkdir()
    tuning.check_folder(plan, tmp_path / "out")
    result = call("--seed", 1, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "seed 0, not 1; give the same options or another folder" in words(result)


def test_missing_data_are_named_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    def nowhere(*arguments):
        raise DatasetNotFoundError("data set 'ett' was not found. Tried: ...")

    monkeypatch.setattr("metafast.experiments.online_tuning._tasks.load_series", nowhere)
    result = call("--only", "lstm", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "LSTM on electricity load cannot be run" in words(result)
    assert not (tmp_path / "out" / "runs").exists()


def test_help_lists_the_experiment():
    result = CliRunner().invoke(build_app("run"), ["run", "--help"])
    assert result.exit_code == 0 and "online-tuning" in result.output
