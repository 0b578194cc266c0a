"""The experiment of learning rates: data and models of each pair, trainings that go on, and what it says of them."""

import dataclasses
import json
import math

import pytest
import torch

pytest.importorskip("datasets", reason="the datasets package is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")
pytest.importorskip("transformers", reason="the transformers package is not installed")

from metafast._trainings import StoppedError
from metafast.experiments import lr_adaptation as rates
from metafast.experiments.lr_adaptation import _controller, _methods, _pairs, _recipes, _train, _verdicts
from metafast.runs import Run
from tests.experiments.lr_adaptation_cases import EVERY, RECORD, TINY, make_data, use

PLAN = rates.Plan(TINY, tuple(TINY.setups), seed=1, seeds=2, missing=rates.missing())


def silent(trainings):
    return lambda training, step: None


def never():
    return False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates-data")
    make_data(folder)
    return folder


@pytest.fixture
def data(made, monkeypatch):
    use(monkeypatch, made)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """All of it, once."""
    output = tmp_path_factory.mktemp("rates")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, made)
        patch.setattr("metafast.experiments.lr_adaptation._controller.adapt", adapt)
        rates.run(PLAN, output, 1, silent)
    return output


def adapt(setup, parts, seed):
    """As the module's, without `metafast.schedule`."""
    from types import SimpleNamespace

    task = SimpleNamespace(
        model=lambda seed: _pairs.build_model(setup, seed), train=parts.train, val=parts.val, batch_size=8,
        steps=setup.steps,
    )  # fmt: skip
    return _controller.load().adapt(task, steps=_recipes.RUNS, seed=seed)


@pytest.fixture
def done(folder, data):
    return rates.run(PLAN, folder, 1, silent)


@pytest.mark.parametrize("name", list(EVERY.setups))
def test_every_pair_has_parts_that_share_nothing_and_a_model_for_them(data, name):
    setup = EVERY.setups[name]
    training = rates.Plan(EVERY, (name,)).training(name, "fixed")
    parts, watched = training.load()
    assert abs(len(parts.train.labels) - setup.train) <= 8 and len(watched.labels) <= 10
    logits = _pairs.build_model(setup, 0)(parts.test.inputs)
    assert logits.shape == (len(parts.test.labels), rates.SOURCES[setup.data].classes)
    assert all(int(part.labels.max()) < logits.shape[1] for part in parts)
    if setup.data not in ("conllpp",):  # where the same words may stand in two places
        rows = [{row.numpy().tobytes() for row in part.inputs} for part in parts]
        assert not rows[0] & rows[1] and not (rows[0] | rows[1]) & rows[2]


def test_pictures_are_scaled_by_the_training_part(data):
    parts, _ = rates.Plan(EVERY, ()).training("cifar10/cnn", "fixed").load()
    assert parts.train.inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert parts.train.inputs.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-5)


def test_windows_say_word_and_shape():
    tokens = _pairs.window_tokens([["The", "EU", "rejects", "1996"]], [(0, 1), (0, 3)], 10**6)
    assert tokens.shape == (2, 14)
    outside, word, shape = tokens[0, 0], tokens[0, 6], tokens[0, 7]
    assert torch.equal(tokens[0, :4:2], outside.repeat(2)) and tokens[0, 4] != outside
    assert word == tokens[1, 2] and shape == tokens[1, 3]  # the same word two places before
    assert [_pairs._shape(word) for word in ("EU", "Bonn", "1996-08", "x")] == ["<A>", "<Aa>", "<0.0>", "<a>"]


def test_tags_without_entity_are_as_many_as_those_of_the_largest(data):
    setup = dataclasses.replace(EVERY.setups["conllpp/lstm"], train=None, val=None, test=None)
    parts = rates.load_pair(setup, 0)
    counts = sum(part.labels.bincount(minlength=9) for part in (parts.train, parts.val))
    assert counts[0] == counts[1:].max()


