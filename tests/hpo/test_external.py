"""Published searches as tasks."""

import numpy as np
import pytest

from metafast.hpo import svm_tasks, taskset_tasks

pytest.importorskip("datasets")


def _table(folder, rows):
    import datasets

    path = folder / "train.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def test_taskset(tmp_path):
    names = "learning_rate", "beta1", "beta2", "epsilon", "l1", "l2", "linear_decay", "exponential_decay"
    curve = np.linspace(0.7, 0.3, 51)
    rows = [
        {
            "task": f"FixedTextRNNClassification_imdb_patch32_{kind}_bs128",
            "config_id": number,
            **dict.fromkeys(names, 1e-5),
            "learning_rate": 10.0**-number,
            "valid_loss": [*curve[:-1], float("nan") if number == 2 else curve[-1] + number],
            "train_loss": list(curve),
            "test_loss": list(curve / 2),
        }
        for kind in ("GRU64_avg", "LSTM128")
        for number in range(3)
    ]
    one, two = taskset_tasks(_table(tmp_path, rows))
    assert (one.metric, one.direction) == ("loss", "minimize") and one.reference == pytest.approx(np.log(2))
    np.testing.assert_allclose(one.final, [0.3, 1.3, np.nan], rtol=1e-6)
    assert one.features["averaged"] == 1 and two.features["log10_width"] == pytest.approx(np.log10(128))
    for config in one.configs:
        one.space.check(config)
    assert taskset_tasks(tmp_path, scores="test")[0].final[0] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="scores must be"):
        taskset_tasks(tmp_path, scores="best")


def test_svm(tmp_path):
    meta = {f"meta_{number:02d}": number / 22 for number in range(22)}
    rbf = {"is_rbf": 1.0, "is_polynomial": 0.0, "is_linear": 0.0, "gamma_scaled": -0.5, "degree_scaled": 0.0}
    poly = {
        "is_rbf": 0.0,
        "is_polynomial": 1.0,
        "is_linear": 0.0,
        "gamma_scaled": 0.0,
        "degree_scaled": float(np.log10(3)),
    }
    rows = [
        {"dataset": name, "accuracy": accuracy, "kernel": kernel, **flags, "c_scaled": 1 / 6, **meta}
        for name in ("one", "two")
        for kernel, flags, accuracy in (("rbf", rbf, 0.9), ("polynomial", poly, 0.7))
    ]
    one, two = svm_tasks(_table(tmp_path, rows))
    assert (
        one.configs
        == two.configs
        == [{"kernel": "polynomial", "C": 2.0, "degree": 3}, {"kernel": "rbf", "C": 2.0, "gamma": 0.01}]
    )
    np.testing.assert_allclose(one.final, [0.7, 0.9], rtol=1e-6)
    assert one.dataset == "svm/one" and len(one.features) == 22
    for config in one.configs:
        one.space.check(config)
