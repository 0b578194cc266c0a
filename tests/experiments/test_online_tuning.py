"""The experiment of online tuning: what it trains, what its searches choose, what it says, and that it goes on."""

import dataclasses
import json
import math

import pytest
import torch

from metafast._trainings import StoppedError
from metafast.experiments import online_tuning as tuning
from metafast.experiments.online_tuning import _plan, _train, _verdicts
from metafast.runs import Run
from tests.experiments.online_tuning_cases import TINY, TUNING, use

PLAN = tuning.Plan(TINY, tuple(tuning.TASKS), seed=1, seeds=2)


def silent(trainings):
    return lambda training, step: None


def timeless(done):
    return {name: {key: value for key, value in row.items() if key != "seconds"} for name, row in done.items()}


@pytest.fixture(scope="module")
def folder(made_data, tmp_path_factory):
    """All of it, once."""
    output = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, made_data)
        tuning.run(PLAN, output, 1, silent)
    return output


@pytest.fixture
def done(folder, data):
    return tuning.run(PLAN, folder, 1, silent)


def test_the_whole_and_again(done, folder, monkeypatch):
    found = tuning.results(PLAN, done)
    json.dumps(found, allow_nan=False)
    pairs = [(row["experiment"], row["method"], row["seed"]) for row in found["rows"]]
    assert pairs == [(name, method, seed) for name in tuning.TASKS for method in tuning.METHODS for seed in (1, 2)]
    assert len(found["verdicts"]) == 6
    assert all(each["reached"] is not None for each in found["verdicts"])
    assert found["experiments"]["lstm"]["reference"]["mae"] > 0
    assert found["experiments"]["bert"]["reference"] is None
    log = (folder / "runs" / next(iter(done)) / "run.jsonl").read_bytes()
    monkeypatch.setattr(_train, "_step", lambda *arguments: pytest.fail("a finished training is not trained"))
    assert tuning.run(PLAN, folder, 1, silent) == done
    assert (folder / "runs" / next(iter(done)) / "run.jsonl").read_bytes() == log
    assert tuning.results(PLAN, done) == found


def test_interrupted_anywhere_it_gives_the_same_rows(done, tmp_path):
    """Ctrl-C in each of the first trainings' epochs in turn, then to the end."""
    plan, stops = dataclasses.replace(PLAN, names=("lstm",)), 0

    class Once:
        def __init__(self):
            self.seen = set()

        def __call__(self, training, step):
            if step and (training.name, step) not in self.seen and len(self.seen) < 12:
                self.seen.add((training.name, step))
                raise KeyboardInterrupt

    interrupt = Once()
    while True:
        try:
            found = tuning.run(plan, tmp_path, 1, lambda trainings: interrupt)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 12
    assert timeless(found) == {name: row for name, row in timeless(done).items() if row["experiment"] == "lstm"}


@pytest.mark.parametrize("name", list(tuning.TASKS))
def test_stopped_within_an_epoch_it_goes_on_bit_for_bit(data, tmp_path, name):
    training = PLAN.own(name, "batch")[0]
    _train.train(training, tmp_path / "whole", lambda step: None, lambda: False)
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        return steps in (1, 3)

    for _ in range(2):
        with pytest.raises(StoppedError):
            _train.train(training, tmp_path / "parts", lambda step: None, stop)
    _train.train(training, tmp_path / "parts", lambda step: None, stop)
    whole, parts = (Run.open(tmp_path / part / training.name) for part in ("whole", "parts"))
    for metric in set(whole.metrics) - {"seconds"}:
        assert parts.curve(metric).values.tolist() == whole.curve(metric).values.tolist()
    assert _train.tuned_of(parts) == _train.tuned_of(whole)
    state, validation = _train.tuned_of(whole)
    assert next(iter(state)) == "lr" and len(state["lr"].history) == 1 + training.steps // 2 == 1 + len(validation)


def test_the_seed_and_the_static_training_are_what_they_say(data, tmp_path):
    """The static training is the plain loop, to the bit."""
    training = PLAN.own("lstm", None)[1]
    _train.train(training, tmp_path, lambda step: None, lambda: False)
    from metafast.data import Batches
    from metafast.models import LSTMForecaster
    from metafast.runs import seed_all

    seed_all(2)
    parts = training.load()
    model = LSTMForecaster(4, hidden=4, dropout=0.5, seed=2)
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = Batches(*parts.train, batch_size=8, seed=2)
    for _ in range(2):
        for x, y in batches:
            opt.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            opt.step()
    with torch.no_grad():
        error = (model.eval()(parts.test.inputs) - parts.test.targets).double()
    row = _train.row_of(Run.open(tmp_path / training.name))
    assert row["test_mae"] == pytest.approx(float(error.abs().mean()), rel=1e-6)
    assert row["test_rmse"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-6)
    assert row["gradients"] == 2 * len(parts.train.targets)