def test_the_whole_and_again(done, folder, monkeypatch):
    found = rates.results(PLAN, done)
    rows = [(row["pair"], row["method"], row["seed"]) for row in found["rows"]]
    assert rows == [(name, method, s) for name in PLAN.compared for method in PLAN.methods for s in (1, 2)]
    assert len(found["sweep_rows"]) == 2 * 7 * 2
    assert [each["reached"] for each in found["verdicts"]][7:10] == [None] * 3  # sweeps that are not in it
    assert found["pairs"]["mnist/mlp"]["seen"] == "kind of model seen in meta-training"
    log = (folder / "runs" / next(iter(done)) / "run.jsonl").read_bytes()
    monkeypatch.setattr(_train, "_step", lambda *arguments: pytest.fail("a finished training is not trained"))
    assert rates.run(PLAN, folder, 1, silent) == done
    assert (folder / "runs" / next(iter(done)) / "run.jsonl").read_bytes() == log
    assert json.dumps(rates.results(PLAN, done)) == json.dumps(found)


def test_the_grid_chooses_by_validation_alone(done):
    name = "imdb/gru"
    best = max(PLAN.grid(name), key=lambda trial: done[trial.name]["val_accuracy"])
    assert PLAN.best_rate(name, done) == best.rate
    other = {key: {**row, "test_accuracy": 1 - row.get("test_accuracy", 0)} for key, row in done.items()}
    assert PLAN.result(name, "grid", other) == PLAN.result(name, "grid", done)
    assert [each.method for each in PLAN.result(name, "cosine_tuned", done)] == ["cosine"] * 2
    row = next(row for row in PLAN.rows(done) if (row["pair"], row["method"]) == (name, "grid"))
    assert row["search_seconds"] == sum(done[trial.name]["seconds"] for trial in PLAN.grid(name))


def test_controllers_move_the_rate_and_adapted_ones_are_others(done, folder):
    def history(method):
        run = Run.open(folder / "runs" / PLAN.training("imdb/gru", method).name)
        return _train.history_of(run), _train.labels_of_rates(run)

    steered, labels = history("controller")
    assert [step for step, _ in steered] == list(range(7)) and labels == ["0"]
    assert [rate for _, (rate,) in steered] == pytest.approx([1e-3, 1e-3, *[1.2e-3] * 2, *[1.44e-3] * 2, 1.728e-3])
    assert history("adapted")[0][-1][1] == pytest.approx([1e-3 / 1.2**3])
    layers, names = history("layers")
    assert len(layers[0][1]) == len(names) == len(set(names)) and "embedding.weight" in names
    row = done[PLAN.training("imdb/gru", "controller").name]
    assert row["events"] == [{"step": 4, "what": "looked"}] and row["final_rate"] == pytest.approx([1.728e-3])


@pytest.mark.parametrize("method", sorted({*_methods.DRIVERS} - {*rates.missing(), "adapted"}))
def test_stopped_twice_it_goes_on_bit_for_bit(data, tmp_path, method):
    training = PLAN.training("fashion_mnist/resnet18", method)
    _train.train(training, tmp_path / "whole", lambda step: None, never)
    looks = 0

    def stop():
        nonlocal looks
        looks += 1
        return looks in (2, 4)

    for _ in range(2):
        with pytest.raises(StoppedError):
            _train.train(training, tmp_path / "parts", lambda step: None, stop)
    _train.train(training, tmp_path / "parts", lambda step: None, stop)
    whole, parts = (Run.open(tmp_path / part / training.name) for part in ("whole", "parts"))
    for metric in set(whole.metrics) - {"seconds", "rates"}:
        assert parts.curve(metric).values.tolist() == whole.curve(metric).values.tolist()
    assert _train.history_of(parts) == _train.history_of(whole)


