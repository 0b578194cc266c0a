"""The experiment of predicted hyperparameters: its searches, its measures, what it says, and that it goes on."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("cmaes", reason="cmaes is not installed")

from metafast._trainings import StoppedError
from metafast.experiments import hp_prediction as prediction
from metafast.experiments.hp_prediction import _gp, _measures, _optuna, _plan, _searchers, _suites, _tables
from metafast.hpo import MetaTask, Space, when
from metafast.runs import list_runs

RECIPE = prediction.Recipe("smoke", 2, 3, {"made": prediction.Suite(folds=2, tasks=4)}, "tiny.")
PLAN = prediction.Plan(RECIPE, ("made",), missing={"meta_tpe": "not here"})
CONDITIONAL = Space(
    optimizer=["sgd", "adam"], momentum=[0.0, 0.9], lr=[0.01, 0.1], conditions=[when("optimizer", "sgd", "momentum")]
)


def silent(searches):
    return lambda search, step: None


def table_of(scores, space=None, **more):
    """A task with these scores."""
    scores = np.asarray(scores, dtype=np.float64)
    space = space or Space(x=list(range(len(scores))))
    more = {"metric": "accuracy", "direction": "maximize", "dataset": "d", "name": "d/1", **more}
    curves, fractions = scores[:, None], np.ones(1)
    task = MetaTask(
        space=space, configs=space.grid(), curves=curves, fractions=fractions, seconds=np.full(len(scores), 2.0), **more
    )
    return prediction.Table(task, "made")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of it, once."""
    output = tmp_path_factory.mktemp("tiny")
    prediction.run(PLAN, output, 1, silent)
    return output


@pytest.fixture
def done(folder):
    return prediction.run(PLAN, folder, 1, silent)


def test_the_whole_and_again(done, folder, monkeypatch):
    found = prediction.results(PLAN, done)
    methods = [method for method in prediction.METHODS if method != "meta_tpe"]
    rows = {(row["method"], row["task"], row["seed"]) for row in found["rows"]}
    tasks = [table.task.name for table in _suites.tables("made", None)][::2]
    wanted = {(m, t, s) for m in methods for t in tasks for s in range(RECIPE.seeds_of(m))}
    assert rows == wanted and len(found["rows"]) == len(wanted)
    assert [each["method"] for each in found["summaries"]] == methods
    assert found["predictor"]["milliseconds"] > 0 and found["predictor"]["bytes"] > 0
    assert all(each["reached"] is None for each in found["verdicts"])  # made-up tasks decide nothing
    records = list_runs(folder / "runs", status="finished", tags=["hp-prediction"])
    assert len(records) == len(PLAN.searches)
    monkeypatch.setattr(_plan, "replay", lambda *arguments: pytest.fail("a finished search is not replayed"))
    assert prediction.run(PLAN, folder, 1, silent) == done


def test_every_row_says_what_was_run(done):
    known = {table.task.name: table for table in _suites.tables("made", None)}
    for row in PLAN.rows(done):
        table, tried = known[row["task"]], row["tried"]
        assert len(tried) == len(set(tried)) == RECIPE.runs and row["looks"] == [0, 1, 3]
        assert len(row["found"]) == len(row["told"]) == len(row["rank"]) == 3
        assert all(0 <= value <= 1 for value in row["found"] + row["told"])
        if row["method"] == "ours_short":
            assert row["trainings"] == [0, 0.25, 0.75] and row["course"] == []
            continue
        assert row["trainings"] == [0, 1, 3]
        assert row["seconds"][-1] == pytest.approx(table.seconds[tried].sum())
        assert row["found"][-1] == pytest.approx(table.regret[tried].min()) == pytest.approx(row["course"][-1])
        assert row["found_near"][-1] == table.near[tried].any()


def test_interrupted_anywhere_it_gives_the_same_rows(done, tmp_path):
    """Ctrl-C after each task of some searches, then to the end."""
    stops, seen = 0, set()

    def interrupt(search, step):
        if (search.name, step) not in seen and len(seen) < 6:
            seen.add((search.name, step))
            raise KeyboardInterrupt

    recipe = dataclasses.replace(RECIPE, suites={"made": prediction.Suite(2, 4, without=("gp", "ours_short", "rgpe"))})
    plan = dataclasses.replace(PLAN, recipe=recipe)
    while True:
        try:
            found = prediction.run(plan, tmp_path, 1, lambda searches: interrupt)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 6
    timeless = [{**row, "thinking": 0} for row in plan.rows(found)]
    assert json.dumps(timeless) == json.dumps([{**row, "thinking": 0} for row in plan.rows(done) if row_in(row, plan)])