def test_cost_counts_validation_examples(done):
    """40 windows for 2 epochs; by batches 5 looks at batches of 8 and 4 of 12, by epochs 2 looks at all 12."""
    static, batch, epoch = (done[PLAN.own("lstm", feedback)[0].name] for feedback in (None, "batch", "epoch"))
    assert static["gradients"] == 80
    assert batch["gradients"] == 80 + 8 + 4 + 8 + 4 + 8
    assert epoch["gradients"] == 80 + 2 * 12
    assert PLAN.affordable("lstm", done) == 2


def test_parts_share_nothing(data):
    parts = PLAN.own("resnet18", None)[0].load()
    pictures = [{picture.numpy().tobytes() for picture in part.inputs} for part in parts]
    assert [len(part) for part in pictures] == [20, 10, 10]
    assert not pictures[0] & pictures[1] and not (pictures[0] | pictures[1]) & pictures[2]
    assert parts.val.targets.bincount(minlength=10).max() == 1  # classes in proportion
    series = {"a": torch.arange(200.0)}
    setup = TINY.setups["lstm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metafast.experiments.online_tuning._tasks.load_series", lambda name, splits: series)
        train, val, test = tuning.TASKS["lstm"].load(setup, 0)
    assert train.targets.max() < val.targets.min() and val.targets.max() < test.targets.min()
    assert [len(part.inputs) for part in (train, val, test)] == [40, 9, 16]


def test_searches_choose_by_validation_alone(done):
    trials = PLAN.search("lstm", "random")
    chosen = PLAN.result("lstm", "random", done)
    best = min(trials, key=lambda trial: done[trial.name]["val_mae"])
    assert [each.values for each in chosen] == [best.values] * 2 and [each.seed for each in chosen] == [1, 2]
    other = {
        name: {**row, "test_mae": -row["test_mae"], "test_rmse": 0.0} for name, row in done.items() if "test_mae" in row
    }
    assert PLAN.result("lstm", "random", other) == chosen
    assert PLAN.result("lstm", "random_equal", done)[0] in trials[:2]
    rows = [row for row in PLAN.rows(done) if (row["experiment"], row["method"]) == ("lstm", "random")]
    assert {row["gradients"] for row in rows} == {sum(done[trial.name]["gradients"] for trial in trials)}
    assert [cost for cost, _ in PLAN.courses("lstm", "random", done)] == [80, 160, 240]


@pytest.mark.parametrize(("name", "best"), [("lstm", 2), ("bert", 1)])
def test_the_best_is_the_lowest_error_or_the_highest_accuracy(name, best):
    metric = tuning.TASKS[name].metrics[0]
    assert _plan.best_of(name, [{f"val_{metric}": value} for value in (math.nan, 0.9, 0.1, 0.1)]) == best


def test_draws_and_cells():
    setup = TINY.setups["resnet18"]
    drawn = _plan.draws(setup, 50, 3)
    assert drawn == _plan.draws(setup, 60, 3)[:50] != _plan.draws(setup, 50, 4)
    for name, space in setup.space.items():
        values = [each[name] for each in drawn]
        assert space.low <= min(values) and max(values) <= space.high
        assert min(values) < space.low + 0.3 * (space.high - space.low)
    assert sum(each["lr"] < 1e-2 for each in drawn) == pytest.approx(25, abs=10)  # half of the decades
    assert sum(each["momentum"] > 0.93 for each in drawn) == pytest.approx(25, abs=10)
    assert _plan.cells(TINY.setups["lstm"]) == [
        {"lr": lr, "dropout": dropout} for lr, dropout in ((1e-2, 0.5), (1e-3, 0.5), (1e-2, 0.2), (1e-3, 0.2))
    ]


def summary(name, method, value, gradients=100.0):
    metric = tuning.TASKS[name].metrics[0]
    trials = 20 if method == "random" else 0
    values = {metric: value}
    return tuning.Summary(name, method, values, values, values, gradients, 1.0, gradients / 100, trials, {}, 1)


