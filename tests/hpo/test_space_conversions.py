"""Spaces as Optuna's distributions and Ray's domains; Ray itself is not run: stand-ins have its words."""

import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metafast.hpo import Choice, FloatRange, IntRange, Space, when
from metafast.hpo._space_optuna import Distributions

pytest.importorskip("optuna")

import optuna

D = optuna.distributions
SPACE = Space(
    lr=FloatRange(1e-4, 1.0, log=True),
    layers=IntRange(1, 4),
    width=IntRange(8, 512, log=True),
    batch=[32, 64, 128],
    norm=["batch", None, True],
    momentum=FloatRange(0.0, 0.99),
    conditions=[when("norm", "batch", "momentum")],
)


def test_to_optuna_and_back():
    distributions = SPACE.to_optuna()
    assert distributions == {
        "lr": D.FloatDistribution(1e-4, 1.0, log=True),
        "layers": D.IntDistribution(1, 4),
        "width": D.IntDistribution(8, 512, log=True),
        "batch": D.CategoricalDistribution([32, 64, 128]),
        "norm": D.CategoricalDistribution(["batch", None, True]),
        "momentum": D.FloatDistribution(0.0, 0.99),
    }
    assert Space.from_optuna(distributions) == Space(SPACE.dimensions)


def test_steps_and_single_values_become_choices():
    space = Space.from_optuna(
        {
            "a": D.IntDistribution(32, 128, step=32),
            "b": D.FloatDistribution(0.0, 0.5, step=0.1),
            "c": D.FloatDistribution(2.0, 2.0),
            "d": D.FloatDistribution(0, 1, step=1e-5),
            "e": D.IntDistribution(0, 10**6, step=2),
        }
    )
    choices = [list(space.dimensions[name].choices) for name in "abc"]
    assert choices == [[32, 64, 96, 128], pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5]), [2.0]]
    assert space.dimensions["d"] == FloatRange(0.0, 1.0) and space.dimensions["e"] == IntRange(0, 10**6)


DISTRIBUTIONS = st.one_of(
    st.builds(lambda low, more: D.FloatDistribution(low, low + more), st.floats(-10, 10), st.floats(0, 10)),
    st.builds(lambda low, more: D.FloatDistribution(low, low * more, log=True), st.floats(1e-6, 10), st.floats(1, 1e5)),
    st.builds(
        lambda low, more, step: D.FloatDistribution(low, low + more * step, step=step),
        st.sampled_from([-10.2, 0, 0.1, 3]),
        st.integers(1, 3000),
        st.sampled_from([0.1, 0.5, 3]),
    ),
    st.builds(
        lambda low, more, step: D.IntDistribution(low, low + more, step=step),
        st.integers(-20, 20),
        st.integers(0, 5000),
        st.integers(1, 3),
    ),
    st.builds(lambda low, more: D.IntDistribution(low, low + more, log=True), st.integers(1, 20), st.integers(0, 99)),
    st.sampled_from([(1, True, 1.0), ("a", "b"), (None, "a", 2.5), (float("nan"), 3)]).map(D.CategoricalDistribution),
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from("abc"), DISTRIBUTIONS, min_size=1, max_size=2), st.integers(0, 2**32 - 1))
@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")
def test_what_is_drawn_from_distributions_is_in_them(distributions, seed):
    both = Distributions(distributions)
    rng = np.random.default_rng(seed)
    random = optuna.samplers.RandomSampler(seed=seed)
    for config in both.space.candidates(rng, 3):
        params = both.params(config)
        for name, value in params.items():
            distribution = distributions[name]
            assert distribution._contains(distribution.to_internal_repr(value)), (name, value)
            assert not isinstance(value, np.generic)
        assert both.params(both.config(params)) == params
    study = optuna.create_study()
    theirs = {n: random.sample_independent(study, None, n, distribution) for n, distribution in distributions.items()}
    both.space.check(both.config(theirs))
    assert both.config({}) is None
    assert both.config(dict.fromkeys(distributions, "elsewhere")) is None


def test_ask_asks_for_what_is_active():
    fixed = {"lr": 0.1, "layers": 2, "width": 8, "batch": 64, "norm": None, "momentum": 0.5}
    assert SPACE.ask(optuna.trial.FixedTrial(fixed)) == {name: v for name, v in fixed.items() if name != "momentum"}
    assert SPACE.ask(optuna.trial.FixedTrial({**fixed, "norm": "batch"})) == {**fixed, "norm": "batch"}


