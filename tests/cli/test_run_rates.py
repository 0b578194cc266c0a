"""`metafast run lr-adaptation`: the whole with a tiny recipe, with more seeds, and with wrong options."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("datasets", reason="the datasets package is not installed")
pytest.importorskip("transformers", reason="the transformers package is not installed")

from metafast.cli import build_app
from metafast.experiments import lr_adaptation as rates
from metafast.runs import list_runs
from tests.experiments.lr_adaptation_cases import TINY, Controller, make_data, use


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    make_data(tmp_path / "data")
    use(monkeypatch, tmp_path / "data")
    monkeypatch.setattr(
        "metafast.experiments.lr_adaptation._controller.adapt", lambda setup, parts, seed: Controller(1 / 1.2)
    )
    monkeypatch.setitem(rates.RECIPES, "smoke", TINY)
    return tmp_path / "data"


def call(*arguments):
    return CliRunner().invoke(build_app("run"), ["run", "lr-adaptation", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


def test_two_pairs_and_then_more_seeds(tiny, tmp_path):
    shutil.rmtree(tiny / "fashion_mnist")
    output = tmp_path / "out"
    first = call("--seeds", 1, "--workers", 1, "--output", output)
    assert first.exit_code == 0, first.output
    assert "fashion_mnist/resnet18 is left out" in words(first) and "MNIST, MLP 14 of 14" in words(first)
    assert "not judged (pairs are missing)" in words(first)
    count = len(list_runs(output / "runs", status="finished", tags=["lr-adaptation"]))
    for stem in ("imdb-gru_loss", "imdb-gru_rates", "imdb-gru_layers", "mnist-mlp_sweep"):
        for ending in ("png", "svg"):
            assert (output / f"{stem}.{ending}").stat().st_size > 5_000
    page = (output / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing outside the file
    assert "a few steps." in page and "fashion_mnist/resnet18 is left out" in page
    assert "None of the data sets and none of the kinds of models of the held-out pairs" in page

    before = json.loads((output / "results.json").read_text())
    second = call("--seeds", 2, "--workers", 1, "--only", "imdb/gru", "--output", output)
    assert second.exit_code == 0, second.output
    after = json.loads((output / "results.json").read_text())
    rows = {row["training"]: row for row in after["rows"]}
    assert all(rows[row["training"]]["test_accuracy"] == row["test_accuracy"] for row in before["rows"])
    assert len(after["rows"]) == 2 * len(before["rows"]) and "±" in (output / "report.html").read_text()
    assert len(list_runs(output / "runs", status="finished")) > count


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("metafast.experiments._running.run_all", interrupt)
    result = call("--only", "imdb/gru", "--seed", 3, "--output", tmp_path / "out")
    assert result.exit_code == 130
    go_on = "go on with: metafast run lr-adaptation --recipe smoke --only imdb/gru --seed 3 --output"
    assert go_on in words(result)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "huge"], "'huge' is not one of"),
        (["--only", "mnist/gpt"], "'mnist/gpt' is not one of"),
        (["--device", "tpu"], "device must be cpu or cuda"),
    ],
)
def test_wrong_options(tiny, tmp_path, arguments, text):
    result = call(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert text in words(result)
    assert not (tmp_path / "out" / "runs").exists()


def test_without_data_nothing_is_trained(tiny, tmp_path):
    shutil.rmtree(tiny / "imdb")
    result = call("--only", "imdb/gru", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "no data for any of the pairs" in words(result)
    assert not (tmp_path / "out" / "runs").exists()


def test_without_a_controller_it_says_so(tiny, tmp_path, monkeypatch):
    def broken():
        raise ValueError("controller.safetensors is cut off")

    monkeypatch.setattr("metafast.experiments.lr_adaptation._controller.load", broken)
    result = call("--output", tmp_path / "out")
    assert result.exit_code == 1 and "cannot be loaded: controller.safetensors is cut off" in words(result)


def test_help_lists_the_experiment():
    result = CliRunner().invoke(build_app("run"), ["run", "--help"])
    assert result.exit_code == 0 and "lr-adaptation" in result.output
