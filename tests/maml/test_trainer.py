"""The trainer: what it records, when it stops, that nothing is lost, and evaluation."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from metafast.data import TaskBatch, episodes
from metafast.maml import MAML, Trainer, evaluate
from metafast.maml.trainer import load_weights
from metafast.models import SinusoidMLP
from metafast.optim import AdamW
from metafast.runs import Run
from tests.maml.maml_cases import Net, make_batch


def tasks(split="train", seed=0, count=8):
    return episodes("sinusoid", split=split, shots=5, queries=5, tasks=count, seed=seed)


def sinusoid(**options):
    return MAML(SinusoidMLP((16, 16), seed=0), 0.01, 1, loss="mse", **options)


def trainer(maml, folder, steps=20, **options):
    settings = {"val": tasks("val"), "val_every": 5, "val_episodes": 16, "log_every": 5, "progress": False, **options}
    return Trainer(maml, settings.pop("train", None) or tasks(), steps, output=folder, **settings)


def test_the_record_has_curves_validation_and_the_best_weights(tmp_path):
    maml = sinusoid()
    ended = trainer(
        maml, tmp_path, steps=60, val_every=20, seed=3, config={"dataset": "sinusoid"}, tags=["try"],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    ).fit()  # fmt: skip
    run = Run.open(ended.path)
    assert (ended.steps, ended.stopped, ended.dropped) == (60, "steps", 0)
    assert run.status == "finished" and run.seed == 3 and run.tags == ["maml", "try"]
    assert run.config["algorithm"] == "MAML" and run.config["dataset"] == "sinusoid"
    assert run.curve("loss").steps.tolist() == list(range(5, 61, 5))
    val = run.curve("val_mse")
    assert val.steps.tolist() == [0, 20, 40, 60]
    assert val.values[-1] < 0.8 * val.values[0]
    assert (run.curve("val_half_width").values > 0).all()
    best = int(val.values.argmin())
    assert ended.best_step == val.steps[best] and ended.best_score == val.values[best]
    again = evaluate(maml, tasks("val"), 16)  # the best weights are in the learner
    assert again.score.mean == ended.best_score
    other = sinusoid()
    load_weights(other, ended.path / "best.safetensors")
    assert evaluate(other, tasks("val"), 16).score.mean == ended.best_score


def test_patience_ends_a_training_that_gains_nothing(tmp_path):
    maml = sinusoid()
    stuck = trainer(maml, tmp_path, steps=500, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), patience=2).fit()
    assert (stuck.stopped, stuck.steps, stuck.best_step) == ("patience", 10, 0)


def test_a_time_budget_ends_a_training(tmp_path):
    ended = trainer(sinusoid(), tmp_path, steps=10**6, max_minutes=0.01, val=None).fit()
    assert ended.stopped == "time" and 0.6 <= ended.seconds < 20
    assert Run.open(ended.path).checkpoints()[-1] == ended.steps


def test_clipping_and_schedule_are_in_the_record(tmp_path):
    maml = sinusoid()
    ended = trainer(maml, tmp_path, clip=1e-3, schedule="cosine", optimizer=lambda p: torch.optim.SGD(p, lr=1.0)).fit()
    rates = Run.open(ended.path).curve("meta_lr").values
    assert rates[0] < 1.0 and rates[-1] == pytest.approx(0.01)
    assert (rates[1:] < rates[:-1]).all()
    moved = sum(
        float((p - q).detach().square().sum()) for p, q in zip(maml.parameters(), sinusoid().parameters(), strict=True)
    )
    assert 0 < math.sqrt(moved) < 21e-3  # twenty steps of at most the clipped norm


@pytest.mark.parametrize("kind", ["metafast", "instance"])
def test_any_optimizer(tmp_path, kind):
    maml = sinusoid()
    made = (
        (lambda p: AdamW(p, lr=1e-3, hypergrad="tensor"))
        if kind == "metafast"
        else torch.optim.RMSprop(maml.parameters())
    )
    ended = trainer(maml, tmp_path, optimizer=made).fit()
    assert math.isfinite(ended.best_score)


def test_nan_tasks_are_dropped_and_counted_in_the_record(tmp_path):
    batch = make_batch(torch.float32)
    bad = TaskBatch(batch.support_x.clone(), batch.support_y, batch.query_x, batch.query_y)
    bad.support_x[2, 0] = torch.nan
    maml = MAML(Net(torch.float32), 0.1, 2, on_nan="drop")
    ended = Trainer(maml, [batch, bad], 6, output=tmp_path, log_every=1, progress=False).fit()
    assert ended.dropped == 3
    assert Run.open(ended.path).curve("dropped").values.tolist() == [0, 1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="task 2"):
        Trainer(MAML(Net(torch.float32), 0.1, 2), [bad], 2, output=tmp_path, progress=False).fit()


@pytest.mark.parametrize("seed", [0])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, seed):
    script = Path(__file__).with_name("train_and_die.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, tmp_path, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 1
    assert result["killed"] == result["whole"]
    assert result["whole"]["status"] == "finished"


def test_a_run_killed_after_its_last_checkpoint_is_finished_on_resume(tmp_path):
    first = trainer(sinusoid(), tmp_path, name="run").fit()
    log = first.path / "run.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    assert '"status"' in whole[-1]
    log.write_text("".join(whole[:-1]))
    assert Run.open(first.path).status == "killed"
    again = trainer(sinusoid(), tmp_path, name="run", resume=True).fit()
    assert Run.open(first.path).status == "finished"
    assert again.steps == first.steps and again.best_score == first.best_score


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = trainer(sinusoid(), tmp_path, name="run").fit()
    maml = sinusoid()
    again = trainer(maml, tmp_path, name="run", resume=True).fit()
    assert again.best_score == first.best_score and again.steps == first.steps
    assert evaluate(maml, tasks("val"), 16).score.mean == first.best_score
    with pytest.raises(FileExistsError, match="already holds a run"):
        trainer(sinusoid(), tmp_path, name="run").fit()


def test_evaluation_counts_intervals_and_leaves_everything_as_it_was():
    maml, source = sinusoid(), tasks("test")
    maml.train()
    next(iter(source))
    position = source.state_dict()
    result = evaluate(maml, source, 20, steps=3, per_step=True)
    assert maml.training and source.state_dict() == position
    assert result.metric == "mse" and result.score.n == 20 and len(result.per_step) == 4
    values = result.values
    assert result.score.mean == pytest.approx(float(values.mean()))
    assert result.score.half == pytest.approx(2.093 * float(values.std()) / math.sqrt(20), rel=1e-3)  # Student's t
    assert result.per_step[-1].mean == pytest.approx(result.score.mean)
    for count in (1, 2):
        one = evaluate(maml, source, 20, steps=count)
        assert one.score.mean == pytest.approx(result.per_step[count].mean, rel=1e-5)


def test_trajectory_of_an_optimizer_with_memory_equals_runs_of_each_length():
    batch = make_batch()
    maml = MAML(Net(), 0.1, 3, rule="momentum")
    course = [metrics["loss"] for metrics in maml.trajectory(batch)]
    for count in (1, 2, 3):
        with torch.no_grad():
            torch.testing.assert_close(maml(batch, steps=count)[1]["loss"], course[count], rtol=0, atol=1e-12)


def test_more_episodes_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="at least n = 9 tasks, they gave 4"):
        evaluate(MAML(Net(), 0.1, 1), [make_batch()], 9)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"train": iter([1])}, TypeError, "iterable more than once"),
        ({"train": 3}, TypeError, "train must be batches of tasks, .* got int"),
        ({"train": [(1, 2)], "val": None}, TypeError, "batch must be a metafast.data.TaskBatch, got tuple"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be a torch.optim.Optimizer or make one, got float"),
        ({"clip": 0.0}, ValueError, "clip must be positive"),
        ({"max_minutes": -1}, ValueError, "max_minutes must be positive"),
        ({"resume": True}, ValueError, "name must be given"),
        ({"schedule": "linear"}, ValueError, "schedule must be"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"train": [], "val": None}, ValueError, "train must give at least one batch"),
    ],
)
def test_what_is_refused_and_how(tmp_path, change, error, text):
    with pytest.raises(error, match=text):
        Trainer(sinusoid(), **{"train": tasks(), "steps": 2, "output": tmp_path, "progress": False, **change}).fit()


def test_no_learner_is_refused(tmp_path):
    with pytest.raises(TypeError, match="maml must be an algorithm"):
        Trainer(nn.Linear(1, 1), tasks(), 2, output=tmp_path)
