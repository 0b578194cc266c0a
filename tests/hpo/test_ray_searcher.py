"""The searcher for Ray Tune, against a stand-in of Ray's base class; Ray itself is not run here."""

import importlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest

from metafast.hpo import FloatRange, Space, when
from tests.hpo.stand_in import StandIn

SPACE = Space({"lr": [0.1, 0.2], "opt/name": ["sgd", "adam"], "opt/momentum": [0.0, 0.9]},
              conditions=[when("opt/name", "sgd", "opt/momentum")])  # fmt: skip


class Searcher:
    FINISHED = "FINISHED"

    def __init__(self, metric=None, mode=None):
        self._metric, self._mode = metric, mode


@pytest.fixture
def searcher(monkeypatch):
    """A maker of searchers, in a world with Ray's words."""
    search = ModuleType("ray.tune.search")
    search.Searcher = Searcher
    for module in (ModuleType("ray"), ModuleType("ray.tune"), search):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "metafast.hpo._ray", raising=False)
    made = importlib.import_module("metafast.hpo._ray")
    yield made.PredictorSearcher
    monkeypatch.delitem(sys.modules, "metafast.hpo._ray")


def test_a_search(searcher):
    predictor = StandIn()
    search = searcher(predictor, SPACE, metric="accuracy", mode="max", task={"a": 1.0}, seed=0)
    configs = []
    for number in range(6):
        config = search.suggest(f"t{number}")
        assert set(config) == {"lr", "opt"} and ("momentum" in config["opt"]) == (config["opt"]["name"] == "sgd")
        configs.append(json.dumps(config))
        for step in (1, 2, 3):
            search.on_trial_result(f"t{number}", {"training_iteration": step, "accuracy": step * config["lr"]})
        end = {"training_iteration": 3, "accuracy": 3 * config["lr"], "time_total_s": 5}
        search.on_trial_complete(f"t{number}", end)
    assert len(set(configs)) == 6 == SPACE.size
    assert search.suggest("t6") == "FINISHED"
    asked = predictor.asked[-1]
    assert (asked["metric"], asked["direction"], asked["features"]) == ("accuracy", "maximize", {"a": 1.0})
    assert [o.fraction for o in asked["observed"]] == [1.0] * 5


def test_running_stopped_and_failed_trials(searcher):
    predictor = StandIn()
    search = searcher(predictor, Space(x=FloatRange(0.0, 1.0)), metric="loss", mode="min", seed=0)
    values = {name: search.suggest(name)["x"] for name in "abcd"}
    assert len(set(values.values())) == 4
    for step in range(1, 11):
        search.on_trial_result("a", {"training_iteration": step, "loss": 1.0})
    search.on_trial_complete("a", {"training_iteration": 10, "loss": 1.0})
    search.on_trial_result("b", {"training_iteration": 5, "loss": 2.0})
    search.on_trial_complete("b", {"training_iteration": 5, "loss": 2.0})
    search.on_trial_result("c", {"training_iteration": 2, "loss": 3.0, "other": 1})
    search.on_trial_result("c", {"training_iteration": 3})
    search.on_trial_complete("d", None, error=True)
    search.on_trial_complete("nobody", None, error=True)
    search.suggest("e")
    observed = predictor.asked[-1]["observed"]
    told = {o.config["x"]: (o.fraction, o.score) for o in observed[:4]}
    assert told[values["a"]] == (1.0, 1.0) and told[values["b"]] == (0.5, 2.0) and told[values["c"]] == (0.2, 3.0)
    assert np.isnan(told[values["d"]][1])
    assert len(observed) == 5 and observed[4].config["x"] == values["c"]  # believed to end as expected


def test_points_from_elsewhere(searcher):
    predictor = StandIn()
    search = searcher(predictor, SPACE, metric="accuracy", mode="max")
    search.add_evaluated_point({"lr": 0.1, "opt": {"name": "adam"}}, 0.5)
    search.add_evaluated_point({"lr": 0.2, "opt": {"name": "adam"}}, 0.5, error=True)
    sgd = {"name": "sgd", "momentum": 0.9}
    search.add_evaluated_point({"lr": 0.2, "opt": sgd}, 0.5, intermediate_values=[0.1, 0.2])
    with pytest.raises(ValueError, match="has no 'opt/name'"):
        search.add_evaluated_point({"lr": 0.1}, 0.5)
    search.suggest("a")
    assert [(o.score, o.fraction) for o in predictor.asked[-1]["observed"]][::2] == [(0.5, 1.0)] * 2


def test_the_space_may_come_from_the_tuner(searcher):
    search = searcher(StandIn())
    with pytest.raises(RuntimeError, match="needs a space, a metric and a mode"):
        search.suggest("a")
    with pytest.raises(RuntimeError, match="needs its space before points are added"):
        search.add_evaluated_point({}, 1.0)
    assert search.set_search_properties("loss", "min", {"opt": {"lr": {"grid_search": [1, 2]}}, "data": "digits"})
    assert search.suggest("a")["data"] == "digits"
    assert not search.set_search_properties("loss", "min", {"lr": 1})
    with pytest.raises(ValueError, match="metric 'loss' is to minimize"):
        searcher(StandIn(), SPACE, metric="loss", mode="max").suggest("a")
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', got 'up'"):
        searcher(StandIn(), SPACE, mode="up")


def test_its_state_is_saved_and_restored(searcher, tmp_path):
    def run(search, names):
        found = []
        for name in names:
            found.append(search.suggest(name))
            search.on_trial_complete(name, {"training_iteration": 1, "loss": float("nan") if name == "b" else 1.0})
        return found

    whole = searcher(StandIn(), Space(x=FloatRange(0.0, 1.0)), metric="loss", mode="min", seed=1)
    first = run(whole, "abc")
    whole.save(str(tmp_path / "state"))
    rest = run(whole, "def")
    other = searcher(StandIn())
    other.restore(str(tmp_path / "state"))
    assert run(other, "def") == rest and first[0] != rest[0]
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(ValueError, match="is no state of a PredictorSearcher"):
        other.restore(str(tmp_path / "bad"))


def test_without_ray_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "metafast.hpo._ray", raising=False)
    from metafast import hpo

    with pytest.raises(ImportError, match=r"PredictorSearcher needs Ray Tune: pip install 'ray\[tune\]'"):
        _ = hpo.PredictorSearcher
    with pytest.raises(AttributeError, match="has no attribute 'Nobody'"):
        _ = hpo.Nobody
