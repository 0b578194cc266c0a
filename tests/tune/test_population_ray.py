"""What is handed to Ray Tune, against a stand-in with Ray's words; Ray itself is not run here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from metafast.tune.population import ASHA, PB2, Choice, FloatRange, IntRange, to_ray
from tests.tune.population_cases import train

SPACE = {"rate": FloatRange(1e-3, 1.0, log=True), "width": IntRange(1, 8)}


def words(name):
    """A function or class of Ray that only remembers what it was called with."""
    return lambda *args, **options: SimpleNamespace(name=name, args=args, **options)


@pytest.fixture
def ray(monkeypatch):
    """Modules named like Ray's."""
    tune, schedulers, pb2 = (ModuleType(f"ray.tune{end}") for end in ("", ".schedulers", ".schedulers.pb2"))
    for name in ("choice", "uniform", "loguniform", "randint", "lograndint", "TuneConfig"):
        setattr(tune, name, words(name))
    tune.Trainable = type("Trainable", (), {"trial_id": "a1"})
    schedulers.ASHAScheduler, schedulers.PopulationBasedTraining = words("ASHA"), words("PBT")
    pb2.PB2 = words("PB2")
    top = ModuleType("ray")
    top.tune = tune
    for module in (top, tune, schedulers, pb2):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return top


def test_without_ray_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ray\[tune\]'"):
        to_ray(PB2(SPACE, interval=2), train, 4)


def test_space_and_settings_of_pb2(ray):
    parts = to_ray(PB2({**SPACE, "layers": Choice([1, 2], fixed=True)}, 6, interval=2, mode="max"), train, 9)
    assert parts.keys() == {"trainable", "param_space", "tune_config"}
    domains = {name: (domain.name, domain.args) for name, domain in parts["param_space"].items()}
    assert domains == {
        "rate": ("loguniform", (1e-3, 1.0)),
        "width": ("randint", (1, 9)),
        "layers": ("choice", ([1, 2],)),
    }
    config = parts["tune_config"]
    assert (config.metric, config.mode, config.num_samples) == ("value", "max", 6)
    assert vars(config.scheduler) == {
        "name": "PB2", "args": (), "time_attr": "steps", "perturbation_interval": 2, "quantile_fraction": 0.25,
        "hyperparam_bounds": {"rate": [1e-3, 1.0], "width": [1, 8]},
    }  # fmt: skip


def test_perturbation_becomes_population_based_training(ray):
    scheduler = to_ray(PB2({**SPACE, "b": [32, 64]}, interval=2, explore="perturb"), train, 9)["tune_config"].scheduler
    assert scheduler.name == "PBT" and scheduler.resample_probability == 0.25
    assert scheduler.hyperparam_mutations["b"] == [32, 64]
    assert scheduler.hyperparam_mutations["width"].args == (1, 9)


def test_settings_of_asha(ray):
    config = to_ray(ASHA({**SPACE, "n": IntRange(1, 9, log=True)}, 20, 2, reduction=3), train, 18)["tune_config"]
    assert config.num_samples == 20 and config.mode == "min"
    assert vars(config.scheduler) == {
        "name": "ASHA", "args": (), "time_attr": "steps", "max_t": 18, "grace_period": 2, "reduction_factor": 3,
    }  # fmt: skip


def test_a_trainable_trains_legs_and_takes_checkpoints_over(ray, tmp_path):
    made = to_ray(PB2(SPACE, interval=2), train, 5)["trainable"]

    def trial(name):
        trainable = made()
        trainable.logdir = str(tmp_path / name)
        (tmp_path / name).mkdir()
        trainable.setup({"rate": 0.1, "width": 2})
        return trainable

    one, other = trial("one"), trial("other")
    first = one.step()
    assert first["steps"] == 2 and not first["done"]
    (tmp_path / "checkpoint").mkdir()
    one.save_checkpoint(str(tmp_path / "checkpoint"))
    other.step()
    assert other.reset_config({"rate": 0.1, "width": 2})
    other.load_checkpoint(str(tmp_path / "checkpoint"))
    last, copied = one.step(), other.step()
    assert last == copied == {"value": last["value"], "steps": 5, "done": True}
    one.reset_config({"rate": "much", "width": 2})
    one._number = 0
    with pytest.raises(RuntimeError, match="TypeError"):
        one.step()


def test_what_ray_cannot_do_is_refused(ray):
    with pytest.raises(ValueError, match=r"Ray's PB2 searches ranges of numbers only.*space\['b'\].*perturb"):
        to_ray(PB2({"b": [1, 2]}, interval=2), train, 4)
    with pytest.raises(TypeError, match="search must be a PB2 or an ASHA, got str"):
        to_ray("pb2", train, 4)
    with pytest.raises(ValueError, match="steps must be at least interval=2"):
        to_ray(PB2(SPACE, interval=2), train, 1)
