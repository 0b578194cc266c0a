"""`metafast run rapid-adaptation`: the whole with a tiny recipe, again, interrupted, and with wrong options."""

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
from metafast.experiments import rapid_adaptation as adaptation
from metafast.runs import list_runs
from tests.experiments.rapid_adaptation_cases import TINY, use


@pytest.fixture
def tiny(monkeypatch):
    use(monkeypatch)
    monkeypatch.setitem(adaptation.RECIPES, "smoke", TINY)


def call(*arguments):
    return CliRunner().invoke(build_app("run"), ["run", "rapid-adaptation", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


def test_one_data_set_and_again(tiny, tmp_path, monkeypatch):
    output = tmp_path / "out"
    first = call("--only", "omniglot", "--seeds", 1, "--workers", 1, "--output", output)
    assert first.exit_code == 0, first.output
    assert "meta-network" in first.output and "not judged (its data set is missing)" in words(first)
    count = len(list_runs(output / "runs", status="finished", tags=["rapid-adaptation"]))
    assert count == 1 + 6 + 3 + 14 + 1  # backbone, rates, meta-trainings, tests, clock
    for stem in ("accuracy", "course", "time"):
        for ending in ("png", "svg"):
            assert (output / f"omniglot_{stem}.{ending}").stat().st_size > 5_000
    page = (output / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing outside the file
    assert "a few steps." in page and "--only omniglot --seeds 1" in page

    before = json.loads((output / "results.json").read_text())
    experiments.main(["rapid-adaptation", str(output), "--output", str(tmp_path)])
    kept = json.loads((tmp_path / "rapid_adaptation.json").read_text())
    assert kept["summaries"] == before["summaries"] and kept["machine"]
    assert (tmp_path / "rapid_adaptation_omniglot_course.png").stat().st_size > 5_000
    monkeypatch.setattr(
        "metafast.plots.save", lambda plot, stem: [output / f"{stem.name}.{end}" for end in ("png", "svg")]
    )
    second = call("--only", "omniglot", "--seeds", 1, "--workers", 1, "--output", output)
    assert second.exit_code == 0, second.output
    assert json.loads((output / "results.json").read_text()) == before


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("metafast.experiments._running.run_all", interrupt)
    result = call("--only", "fewrel", "--seed", 3, "--backbone", "fewrel=text", "--output", tmp_path / "out")
    assert result.exit_code == 130
    go_on = "go on with: metafast run rapid-adaptation --recipe smoke --only fewrel --seed 3 --output"
    assert go_on in words(result) and words(result).endswith("--backbone fewrel=text")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "huge"], "'huge' is not one of"),
        (["--only", "squad"], "'squad' is not one of omniglot, fewrel"),
        (["--seeds", "0"], "--seeds"),
        (["--device", "tpu"], "device must be cpu or cuda"),
        (["--backbone", "bert"], "must be DATASET=MODEL with one of omniglot, fewrel, got 'bert'"),
    ],
)
def test_wrong_options(tiny, tmp_path, arguments, text):
    result = call(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert text in words(result)
    assert not (tmp_path / "out" / "runs").exists()


def test_another_seed_needs_another_folder(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    adaptation.check_folder(adaptation.Plan(TINY, ("fewrel",), 0), tmp_path / "out")
    result = call("--seed", 1, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "seed 0, not 1; give the same options or another folder" in words(result)


def test_missing_data_are_named_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    def nowhere(*arguments):
        raise DatasetNotFoundError("data set 'digits' was not found. Tried: ...")

    monkeypatch.setattr("metafast.experiments.rapid_adaptation._tasks.all_classes", nowhere)
    result = call("--output", tmp_path / "out")
    assert result.exit_code == 2 and "Letters cannot be run" in words(result)
    assert not (tmp_path / "out" / "runs").exists()