def judged(adaptive, gradients=150.0, names=tuple(tuning.TASKS)):
    found = []
    for name, value in zip(names, adaptive, strict=False):
        base = 0.4 if name == "lstm" else 50.0
        found += [summary(name, "static", base), summary(name, "random", base, 2000.0)]
        found += [summary(name, feedback, value, gradients) for feedback in ("batch", "epoch")]
    return [each.reached for each in tuning.verdicts(found) if each.feedback == "batch"]


@pytest.mark.parametrize(
    ("adaptive", "reached"),
    [
        ((50.0, 50.0, 0.4), [True, False, True]),  # equal is not better
        ((49.6, 50.1, 0.39), [True, True, True]),  # 0.8 % worse, and 0.4 points
        ((49.4, 50.1, 0.39), [False, True, True]),  # 1.2 % worse, but 0.6 points
        ((50.1, 50.1, 0.405), [False, True, False]),  # an error: 1.25 % higher
        ((50.1, 50.1, 0.403), [True, True, True]),
        ((math.nan, 50.1, 0.39), [False, True, False]),
    ],
)
def test_verdicts(adaptive, reached):
    assert judged(adaptive) == reached


def test_verdicts_look_at_the_cost_and_at_what_is_missing():
    assert judged((51.0, 51.0, 0.3), gradients=200.0)[2] is True
    assert judged((51.0, 51.0, 0.3), gradients=201.0)[2] is False
    assert judged((51.0, 51.0), names=("resnet18", "bert")) == [None, True, None]
    assert judged((49.9, 51.0), names=("resnet18", "bert")) == [None, None, None]
    assert judged((40.0, 51.0), names=("resnet18", "bert")) == [False, None, False]
    text = str(tuning.verdicts([summary("lstm", method, 0.4) for method in tuning.METHODS])[0])
    assert "not judged" in text and "lstm +0.0 %" in text
    assert _verdicts.gain("lstm", 0.3, 0.4, points=True) == pytest.approx(25)
    assert _verdicts.gain("bert", 60.0, 50.0, points=True) == 10
    assert _verdicts.gain("bert", 60.0, 50.0, points=False) == pytest.approx(20)


def test_a_folder_is_for_one_recipe_and_seed(tmp_path):
    tuning.check_folder(PLAN, tmp_path)
    tuning.check_folder(dataclasses.replace(PLAN, seeds=5, names=("lstm",)), tmp_path)
    with pytest.raises(tuning.OtherSettingsError, match="seed 1, not 2; give the same options or another folder"):
        tuning.check_folder(dataclasses.replace(PLAN, seed=2), tmp_path)
    changed = dataclasses.replace(TINY, trials=4)
    with pytest.raises(tuning.OtherSettingsError, match="recipe 'tiny'"):
        tuning.check_folder(dataclasses.replace(PLAN, recipe=changed), tmp_path)


def test_every_recipe_starts_the_adaptive_runs_where_the_static_one_is(data):
    for recipe in tuning.RECIPES.values():
        assert list(recipe.setups) == list(tuning.TASKS)
        for name, setup in recipe.setups.items():
            assert set(setup.tuning) == set(TUNING)
            assert set(setup.grid) <= set(setup.static) and set(setup.space) <= set(setup.static)
            assert _plan.cells(setup)[0] == setup.static, name
            assert all(each.method in _train.METHODS for each in setup.tuning.values())
    full = tuning.RECIPES["full"].setups
    assert full["resnet18"].static == {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
    assert (full["resnet18"].batch_size, full["bert"].batch_size, full["lstm"].batch_size) == (64, 32, 128)
    assert full["bert"].static["lr"] == 2e-5 and full["bert"].warmup == 1000 and full["bert"].model["length"] == 128
    assert full["lstm"].static == {"lr": 0.01, "dropout": 0.5} and full["lstm"].model["hidden"] == 64


def test_pictures_are_looked_at_with_statistics_of_the_batch():
    from metafast.models import ResNet18

    task, x, y = tuning.TASKS["resnet18"], torch.randn(6, 3, 8, 8), torch.arange(6)
    model = ResNet18(3, 10, width=2, seed=0)
    with torch.no_grad():
        wanted = task.loss(model(x), y)
        found = task.look(model.eval(), x, y)
    assert torch.equal(found, wanted) and not model.training
    assert not torch.equal(task.loss(model.eval()(x), y), wanted)
