"""Series: read by name, split by time without leaks, scaled by the training part alone, and the naive forecast."""

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import DatasetNotFoundError, forecast_splits, load_series, seasonal_naive
from metafast.data import _load as loading


def counting(*lengths):
    """Series whose values are their own positions."""
    return [torch.arange(float(length)) for length in lengths]


@given(st.integers(40, 200), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5))
def test_parts_follow_each_other_and_no_target_is_seen_before(total, length, horizon, stride):
    total = max(total, 8 * (length + horizon))
    values = torch.arange(float(total))
    parts = forecast_splits([values], length, horizon, val=0.2, test=0.3, stride=stride)
    known = total - round(0.5 * total)
    mean, spread = values[:known].mean(), values[:known].std(correction=0)
    at = [(part.inputs * spread + mean).round() for part in parts]
    to = [(part.targets * spread + mean).round() for part in parts]
    for inputs, targets in zip(at, to, strict=True):
        rows = torch.cat([inputs, targets], 1)
        assert torch.equal(rows - rows[:, :1], torch.arange(float(length + horizon)).expand_as(rows))
        assert torch.equal(rows[1:, 0] - rows[:-1, 0], torch.full((len(rows) - 1,), float(stride)))
    assert to[0].max() < known <= to[1].min()
    assert to[1].max() < total - round(0.3 * total) <= to[2].min()
    assert to[2].max() <= total - 1
    if stride == 1:
        assert to[2].max() == total - 1


def test_scaling_knows_the_training_part_alone():
    series = torch.cat([torch.randn(70), 1000 + torch.randn(30)])
    parts = forecast_splits([series], 5, 2)
    assert parts.train.inputs.abs().max() < 10
    assert parts.test.targets.min() > 100
    changed = series.clone()
    changed[70:] = 0.0
    assert torch.equal(forecast_splits([changed], 5, 2).train.inputs, parts.train.inputs)


def test_each_series_has_a_scale_of_its_own_and_a_constant_one_stays_finite():
    parts = forecast_splits({"a": torch.randn(100), "b": 50 * torch.randn(100) + 7, "c": torch.full((100,), 3.0)}, 8, 4)
    assert [len(part.inputs) for part in parts] == [3 * 59, 3 * 7, 3 * 17]
    assert parts.train.inputs.dtype is torch.float32
    assert parts.train.inputs[-59:].eq(0).all()
    assert abs(float(parts.train.inputs[59:118].std()) - 1) < 0.2


def test_the_seasonal_naive_forecast_repeats_the_last_season():
    past = torch.arange(12.0).reshape(2, 6)
    assert seasonal_naive(past, 4, 3).tolist() == [[3, 4, 5, 3], [9, 10, 11, 9]]
    wave = torch.sin(torch.arange(400) * 2 * torch.pi / 24)
    part = forecast_splits([wave], 48, 24).test
    torch.testing.assert_close(seasonal_naive(part.inputs, 24, 24), part.targets, atol=1e-4, rtol=0)


def test_columns_and_lists_are_series(tmp_path):
    datasets.Dataset.from_dict({"x": [1.0, 2.0], "y": [3.0, 4.0]}).to_parquet(tmp_path / "wide.parquet")
    found = load_series("mine", ["wide"], columns=["y", "x"], path=tmp_path)
    assert {name: values.tolist() for name, values in found.items()} == {"wide/y": [3, 4], "wide/x": [1, 2]}
    rows = {"item_id": ["a", "b"], "target": [[1.0], [2.0, 3.0]], "future_target": [[9.0], [8.0]]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    found = load_series("mine", path=tmp_path)
    assert {name: values.tolist() for name, values in found.items()} == {"train/a": [1, 9], "train/b": [2, 3, 8]}


def test_series_at_hand(data_folder):
    data_folder("ett"), data_folder("m4")
    ett, m4 = load_series("ett"), load_series("m4")
    assert len(ett) == 12 and {len(values) for values in ett.values()} == {17420}
    assert len(m4) == 414 and {len(values) for values in m4.values()} == {748, 1008}
    parts = forecast_splits(ett, 48, 24, stride=24)
    error = (seasonal_naive(parts.test.inputs, 24, 24) - parts.test.targets).abs().mean()
    assert 0.1 < float(error) < 1  # yesterday says something of today


def test_the_hubs_electricity_is_asked_for_by_name(monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def load_dataset(*name, split):
            asked.append((*name, split))
            return datasets.Dataset.from_dict({"id": ["T000000"], "target": [[1.0, 2.0]]})

    monkeypatch.delenv("METAFAST_DATA", raising=False)
    monkeypatch.setattr(loading, "_datasets", lambda: Hub)
    assert load_series("electricity")["train/T000000"].tolist() == [1, 2]
    loading.load("mnist", "train")
    assert asked == [
        ("autogluon/chronos_datasets", "monash_electricity_hourly", "train"),
        ("ylecun/mnist", "train"),
    ]


def test_an_absent_set_says_where_it_was_looked_for(monkeypatch, tmp_path):
    def offline(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(loading, "_from_hub", offline)
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError, match=r"electricity/train.parquet(.|\n)*chronos_datasets(.|\n)*Ways out"):
        load_series("electricity")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: forecast_splits([], 4, 2), ValueError, "series must not be empty"),
        (lambda: forecast_splits(counting(10), 8, 4), ValueError, r"series\['0'\] has 10 values, too few"),
        (
            lambda: forecast_splits([[1.0, 2.0]], 4, 2),
            TypeError,
            "tensor of floating-point numbers, got list",
        ),
        (lambda: forecast_splits([torch.arange(99)], 4, 2), TypeError, "got a tensor of torch.int64"),
        (lambda: forecast_splits([torch.full((99,), torch.nan)], 4, 2), ValueError, "must be finite"),
        (lambda: forecast_splits([torch.zeros(50, 2)], 4, 2), ValueError, "one dimension"),
        (lambda: forecast_splits(counting(99), 0, 2), ValueError, "length must be at least 1"),
        (lambda: forecast_splits(counting(99), 4, 2.0), TypeError, "horizon must be an integer"),
        (lambda: forecast_splits(counting(99), 4, 2, val=0.6, test=0.5), ValueError, r"val \+ test must be below 1"),
        (lambda: forecast_splits(counting(99), 4, 2, val=0), ValueError, "val must be above 0"),
        (lambda: seasonal_naive(torch.zeros(2, 5), 3, 6), ValueError, "at least season=6"),
        (lambda: load_series("ett", "ETTh1"), TypeError, r"write \['ETTh1'\]"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_wrong_columns(tmp_path):
    datasets.Dataset.from_dict({"x": ["a"], "y": [float("nan")]}).to_parquet(tmp_path / "train.parquet")
    for columns, text in ((["z"], r"has no \['z'\]"), (["x"], "must hold numbers"), (["y"], "1 that are not")):
        with pytest.raises(ValueError, match=text):
            load_series("mine", columns=columns, path=tmp_path)
    with pytest.raises(ValueError, match=r"has no \['target'\]"):
        load_series("mine", path=tmp_path)