def test_what_optuna_cannot_say_is_refused():
    with pytest.raises(ValueError, match=r"Optuna's choices are .* got \[64, 32\] in space\['layers'\]"):
        Space(layers=Choice([[64, 32]])).to_optuna()
    with pytest.raises(TypeError, match=r"must map names to Optuna's distributions, got list"):
        Space.from_optuna([1])
    with pytest.raises(TypeError, match=r"distributions\['a'\] must be one of Optuna's, got 3"):
        Space.from_optuna({"a": 3})
    with pytest.raises(ValueError, match=r"distributions\['a'\]: choices must differ"):
        Space.from_optuna({"a": D.CategoricalDistribution([1, True])})
    with pytest.raises(ValueError, match="at least one hyperparameter"):
        Space.from_optuna({})


def test_without_optuna_or_ray_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ray\[tune\]'"):
        SPACE.to_ray()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'metafast\[hpo\]'"):
        SPACE.to_optuna()


class Sampler:
    def __init__(self, q=None, sampler=None):
        if q is not None:
            self.q = q
        self.sampler = sampler

    def get_sampler(self):
        return self.sampler


_Uniform, _LogUniform, _Normal, Quantized = (
    type(name, (Sampler,), {}) for name in ("_Uniform", "_LogUniform", "_Normal", "Quantized")
)


class Domain:
    def __init__(self, lower, upper, sampler):
        self.lower, self.upper, self.sampler = lower, upper, sampler

    def get_sampler(self):
        return self.sampler


Float, Integer = type("Float", (Domain,), {}), type("Integer", (Domain,), {})


class Categorical:
    def __init__(self, categories):
        self.categories = list(categories)


@pytest.fixture
def tune(monkeypatch):
    """Ray's words for domains."""
    module = ModuleType("ray.tune")
    module.choice = Categorical
    for name, kind in (("uniform", Float), ("randint", Integer)):
        setattr(module, name, lambda low, high, kind=kind: kind(low, high, _Uniform()))
        setattr(module, "log" + name.removeprefix("log"), lambda low, high, kind=kind: kind(low, high, _LogUniform()))
    module.lograndint = module.lograndint
    top = ModuleType("ray")
    top.tune = module
    monkeypatch.setitem(sys.modules, "ray", top)
    monkeypatch.setitem(sys.modules, "ray.tune", module)
    return module


def test_to_ray_and_back(tune):
    plain = Space(SPACE.dimensions)
    domains = plain.to_ray()
    assert (domains["layers"].lower, domains["layers"].upper) == (1, 5)
    assert Space.from_ray(domains) == plain
    with pytest.raises(ValueError, match=r"have no conditions, and this space has \['momentum'\]"):
        SPACE.to_ray()


def test_what_else_ray_can_say():
    space = Space.from_ray(
        {
            "opt": {"lr": Float(0.1, 0.4, Quantized(0.1, _Uniform())), "name": {"grid_search": ["sgd", "adam"]}},
            "width": Integer(8, 32, Quantized(8, _Uniform())),
            "one": Integer(3, 4, _Uniform()),
            "constant": 5,
            "fine": Float(0.0, 1.0, Quantized(1e-6, _Uniform())),
            "many": Integer(1, 9, Quantized(1, _LogUniform())),
        }
    )
    assert space.dimensions["opt/lr"].choices == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert space.dimensions["opt/name"] == Choice(["sgd", "adam"])
    assert space.dimensions["width"] == Choice([8, 16, 24, 32])
    assert space.dimensions["one"] == Choice([3]) and space.dimensions["constant"] == Choice([5])
    assert space.dimensions["fine"] == FloatRange(0.0, 1.0)
    assert space.dimensions["many"] == IntRange(1, 9, log=True)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Float(-np.inf, np.inf, _Normal()), TypeError, "a normal distribution has no ends"),
        (Float(-np.inf, 1.0, _Uniform()), ValueError, r"a range must have ends, got \[-inf, 1.0\]"),
        (lambda config: 3, TypeError, "a function that samples has no range"),
        ({"grid_search": []}, ValueError, "choices must have at least one value"),
    ],
)
def test_what_cannot_be_searched_is_refused(spec, error, message):
    with pytest.raises(error, match=r"param_space\['opt/x'\]: " + message):
        Space.from_ray({"opt": {"x": spec}})
    with pytest.raises(TypeError, match="must be a mapping, got list"):
        Space.from_ray([])
