"""Predictor.tune: batched runs, functions, pools, records that go on, failures, hopeless runs."""

import json
import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from metafast.hpo import BatchedTask, MetaTask, Predictor, Space, task_of_runs
from metafast.hpo._trainings import name_of
from metafast.runs import Run

SPACE = Space(lr=[1e-3, 1e-2, 1e-1], width=[8, 16], optimizer=["sgd", "adam"])
FRACTIONS = np.arange(1, 5) / 4


def curve(config, best=0.01):
    """Higher near the best rate, rising in time."""
    end = 0.9 - 0.2 * abs(math.log10(config["lr"] / best)) + 0.02 * (config["width"] == 16)
    return end * (1 - 0.5 * np.exp(-5 * FRACTIONS))


def known(best=0.01):
    grid = SPACE.grid()
    return [
        MetaTask(
            f"known{i}", f"known{i}", SPACE, grid, np.stack([(1 - 0.02 * i) * curve(c, best) for c in grid]), FRACTIONS,
            np.ones(len(grid)), reference=0.1,
        )
        for i in range(4)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def predictor():
    return Predictor(known())


def quadratic(config):
    return float(curve(config)[-1])


def by_parts(config, report):
    for fraction, score in zip(FRACTIONS, curve(config), strict=True):
        if not report(float(fraction), float(score)):
            return None
    return float(curve(config)[-1])


def process_of(config):
    return os.getpid() / 1e8


G = torch.Generator().manual_seed(0)
X = torch.randn(240, 6, generator=G)
Y = (X @ torch.randn(6, 3, generator=G)).argmax(1)


def build(config):
    return nn.Sequential(nn.Linear(6, config["width"]), nn.ReLU(), nn.Linear(config["width"], 3))


def batched(**options):
    return BatchedTask(build, (X[:160], Y[:160]), (X[160:], Y[160:]), **{"epochs": 4, **options})


def test_a_function_is_run_and_the_best_is_predicted(predictor, tmp_path):
    calls = []

    def train(config):
        calls.append(config)
        return quadratic(config)

    result = predictor.tune(train, SPACE, 4, output=tmp_path / "runs")
    assert len(calls) == 4 == len({json.dumps(c, sort_keys=True) for c in calls})
    assert result.best == max(calls, key=quadratic) and result.best["lr"] == 0.01
    assert result.next.config not in calls and result.next.source == "model"
    assert result.interval[0] < result.expected < result.interval[1]
    assert result.expected == pytest.approx(quadratic(result.best), abs=0.05)
    assert "portfolio" in result.reason and len(result.observed) == 4
    again = predictor.tune(train, SPACE, 4, output=tmp_path / "runs")
    assert len(calls) == 4 and again.best == result.best and again.expected == result.expected
    more = predictor.tune(train, SPACE, 4, n_more=2, output=tmp_path / "runs")
    assert len(calls) == 6 and len({one.config["lr"] for one in more.observed}) >= 2


def test_records_are_runs_that_can_be_learned_from(predictor, tmp_path):
    predictor.tune(by_parts, SPACE, 5, output=tmp_path, stop_below=0.0)
    task = task_of_runs(tmp_path, name="mine")
    assert len(task.configs) == 5 and task.curves.shape[1] == 4 and task.metric == "accuracy"
    learned = Predictor(known()).fit([tmp_path])
    assert len(learned.tasks) == 5


def test_hopeless_runs_end_early_and_say_so(predictor, tmp_path):
    result = predictor.tune(by_parts, SPACE, 12, output=tmp_path, stop_below=0.3)
    stopped = [one for one in result.observed if one.fraction < 1]
    runs = {run.parent.name: Run.open(run.parent) for run in tmp_path.glob("run-*/run.jsonl")}
    assert len(runs) == 12 and any("pruned" in run.tags for run in runs.values()) and stopped
    assert "pruned" not in runs[name_of(result.best)].tags and result.best["lr"] == 0.01
    assert result.score == pytest.approx(quadratic(result.best))


def test_batched_runs(predictor, tmp_path):
    result = predictor.tune(batched(), SPACE, 5, output=tmp_path, stop_below=0.0)
    configs = {json.dumps(one.config, sort_keys=True) for one in result.observed}
    assert len(configs) == 5 and len(result.observed) == 20 and result.seconds > 0
    assert {one.fraction for one in result.observed} == {0.25, 0.5, 0.75, 1.0}
    half = predictor.tune(batched(), SPACE, 3, budget=0.5, output=tmp_path / "half", stop_below=0.0)
    assert max(one.fraction for one in half.observed) == 0.5 and half.score is None
    assert math.isfinite(half.expected)
    with pytest.raises(ValueError, match="output: .*budget"):
        predictor.tune(batched(), SPACE, 3, output=tmp_path / "half")


def test_regression_and_own_metrics_have_their_direction(predictor):
    pair = (X, X[:, :2])
    task = BatchedTask(lambda c: nn.Linear(6, 2), pair, pair, epochs=20, loss="mse")
    result = predictor.tune(task, SPACE, 5)
    finals = {one.score: one.config for one in result.observed if one.fraction == 1.0}
    assert result.best == finals[min(finals)] and result.best["lr"] in (0.01, 0.1)
    assert result.interval[0] < min(finals) < result.interval[1]
    with pytest.raises(ValueError, match="metric must be given"):
        predictor.tune(batched(metric=lambda out, y: 0.0), SPACE, 2)
    with pytest.raises(ValueError, match="which way round is 'mine'"):
        predictor.tune(quadratic, SPACE, 2, metric="mine")


def test_failures_are_information(predictor, tmp_path):
    def train(config):
        if config["optimizer"] == "sgd":
            raise RuntimeError("no memory")
        return math.nan if config["lr"] == 0.1 else quadratic(config)

    result = predictor.tune(train, SPACE, 12, output=tmp_path)
    assert result.best["optimizer"] == "adam" and result.best["lr"] == 0.01
    assert sum(one.failed for one in result.observed) == 8
    failed = [Run.open(p.parent) for p in tmp_path.glob("run-*/run.jsonl")]
    assert sum(run.status == "failed" for run in failed) == 8
    with pytest.raises(RuntimeError, match=r"all 2 runs failed; their records are in"):
        predictor.tune(lambda config: math.nan, SPACE, 2)


def test_a_pool_of_processes(predictor, tmp_path):
    result = predictor.tune(process_of, SPACE, 4, workers=2, output=tmp_path)
    seen = {one.score for one in result.observed}
    assert len(result.observed) == 4 and os.getpid() / 1e8 not in seen


def test_a_killed_record_is_trained_again(predictor, tmp_path):
    first = predictor.tune(quadratic, SPACE, 3, output=tmp_path)
    log = sorted(tmp_path.glob("run-*/run.jsonl"))[0]
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    calls = []

    def train(config):
        calls.append(config)
        return quadratic(config)

    again = predictor.tune(train, SPACE, 3, output=tmp_path)
    assert len(calls) == 1 and len(again.observed) == 3 and again.best == first.best


def test_an_unknown_space_is_spread_over():
    result = Predictor().tune(lambda c: -((c["alpha"] - 2) ** 2), Space(alpha=[1, 2, 3, 4]), 4, metric="reward",
                              direction="maximize")  # fmt: skip
    assert result.best == {"alpha": 2} and "spread over the space" in result.reason


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": 3}, TypeError, "train must be a function"),
        ({"space": {"lr": [1, 2]}}, TypeError, "space must be a metafast.hpo.Space"),
        ({"n_initial": 0}, ValueError, "n_initial must be at least 1"),
        ({"budget": 0.0}, ValueError, "budget"),
        ({"stop_below": 2.0}, ValueError, "stop_below"),
        ({"workers": -1}, ValueError, "workers"),
        ({"direction": "minimize"}, ValueError, "accuracy"),
        ({"reference": math.inf}, ValueError, "reference must be finite"),
    ],
)
def test_wrong_arguments(predictor, change, error, message):
    arguments = {"train": quadratic, "space": SPACE, "n_initial": 2, **change}
    with pytest.raises(error, match=message):
        predictor.tune(arguments.pop("train"), arguments.pop("space"), **arguments)


def test_reports_must_rise(predictor, tmp_path):
    def train(config, report):
        report(0.5, 0.1)
        report(0.5, 0.2)

    with pytest.raises(RuntimeError, match="all 2 runs failed"):
        predictor.tune(train, SPACE, 2, output=tmp_path)
    notes = [
        row for p in tmp_path.glob("run-*/run.jsonl") for row in Run.open(p.parent).rows() if row["kind"] == "note"
    ]
    assert all("fraction must rise" in note["data"]["error"] for note in notes)
