"""`metafast hpo`: fit and suggest."""

import json

import pytest
from typer.testing import CliRunner

from metafast.cli import build_app
from metafast.hpo import Predictor, synthetic_tasks


def run(*arguments):
    return CliRunner().invoke(build_app("hpo"), ["hpo", *map(str, arguments)])


def test_suggests_from_files(tmp_path):
    (tmp_path / "space.json").write_text(
        '{"lr": {"low": 0.0001, "high": 0.1, "log": true}, "layers": [2, 3], "width": {"low": 8, "high": 64}}'
    )
    observed = [
        {"config": {"lr": 0.01, "layers": 2, "width": 9}, "score": 0.5},
        {"config": {"lr": 0.1, "layers": 3, "width": 8}, "score": None},
    ]
    (tmp_path / "runs.json").write_text(json.dumps(observed))
    Predictor(synthetic_tasks(3)).save(tmp_path / "known.safetensors")
    made = run(
        "suggest",
        "--space",
        tmp_path / "space.json",
        "--observed",
        tmp_path / "runs.json",
        "--predictor",
        tmp_path / "known.safetensors",
    )
    assert made.exit_code == 0, made.output
    found = json.loads(made.output)
    assert 1e-4 <= found["config"]["lr"] <= 0.1 and isinstance(found["config"]["width"], int)
    assert found["source"] == "portfolio" and found["interval"][0] < found["expected"] < found["interval"][1]


@pytest.mark.parametrize(
    ("space", "runs", "message"),
    [
        ("[1]", "[]", "must be a JSON object"),
        ("{", "[]", "is no JSON"),
        ('{"lr": {"low": 1}}', "[]", "lr must be a list"),
        ('{"lr": [1, 2]}', '[{"config": {"lr": 3}, "score": 1}]', "lr must be"),
        ('{"lr": [1, 2]}', '[{"score": 1}]', "an observation must be"),
    ],
)
def test_bad_files_are_named(tmp_path, space, runs, message):
    (tmp_path / "space.json").write_text(space)
    (tmp_path / "runs.json").write_text(runs)
    made = run("suggest", "--space", tmp_path / "space.json", "--observed", tmp_path / "runs.json")
    assert made.exit_code == 2
    assert message in " ".join(made.output.replace("│", " ").split())


def test_fits_nothing_with_an_error(tmp_path):
    made = run("fit", "--no-external", "--output", tmp_path / "one.safetensors")
    assert made.exit_code == 2
    assert not (tmp_path / "one.safetensors").exists()