def test_the_fixed_rate_is_the_plain_loop(data, tmp_path):
    from metafast.data import Batches
    from metafast.metrics import class_scores

    training = PLAN.training("imdb/gru", "fixed", 1e-2)
    _train.train(training, tmp_path, lambda step: None, never)
    parts, _ = training.load()
    model = _pairs.build_model(training.setup, 1)
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    stream = Batches(*parts.train, batch_size=8, seed=1).forever()
    for _ in range(6):
        x, y = next(stream)
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    run = Run.open(tmp_path / training.name)
    assert run.curve("loss").values[-1] == pytest.approx(float(loss.detach()), rel=1e-4)
    with torch.no_grad():
        scores = class_scores(model.eval()(parts.test.inputs), parts.test.labels)
    row = _train.row_of(run)
    assert row["test_accuracy"] == scores.accuracy and row["test_f1"] == pytest.approx(scores.f1)


def test_the_cosine_warms_up_and_ends_near_zero():
    factors = [_methods._warm_cosine(100, step) for step in range(100)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]) and max(factors) == 1.0
    assert factors[-1] < 1e-3 and factors[52] == pytest.approx(0.5, abs=0.02)


def test_schedule_free_is_looked_at_with_its_own_statistics(data):
    pytest.importorskip("schedulefree")
    training = PLAN.training("fashion_mnist/resnet18", "schedule_free")
    parts, _ = training.load()
    model = _pairs.build_model(training.setup, 0)
    driver = _methods.ScheduleFree(_methods.Start(model, 0.0025, 6, parts.train.inputs))
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    for _ in range(3):
        _train._step(model, driver, *(tensor[:8] for tensor in parts.train))
    with driver.looking():
        assert not model.training
        with torch.no_grad():
            wanted = model.features[0](parts.train.inputs).mean((0, 2, 3))
        torch.testing.assert_close(norm.running_mean, wanted, rtol=1e-4, atol=1e-5)
    assert model.training and norm.momentum == 0.1 and driver.optimizer.param_groups[0]["train_mode"]


def test_what_the_record_says_of_each_pair():
    said = {name: str(_controller.seen(RECORD, each)) for name, each in EVERY.setups.items()}
    assert {said[name] for name in rates.HELD_OUT} == {"never seen", "data seen in meta-validation"}
    assert [name for name in rates.HELD_OUT if said[name] != "never seen"] == ["few_rel/gru", "conllpp/lstm"]
    assert all("kind of model seen" in said[name] for name in ("mnist/mlp", "cifar10/cnn"))
    seen = {**RECORD, "meta_training": {"data": ["Fashion-MNIST"], "models": ["ResNet18"]}}
    assert not _controller.seen(seen, EVERY.setups["cifar10/resnet18"]).held_out
    assert str(_controller.seen(seen, EVERY.setups["fashion_mnist/mlp"])) == "data seen in meta-training"


def summary(pair, method, accuracies, steps=(100, 100)):
    mean = sum(accuracies) / len(accuracies)
    return rates.Summary(
        pair, method, {"accuracy": mean}, {"accuracy": 0.1}, list(accuracies), list(steps), 1.0, 1.0, 0.0, 0.0, 1e-3,
        1e-3, 0, len(accuracies),
    )  # fmt: skip


FIXED, GRID = (80.0, 82.0), (81.0, 83.0)


def judged(controller, adapted=(90.0, 90.0), steps=(90, 90), names=rates.HELD_OUT, held_out=True):
    found = []
    for name in names:
        found += [summary(name, "fixed", FIXED), summary(name, "grid", GRID)]
        found += [summary(name, "controller", controller, steps), summary(name, "adapted", adapted)]
    made = rates.verdicts(found, [], dict.fromkeys(names, held_out))
    return [each.reached for each in made[:3]] + [made[-1].reached], made


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"controller": (80.0, 82.0)}, [True, True, True, True]),  # equal is enough
        ({"controller": (79.9, 82.0)}, [False, False, True, True]),
        ({"controller": (80.0, 82.0), "steps": (90, None)}, [True, True, False, True]),
        ({"controller": (80.0, 82.0), "steps": (100, 100)}, [True, True, False, True]),
        ({"controller": (90.0, 90.0)}, [True, True, True, False]),  # adapted must be better
        ({"controller": (80.0, 82.0), "names": rates.HELD_OUT[:7]}, [None, None, None, True]),
        ({"controller": (70.0, 70.0), "names": rates.HELD_OUT[:3]}, [False, False, None, None]),
        ({"controller": (80.0, 82.0), "held_out": False}, [None, None, None, None]),
    ],
)
def test_verdicts(options, reached):
    assert judged(**options)[0] == reached