def row_in(row, plan):
    return row["method"] in plan.methods("made")


def test_stopped_it_keeps_what_was_done(tmp_path):
    search = next(each for each in PLAN.searches if each.method == "random")
    with pytest.raises(StoppedError):
        prediction.search(search, tmp_path, lambda step: None, lambda: True)
    assert len(_plan._rows(_plan.Run.open(tmp_path / search.name))) == 1
    prediction.search(search, tmp_path, lambda step: None, lambda: False)
    assert len(_plan._rows(_plan.Run.open(tmp_path / search.name))) == search.steps


def test_what_is_left_out_is_seen_by_nobody():
    for fold in prediction.folds("made", None, None, None) + prediction.folds("made", None, 3, None):
        targets, sources = prediction.split(fold, None)
        assert {t.task.dataset for t in targets} == set(fold.datasets)
        assert not {t.task.dataset for t in sources} & set(fold.datasets)
        predictor = _plan._predictors.without(fold, None)
        assert set(predictor.tasks) == {table.task.name for table in sources}
    assert sum(len(fold.targets) for fold in prediction.folds("made", None, None, 3)) <= 4


def test_other_settings_are_refused(folder):
    prediction.check_folder(PLAN, folder)
    with pytest.raises(prediction.OtherSettingsError, match="seed 0, not 1"):
        prediction.check_folder(dataclasses.replace(PLAN, seed=1), folder)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_merits_of_failed_and_diverged_trainings_are_those_of_knowing_nothing():
    errors = table_of([0.2, np.nan, 5e9, 0.5, 0.21], direction="minimize", metric="mse", reference=1.0)
    assert errors.merit.tolist() == [-0.2, -1.0, -1.0, -0.5, -0.21]
    assert errors.near.tolist() == [True, False, False, False, True]
    assert errors.regret.tolist() == pytest.approx([0, 1, 1, 0.375, 0.0125])
    accuracies = table_of([0.9, np.nan, 0.01, 0.86], reference=0.1)
    assert accuracies.merit.tolist() == [0.9, 0.1, 0.1, 0.86] and accuracies.near.tolist() == [True, False, False, True]
    unknown = table_of([0.9, np.nan, 0.3])
    assert unknown.merit.tolist() == [0.9, 0.3, 0.3] and unknown.score(unknown.best) == 0.9
    assert table_of([np.nan, np.nan]).regret.tolist() == [0, 0]


def test_codes_of_a_conditional_space():
    codes = _tables.encoded(CONDITIONAL, CONDITIONAL.grid())
    assert codes.shape == (6, 2 + 1 + 1 + 1)  # two optimizers, momentum, rate, whether momentum is there
    assert len(np.unique(codes, axis=0)) == 6 and codes.min() >= 0 and codes.max() <= 1


# ---- searches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_optuna.tpe, _optuna.gp, _optuna.cma_es, _searchers.PlainGP, _searchers.RGPE])
@pytest.mark.parametrize("space", [CONDITIONAL, Space(x=[0.0, 0.5, 1.0], y=["a", "b"])], ids=["conditional", "plain"])
def test_searches_run_each_candidate_once_until_none_is_left(make, space):
    rng = np.random.default_rng(0)
    table, other = table_of(rng.random(6), space), table_of(rng.random(6), space, name="e/1", dataset="e")
    row = prediction.replay(make, table, [other], 0, 6)
    assert sorted(row["tried"]) == list(range(6)) and row["found"][-1] < 1


def test_searches_that_learn_find_the_top_of_a_hill():
    space = Space(x=[i / 14 for i in range(15)], y=[i / 14 for i in range(15)])
    units = np.array([[config["x"], config["y"]] for config in space.grid()])
    scores = 1 - ((units - [0.7, 0.3]) ** 2).sum(1)
    table, found = table_of(scores, space), {}
    for name, make in (("gp", _optuna.gp), ("gp_table", _searchers.PlainGP), ("random", _searchers.RandomSearch)):
        found[name] = np.mean([prediction.replay(make, table, [], seed, 10)["course"][-1] for seed in range(2)])
    assert found["gp"] < found["random"] and found["gp_table"] < 0.01
    other = table_of(scores, space, name="e/1", dataset="e")
    assert prediction.replay(_searchers.RGPE, table, [other], 0, 1)["found"][0] < 0.01


