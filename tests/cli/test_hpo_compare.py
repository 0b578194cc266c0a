"""`metafast hpo compare`: tables and studies of one's own, and wrong options."""

import csv
import json
import re

import pytest
from typer.testing import CliRunner

pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("cmaes", reason="cmaes is not installed")

import optuna

from metafast.cli import build_app
from metafast.experiments import hp_prediction as prediction
from metafast.hpo import Predictor

TASKS = [table.task for table in prediction.tables("made", None)]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A predictor that knows all of the tasks."""
    file = tmp_path_factory.mktemp("known") / "predictor.safetensors"
    Predictor(TASKS).save(file)
    return file


def call(*arguments):
    result = CliRunner().invoke(build_app("hpo"), ["hpo", "compare", *map(str, arguments)])
    return result, " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


def sheet(task, file):
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [*task.configs[0], "accuracy"])
        writer.writeheader()
        writer.writerows(
            {**config, "accuracy": value} for config, value in zip(task.configs, task.final.tolist(), strict=True)
        )
    return file


def test_two_tables_learn_from_each_other(known, tmp_path):
    files = [sheet(task, tmp_path / f"task{number}.csv") for number, task in enumerate((TASKS[0], TASKS[-1]))]
    output = tmp_path / "found.json"
    options = [f"--csv={file}" for file in files] + ["--score", "accuracy", "--predictor", known, "--output", output]
    result, text = call(
        *options, "--runs", 4, "--seeds", 1, "--method", "ours", "--method", "rgpe", "--method", "random"
    )
    assert result.exit_code == 0, result.output
    assert "Your tables (2 tasks, 2 data sets)" in text and "RGPE" in text and "random search" in text
    found = json.loads(output.read_text())
    assert {(row["method"], len(row["tried"])) for row in found["rows"]} == {("ours", 4), ("rgpe", 4), ("random", 4)}


def test_a_study_alone(known, tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    study = optuna.create_study(storage=storage, study_name="mine", direction="maximize")
    study.optimize(lambda trial: -((trial.suggest_float("lr", 1e-4, 1.0, log=True) - 0.1) ** 2), n_trials=6)
    options = ["--study", "mine", "--storage", storage, "--predictor", known, "--seeds", 1, "--runs", 50]
    result, text = call(*options, "--method", "ours", "--method", "tpe", "--method", "zero_shot")
    assert result.exit_code == 0, result.output
    assert " 5 " in text and " 10 " not in text and "TPE" in text  # no more runs than there are
    assert "zero-shot list is left out: there is no other data set to learn from" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to compare on; give --table, --csv with --score, or --study"),
        (["--csv", "a.csv"], "--csv needs --score"),
        (["--study", "mine"], "--study needs --storage"),
        (["--study", "mine", "--storage", "sqlite:///nothing.db"], "has no study 'mine'"),
        (["--predictor", "nowhere.safetensors"], "nothing to compare on"),
    ],
)
def test_wrong_options_say_what_is_right(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, text = call(*options)
    assert result.exit_code == 2 and message in text


def test_unknown_methods_say_which_there_are(known):
    with pytest.raises(ValueError, match=r"methods must be of \['ours'.*got \['portfolio'\]"):
        prediction.compare(TASKS, Predictor.load(known), ["portfolio"])
    with pytest.raises(ValueError, match="at least one task"):
        prediction.compare([], Predictor.load(known))


def test_nothing_is_known_of_the_tasks_own_data_set(known, monkeypatch):
    seen = []

    def watched(make, table, sources, seed, runs):
        seen.append((table.task.dataset, make.keywords["predictor"].tasks))
        return prediction.replay(make, table, sources, seed, runs)

    monkeypatch.setattr("metafast.experiments.hp_prediction._compare.replay", watched)
    prediction.compare(TASKS[:4], Predictor.load(known), ["ours"], runs=1)
    assert len(seen) == 4
    assert all(not any(name.startswith(dataset) for name in tasks) and tasks for dataset, tasks in seen)