def test_verdicts_tell_the_numbers():
    _, made = judged((79.9, 82.0))
    assert "On 0 of 10, within one standard error on 10: cifar10/resnet18 -0.05" in str(made[0])
    assert "cifar10/resnet18 90 against 100" in str(made[2])
    assert "not judged (pairs are missing)" in str(made[3])


def test_one_that_wins_is_named():
    found = [
        summary("a/b", "controller", (80.0,)),
        summary("a/b", "cosine_tuned", (81.0,)),
        summary("a/b", "fixed", (70.0,)),
    ]
    assert _verdicts.winners(found) == {"a/b": {"cosine_tuned": pytest.approx(1.0)}}


def test_sweeps_count_from_the_rate_that_validation_chooses():
    accuracy = {
        "fixed": [0.1, 0.2, 0.7, 0.9, 0.95, 0.3, 0.1],
        "controller": [0.89, 0.9, 0.9, 0.91, 0.885, 0.95, math.nan],
    }
    rows = [
        {"pair": "mnist/mlp", "method": method, "rate": rate, "test_accuracy": value,
         "val_accuracy": 1.0 if rate == 1e-3 else 0.5}
        for method, values in accuracy.items()
        for rate, value in zip(_recipes.RATES, values, strict=True)
    ]  # fmt: skip
    (found,) = rates.sweeps(rows)
    assert (found.best_rate, found.best, found.needed) == (1e-3, 90.0, 7)
    assert found.within == {"fixed": 2, "controller": 5}
    verdict = rates.verdicts([], [found], {})[6]
    assert verdict.reached is False and "Controller 5, fixed 2" in verdict.text


def test_thresholds_and_steps(done):
    rows = [
        {"pair": "a/b", "method": "fixed", "looks": [[10, 0.5], [20, 0.8]]},
        {"pair": "a/b", "method": "fixed", "looks": [[10, 0.6], [20, 0.4]]},
    ]
    assert _verdicts.thresholds(rows) == {"a/b": pytest.approx(0.95 * 0.7)}
    assert [_verdicts._to_threshold(row, 0.6) for row in rows] == [20, 10]


def test_a_folder_is_for_one_controller(data, tmp_path, monkeypatch):
    rates.check_folder(PLAN, tmp_path)
    rates.check_folder(dataclasses.replace(PLAN, seeds=5, names=("imdb/gru",)), tmp_path)
    with pytest.raises(rates.OtherSettingsError, match="seed 1, not 2; give the same options"):
        rates.check_folder(dataclasses.replace(PLAN, seed=2), tmp_path)
    monkeypatch.setattr("tests.experiments.lr_adaptation_cases.RECORD", {**RECORD, "date": "later"})
    rates.check_folder(PLAN, tmp_path)  # made again, the same
    monkeypatch.setattr("tests.experiments.lr_adaptation_cases.Controller.digest", lambda self: "another")
    with pytest.raises(rates.OtherSettingsError, match="controller 'default' \\(as it was then\\)"):
        rates.check_folder(PLAN, tmp_path)


def test_recipes_have_what_the_aims_are_about():
    for name in ("reduced", "full"):
        assert {*rates.HELD_OUT, *rates.SWEEP} <= set(rates.RECIPES[name].setups)
    assert len(rates.HELD_OUT) == 10 and len(rates.ADAPTED) == 5 and {*rates.ADAPTED} <= {*rates.HELD_OUT}
    for recipe in rates.RECIPES.values():
        assert all(name == setup.pair and setup.batch_size == 32 for name, setup in recipe.setups.items())