def test_the_zero_shot_list_is_that_of_mean_ranks():
    """Two tasks that want different things: first what is good in both, then what is best in each."""
    sources = [table_of([0.9, 0.1, 0.8, 0.2], name="a"), table_of([0.1, 0.9, 0.8, 0.2], name="b")]
    searcher = _searchers.ZeroShot(table_of([0.0] * 4, name="c"), sources, 0)
    order = []
    for _ in range(4):
        order.append(searcher.ask())
        searcher.tell(order[-1], 0.0)
    assert order[0] == 2 and set(order[1:3]) == {0, 1} and order[3] == 3


def test_sources_with_other_configurations_are_asked_for_the_nearest():
    wide = Space(x=[0.0, 0.4, 0.6, 1.0])
    source = table_of([0.1, 0.2, 0.3, 0.4], wide, name="a")
    table = table_of([0, 0, 0], Space(x=[0.0, 0.55, 1.0]), name="b")
    assert _searchers.on_candidates(source, table).tolist() == [0.1, 0.3, 0.4]


def test_optuna_sees_numbers_in_their_order():
    table = table_of([0.1] * 6, Space(lr=[0.1, 0.001, 0.01], optimizer=["sgd", "adam"]))
    assert _optuna.levels(table) == {"lr": [0.001, 0.01, 0.1], "optimizer": ["sgd", "adam"]}
    search = _optuna.tpe(table, [], 0)
    trial = search._trial(table, table.place[table.task.space.key({"lr": 0.1, "optimizer": "adam"})], 0.5)
    assert trial.params == {"lr": 2, "optimizer": 1} and trial.value == 0.5


# ---- processes -------------------------------------------------------------------------------------------------------


def test_a_process_goes_through_what_it_knows_and_the_left_out_are_those_of_a_refit():
    rng = np.random.default_rng(0)
    codes = rng.random((12, 2))
    values = np.sin(4 * codes[:, 0]) + codes[:, 1]
    fitted = _gp.fit(codes, range(10), values[:10])
    scaled = (values - values[:10].mean()) / values[:10].std()
    assert np.abs(fitted.mean[:10] - scaled[:10]).max() < 0.2
    assert fitted.std[:10].max() < fitted.std[10:].max()
    assert np.diagonal(fitted.cov(range(12))) == pytest.approx(fitted.std**2, abs=1e-6)
    mean, std = _gp.left_out(fitted, codes, range(10), values[:10])
    kernel = _gp.matern(*[_gp.torch.from_numpy(codes[:10])] * 2, fitted.raw).numpy()
    kernel += (math.exp(fitted.raw[-1]) + 1e-6) * np.eye(10)
    rest = [row for row in range(10) if row != 4]
    weights = np.linalg.solve(kernel[np.ix_(rest, rest)], kernel[rest, 4])
    assert mean[4] == pytest.approx(weights @ scaled[rest], abs=1e-6)
    assert std[4] ** 2 == pytest.approx(kernel[4, 4] - weights @ kernel[rest, 4], abs=1e-6)


def test_the_ensemble_trusts_the_task_that_ranks_alike():
    rng = np.random.default_rng(0)
    codes = np.linspace(0, 1, 30)[:, None]
    alike, opposite = np.sin(5 * codes[:, 0]), -np.sin(5 * codes[:, 0])
    sources = [_gp.fit(codes, range(30), values) for values in (alike, opposite)]
    assert _gp.ensemble_weights(sources, None, [], np.zeros(0), rng).tolist() == [0.5, 0.5, 0]
    observed, values = [1, 8, 15, 28], 3 + 2 * alike[[1, 8, 15, 28]]
    target = _gp.left_out(_gp.fit(codes, observed, values), codes, observed, values)
    weights = _gp.ensemble_weights(sources, target, observed, values, rng)
    assert weights.sum() == pytest.approx(1) and weights[0] > 0.6 and weights[1] == 0


def test_expected_improvement_is_that_of_samples():
    mean, std = np.array([0.0, 0.5, -1.0]), np.array([1.0, 0.1, 2.0])
    drawn = mean + std * np.random.default_rng(0).standard_normal((200_000, 3))
    assert _gp.expected_improvement(mean, std, 0.3) == pytest.approx(np.maximum(drawn - 0.3, 0).mean(0), abs=0.01)


def test_constant_values_do_no_harm():
    fitted = _gp.fit(np.linspace(0, 1, 5)[:, None], [0, 1, 2], np.full(3, 0.7))
    assert np.isfinite(fitted.mean).all() and np.isfinite(fitted.std).all()


# ---- measures --------------------------------------------------------------------------------------------------------

values = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=30)


