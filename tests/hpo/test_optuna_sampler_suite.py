"""Optuna's own tests of samplers."""

import functools

import pytest

pytest.importorskip("optuna")

from optuna.testing import pytest_samplers as suite

from metafast.hpo import Predictor, PredictorSampler
from tests.hpo.stand_in import StandIn

shipped = functools.cache(Predictor.load)


class Case:
    """Without a fallback of its own."""

    @pytest.fixture
    def sampler(self):
        return lambda: PredictorSampler(StandIn(), seed=0)


class TestBasic(Case, suite.BasicSamplerTestCase):
    pass


class TestRelative(Case, suite.RelativeSamplerTestCase):
    pass


class TestMultiObjective(Case, suite.MultiObjectiveSamplerTestCase):
    pass


class Fallback:
    """Where the predictor knows nothing."""

    @pytest.fixture
    def sampler(self):
        return lambda: PredictorSampler(StandIn(source="gp"), fallback="tpe", seed=0)


class TestFallback(Fallback, suite.RelativeSamplerTestCase):
    pass


class Shipped:
    """The predictor that ships, which knows none of these hyperparameters."""

    @pytest.fixture
    def sampler(self):
        return lambda: PredictorSampler(shipped(), fallback="tpe", seed=0)


class TestShipped(Shipped, suite.BasicSamplerTestCase):
    pass
