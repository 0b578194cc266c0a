"""From a bad start, tuning ends clearly better than not tuning: on the bundled digits, as the benchmark has it."""

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks.tune.digits import run


@pytest.mark.parametrize("method", ["one_step", "reverse"])
@pytest.mark.parametrize(("rate", "gain"), [(1e-5, 60), (1.0, 30)])
def test_sgd_from_a_bad_rate(rate, gain, method):
    plain, tuned = run("SGD", rate, None, 0, steps=450), run("SGD", rate, method, 0, steps=450)
    assert tuned["accuracy"] >= plain["accuracy"] + gain
    assert tuned["loss"] < plain["loss"]
