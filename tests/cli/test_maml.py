"""`metafast maml`: train, eval, adapt, transfer; twice, resumed, and with wrong options."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from metafast.cli import _maml_setup, _maml_transfer, _maml_use, build_app
from metafast.data import DatasetNotFoundError
from metafast.maml import ALGORITHMS, trainer
from metafast.runs import Run

SMALL = (
    "--dataset sinusoid --shots 5 --queries 5 --tasks 4 --iterations 6 --val-every 3 --val-episodes 8 "
    "--test-episodes 8 --baseline-steps 5"
).split()


TRAIN = ["train", *SMALL]


def call(*arguments):
    return CliRunner().invoke(build_app("maml"), ["maml", *map(str, arguments)])


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maml")
    result = call("train", *SMALL, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder / "runs" / "sinusoid-5s-maml-seed0-001", result


@pytest.mark.parametrize("command", ["", "train", "eval", "adapt", "transfer"])
def test_help_of_each_command(command):
    result = call(*filter(None, [command]), "--help")
    assert result.exit_code == 0 and "--help" in words(result)


def test_help_lists_maml_without_loading_torch():
    code = "import sys; from metafast.cli import main\ntry: main(['maml', '--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_train_writes_record_results_and_prints_the_baselines(trained):
    run, result = trained
    for text in (
        "random initialization, fine-tuned",
        "supervised pre-training, linear probe",
        "engine: ",
        "test, 8 episodes",
    ):
        assert text in words(result)
    record = Run.open(run)
    assert record.status == "finished" and record.config["settings"]["shots"] == 5
    results = json.loads((run / "results.json").read_text())
    assert set(results["baselines"]) == {"random", "pretrained", "probe"}
    assert len(results["test"]["per_step"]) == 11 and results["training"]["steps"] == 6
    assert (run / "best.safetensors").is_file()


def test_the_second_time_is_a_new_run_of_the_same_numbers(trained, tmp_path):
    run, _ = trained
    again = call("train", *SMALL, "--output", run.parents[1], "--no-baselines")
    assert again.exit_code == 0, again.output
    second = run.with_name(run.name.replace("001", "002"))
    assert Run.open(run).curve("val_mse").values.tolist() == Run.open(second).curve("val_mse").values.tolist()
    first, other = (load_file(folder / "best.safetensors") for folder in (run, second))
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_resume_goes_on_with_the_interrupted_run(trained, tmp_path, monkeypatch):
    validated = trainer.Trainer._validate

    def stop_at_the_end(self, state, run, bar):
        validated(self, state, run, bar)
        if state.step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_validate", stop_at_the_end)
        stopped = call("train", *SMALL, "--output", tmp_path, "--no-baselines")
    assert stopped.exit_code == 130 and "--resume" in words(stopped)
    resumed = call("train", *SMALL, "--output", tmp_path, "--no-baselines", "--resume")
    assert resumed.exit_code == 0, resumed.output
    folder = tmp_path / "runs" / "sinusoid-5s-maml-seed0-001"
    assert Run.open(folder).curve("val_mse").values.tolist() == Run.open(trained[0]).curve("val_mse").values.tolist()
    nothing = call("train", *SMALL, "--output", tmp_path, "--seed", 5, "--resume")
    assert nothing.exit_code == 2 and "nothing to go on with" in words(nothing)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("protomaml", "maml")])
def test_every_algorithm_trains_from_the_command_line(algorithm, tmp_path):
    result = call("train", *SMALL, "--algorithm", algorithm, "--output", tmp_path, "--no-baselines")
    assert result.exit_code == 0, result.output


def test_eval_repeats_the_test_of_the_training(trained, tmp_path):
    run, _ = trained
    result = call("eval", run, "--episodes", 8, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "eval_test.json").read_text())
    assert found["mean"] == pytest.approx(json.loads((run / "results.json").read_text())["test"]["mean"], rel=1e-6)
    assert "after 10 steps" in words(result)


def test_adapt_to_numbers_of_ones_own(trained, tmp_path):
    run, _ = trained
    table = tmp_path / "points.csv"
    table.write_text("x,y\n-1,0.5\n0,1.1\n2,0.3\n")
    result = call("adapt", run, "--support", table, "--query", table, "--steps", 3, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predictions["predictions"]) == 3 and "score" in predictions
    state = load_file(tmp_path / "adapted.safetensors")
    learner, _ = _maml_use.restore(run)
    assert set(state) == set(learner.model.state_dict())
    assert any(not torch.equal(state[name], value) for name, value in learner.model.state_dict().items())


def test_adapt_to_a_test_task(trained, tmp_path):
    result = call("adapt", trained[0], "--task", 2, "--output", tmp_path)
    assert result.exit_code == 0 and "test task 2: 5 support and 5 query examples" in words(result)


def test_images_of_ones_own(tmp_path, data_folder):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    data_folder("omniglot")
    few = "--dataset omniglot --ways 3 --tasks 2 --queries 2 --iterations 1 --val-episodes 2 --test-episodes 2"
    result = call("train", *few.split(), "--no-baselines", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / "omniglot-3w1s-maml-seed0-001"
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for copy in range(2):
            image.new("RGB", (40, 30), color=(60 * number + copy,) * 3).save(tmp_path / "mine" / name / f"{copy}.png")
    result = call("adapt", run, "--support", tmp_path / "mine", "--query", tmp_path / "mine", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert {row["class"] for row in rows["predictions"]} <= {"a", "b", "c"} and rows["score_name"] == "accuracy"
    assert rows["predictions"][0]["file"] == "a/0.png"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--algorithm", "sgd"], "--algorithm"),
        (["train", "--shots", "0"], "--shots"),
        (["train", "--dataset", "sinusoid", "--model", "conv4"], "model 'conv4' does not fit sinusoid"),
        (["train", "--dataset", "no such name"], "name must be letters"),
        (["train", "--dataset", "sinusoid", "--algorithm", "protomaml"], "protomaml"),
        ([*TRAIN, "--inner-lr", "nan"], "inner_lr must be finite"),
        ([*TRAIN, "--inner-lr", "1e30", "--no-baselines"], "task 0: its query loss is"),
        ([*TRAIN, "--clip", "0"], "clip must be positive"),
        ([*TRAIN, "--meta-lr", "nan"], "learning rate"),
        ([*TRAIN, "--name", "a/b"], "name must be a plain folder name"),
        ([*TRAIN, "--device", "tpu"], "device must be cpu or cuda"),
        (["transfer", "--recipe", "local", "--device", "tpu"], "device must be cpu or cuda"),
        (["eval", "nowhere"], "holds no run"),
        (["adapt", "nowhere"], "holds no run"),
        (["transfer", "--recipe", "paper"], "--recipe"),
    ],
)
def test_wrong_options(tmp_path, arguments, text):
    output = ["--output", str(tmp_path)] if arguments[0] != "eval" else []
    result = call(*arguments, *output)
    assert result.exit_code == 2, result.output
    assert text.lower() in words(result).lower()


@pytest.mark.parametrize(
    ("given", "hub_is_there", "recipe"), [("auto", True, "hub"), ("auto", False, "local"), ("hub", False, "hub")]
)
def test_transfer_takes_the_recipe_that_is_at_hand(tmp_path, monkeypatch, given, hub_is_there, recipe):
    seen = []

    def run(options, output, **more):
        seen.append((options, output, more["resume"]))
        raise DatasetNotFoundError("no such photos")

    monkeypatch.setattr(_maml_transfer, "at_hand", lambda recipe: hub_is_there)
    monkeypatch.setattr(_maml_transfer, "run", run)
    monkeypatch.setattr(_maml_transfer, "check_device", lambda name: None)
    result = call("transfer", "--recipe", given, "--output", tmp_path, "--device", "cuda", "--resume", "--seed", 3)
    assert result.exit_code == 2 and "no such photos" in words(result)
    ((options, output, resume),) = seen
    assert (options.recipe, options.device, options.seed, output, resume) == (recipe, "cuda", 3, tmp_path, True)
    assert (options.meta_lr, options.inner_lr, options.steps, options.tasks) == (0.001, 0.01, 10, 4)
    assert options.iterations == 1000
    assert ("the local recipe runs" in words(result)) == (given == "auto" and not hub_is_there)


def test_a_run_of_something_else_is_refused(tmp_path):
    Run.create(tmp_path, name="other", config={"lr": 0.1}).finish()
    result = call("eval", tmp_path / "other")
    assert result.exit_code == 2 and "this record has no settings" in words(result)


def test_settings_fill_in_what_the_data_set_needs():
    given = dict.fromkeys(("tasks", "inner_lr", "inner_steps", "test_steps", "meta_lr"))
    common = {
        "ways": 5, "shots": 1, "queries": 15, "model": "auto", "order": 2, "iterations": 1, "cosine": True,
        "clip": None,        "seed": 0, "engine": "auto", "device": "cpu",
    }  # fmt: skip
    settings = _maml_setup.Settings.of(dataset="omniglot", algorithm="maml", **given, **common)
    assert (settings.tasks, settings.inner_lr, settings.inner_steps) == (32, 0.4, 1)
    assert _maml_setup.Settings.of(dataset="omniglot", algorithm="mamlpp", **given, **common).inner_steps == 5
    mine = _maml_setup.Settings.of(dataset="omniglot", algorithm="maml", **{**given, "inner_lr": 0.1}, **common)
    assert mine.inner_lr == 0.1
