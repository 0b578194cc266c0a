"""From a bad start, tuning ends clearly better than not tuning: on the bundled digits, as the benchmark has it."""

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks.tune.digits import run


@pytest.mark.parametrize(
    ("rate", "gain", "method"), [(1e-4, 50, "reverse"), (1e-4, 50, "one_step"), (1.0, 30, "one_step")]
)
def test_sgd_from_a_bad_rate(rate, gain, method):
    plain, tuned = run("SGD", rate, None, 0, steps=400), run("SGD", rate, method, 0, steps=400)
    assert tuned["accuracy"] >= plain["accuracy"] + gain
    assert tuned["loss"] < plain["loss"]
