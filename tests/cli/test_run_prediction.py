"""`metafast run hp-prediction`: the whole with a tiny recipe, again, with more seeds, and with wrong options."""

import json
import re

import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("cmaes", reason="cmaes is not installed")

from benchmarks import experiments, hpo_page
from metafast.cli import build_app
from metafast.experiments import hp_prediction as prediction
from metafast.runs import list_runs

WITHOUT = ("gp", "ours_cost", "rgpe", "cma_es")
TINY = prediction.Recipe("smoke", 1, 3, {"made": prediction.Suite(2, 2, without=WITHOUT)}, "tiny.")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(prediction.RECIPES, "smoke", TINY)


def call(*arguments):
    return CliRunner().invoke(build_app("run"), ["run", "hp-prediction", *map(str, arguments)])


def test_the_command_and_then_more_seeds(tmp_path):
    output = tmp_path / "out"
    first = call("--workers", 1, "--output", output)
    assert first.exit_code == 0, first.output
    assert "predictor" in first.output and "random search" in first.output and "not judged" in first.output
    page = (output / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing outside the file
    before = json.loads((output / "results.json").read_text())
    count = len(list_runs(output / "runs", status="finished"))
    second = call("--workers", 1, "--seeds", 2, "--output", output)
    assert second.exit_code == 0, second.output
    assert len(list_runs(output / "runs", status="finished")) > count
    after = json.loads((output / "results.json").read_text())
    assert [row for row in after["rows"] if row["seed"] == 0] == before["rows"]

    experiments.main(["hp-prediction", str(output), "--output", str(tmp_path)])
    kept = json.loads((tmp_path / "hp_prediction.json").read_text())
    assert kept["benchmark"] == "hp_prediction" and kept["summaries"] == after["summaries"]
    assert (tmp_path / "hp_prediction_regret.png").stat().st_size > 5_000
    text = hpo_page.filled(hpo_page.PAGE.read_text(), kept)
    assert "| predictor | 0." in text and text.count("not judged") == len(kept["verdicts"])
    assert hpo_page.filled(text, kept) == text


def test_the_page_says_what_the_committed_results_say():
    if not hpo_page.RESULTS.exists():
        pytest.skip("there are no committed results")
    page = hpo_page.PAGE.read_text()
    assert hpo_page.filled(page, json.loads(hpo_page.RESULTS.read_text())) == page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "tasket"], "'tasket' is not one of made"),
        (["--recipe", "reduced", "--only", "collected"], "there are no tables of any suite"),
        (["--recipe", "huge"], "Invalid value for '--recipe'"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_wrong_options_say_what_is_right(options, message, tmp_path):
    result = call(*options, "--output", tmp_path / "out")
    assert result.exit_code == 2
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())
    assert message in text
