import numpy as np
import pytest

pytest.importorskip("optuna")

from benchmarks.hpo.pruning import MEASURES, methods, replay
from metafast.hpo import MetaTask, Predictor, Space

SPACE = Space(lr=[1e-3, 1e-2, 1e-1, 1.0], layers=[1, 2, 3])


def task(name, best):
    """Curves whose order never changes; one configuration fails."""
    ends = np.array([0.9 - 0.1 * abs(np.log10(c["lr"] / best)) - 0.01 * c["layers"] for c in SPACE.grid()])
    curves = ends[:, None] * np.array([0.5, 0.75, 1.0])
    curves[3] = np.nan
    return MetaTask(name, name, SPACE, SPACE.grid(), curves, np.array([0.25, 0.5, 1.0]), np.full(len(ends), np.nan))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_replays_count_what_is_used_and_lost():
    predictor = Predictor().fit([task("a", 3e-2), task("b", 1e-2), task("c", 1e-1)])
    held = task("d", 2e-2)
    found = {name: replay(held, make(), 10, 0) for name, make in methods(predictor, held).items()}
    assert all(set(measures) == set(MEASURES) for measures in found.values())
    assert found["none"]["budget"] == pytest.approx(1.0) and found["none"]["pruned"] == 0
    ours = found["PredictorPruner"]
    assert ours["budget"] < 1 and ours["pruned"] > 0 and ours["regret"] == found["none"]["regret"]