@given(values)
def test_signed_rank_is_symmetric_and_a_probability(differences):
    p = _measures.signed_rank(differences)
    assert 0 < p <= 1 and p == pytest.approx(_measures.signed_rank([-each for each in differences]))
    assert p == pytest.approx(_measures.signed_rank([7 * each for each in differences]))


@pytest.mark.parametrize("count", [5, 12, 25, 45, 200])
def test_signed_rank_is_scipys(count):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    method = "exact" if count <= 60 else "approx"
    wanted = stats.wilcoxon(differences, method=method, correction=True).pvalue
    assert _measures.signed_rank(differences.tolist()) == pytest.approx(wanted, rel=1e-3)


@given(values, st.randoms(use_true_random=False))
def test_spearman_is_that_of_ranks(one, random):
    other = [random.choice([0.0, 1.0, 2.0]) for _ in one]
    found = _measures.spearman(np.array(one), np.array(other))
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert math.isnan(found)
        return
    ranks = np.corrcoef(_measures.mid_ranks(np.array(one)), _measures.mid_ranks(np.array(other)))[0, 1]
    assert found == pytest.approx(ranks, abs=1e-9)


def test_coverage_of_what_is_cut_at_the_floor():
    truth = np.array([0.1, 0.5, 0.9])
    low, high = np.array([-3.0, 0.6, 0.8]), np.array([-1.0, 0.7, 1.0])
    assert _measures.coverage(truth, low, high, 0.1) == pytest.approx(2 / 3)
    assert _measures.calibration(np.zeros(3), np.zeros(3), np.ones(3), -9.0) == [1.0] * len(_measures.LEVELS)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def rows_with(regret, method, tasks=10, near=True, cost=1e-4, rank=0.9, coverage=0.9, suite="collected"):
    looks = [0, 1, 3, 5, 10]
    flat = {"told": regret, "rank": rank, "coverage": coverage, "told_test": 0.0}
    rows = []
    for task in range(tasks):
        mine = regret * (1 + 0.01 * task)
        row = {"suite": suite, "dataset": f"d{task}", "task": f"{suite}{task}", "seed": 0, "method": method}
        row |= {name: [value] * 5 for name, value in flat.items()}
        row |= {"found": [mine] * 5, "course": [mine] * 10, "found_near": [near] * 5, "told_near": [near] * 5}
        row |= {"looks": looks, "trainings": looks, "seconds": [cost * runs for runs in looks], "thinking": 0.1}
        rows.append(row)
    return rows


SIZE = {"milliseconds": 10.0, "candidates": 486, "bytes": 4000, "numbers": 1000}


def judged(rows, size=SIZE):
    grids = {row["task"]: (1.0, 486) for row in rows}
    found = prediction.summaries(rows, grids)
    return {str(v).split(":")[0]: v.reached for v in prediction.verdicts(found, rows, size, "collected")}


def test_all_aims_reached():
    rows = rows_with(0.01, "ours") + rows_with(0.1, "ours_short", cost=1e-5)
    for method, regret in (("random", 0.3), ("tpe", 0.2), ("gp", 0.2), ("gp_table", 0.2), ("rgpe", 0.05)):
        rows += rows_with(regret, method, near=False)
    for suite in ("taskset", "svm"):
        for method in ("ours", "tpe", "gp"):
            rows += rows_with(0.1 if method == "ours" else 0.2, method, suite=suite)
    found = judged(rows)
    assert len(found) == 14 and all(found.values())


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"regret": 0.1}, "Mean regret after 5 runs"),
        ({"near": False}, "Within 5 %"),
        ({"rank": 0.5}, "Median rank correlation"),
        ({"coverage": 0.99}, "Coverage"),
        ({"cost": 0.01}, "A recommendation costs"),
        ({"regret": 0.06}, "Regret after 10 runs below"),
    ],
)
def test_an_aim_that_is_missed_is_said_to_be(changed, missed):
    rows = rows_with(**{"regret": 0.01, "method": "ours", **changed})
    for method, regret in (("random", 0.3), ("rgpe", 0.05), ("tpe", 0.5)):
        rows += rows_with(regret, method)
    found = judged(rows)
    assert not any(reached for aim, reached in found.items() if aim.startswith(missed))
    assert any(found.values())


def test_a_slow_or_large_predictor_misses_its_aim():
    for changed in ({"milliseconds": 60.0}, {"numbers": 3_000_000}):
        aims = judged(rows_with(0.01, "ours") + rows_with(0.1, "random"), {**SIZE, **changed})
        assert aims["At most 2 M parameters, and 50 ms for all configurations on one core"] is False
