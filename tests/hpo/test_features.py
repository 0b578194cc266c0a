"""Features of data sets and architectures: finite, the same again, the same for every form, and right where known."""

import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from metafast.data import Samples, Windows, forecast_splits
from metafast.hpo import architecture_features, task_features
from metafast.models import LSTMForecaster, SmallCNN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hpo-features.md"
RNG = np.random.default_rng(0)
LABELS = torch.arange(60) % 3
PICTURES = torch.rand(60, 3, 12, 10, generator=torch.Generator().manual_seed(0))
TEXTS = [f"word{i % 3} and w{i}" for i in range(60)]
SERIES = forecast_splits([torch.sin(torch.arange(400.0) * math.pi / 6)], 48, 4)
WAVES = [RNG.integers(-99, 99, 1200 + 10 * i).astype(np.int16) for i in range(12)]
CASES = {
    "image": Samples(PICTURES, LABELS),
    "text": (TEXTS, LABELS),
    "series": SERIES.train,
    "audio": (WAVES, list(range(6)) * 2),
    "table": (RNG.normal(size=(60, 5)), LABELS.numpy()),
}


def documented():
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize("modality", CASES)
def test_every_modality_gives_every_feature_that_is_documented(modality):
    found = task_features(CASES[modality])
    assert found[f"modality_{modality}"] == 1 and sum(found[f"modality_{name}"] for name in CASES) == 1
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert found == task_features(CASES[modality])
    net = architecture_features(SmallCNN(3, 10, 16, seed=0))
    assert sorted({**found, **net}) == sorted(documented())


def test_one_data_set_in_every_form_has_the_same_features():
    wanted = task_features(CASES["image"])
    forms = [
        (PICTURES.numpy(), LABELS.tolist()),
        {"image": PICTURES, "label": LABELS},
        TensorDataset(PICTURES, LABELS),
        (PICTURES.permute(0, 2, 3, 1), LABELS),
    ]
    for form in forms:
        assert task_features(form) == wanted
    named = task_features({"x": PICTURES, "y": [f"class {i}" for i in LABELS]}, columns=("x", "y"))
    assert named == wanted


def test_columns_of_a_dataset_of_the_hub():
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS.tolist()})
    assert task_features(table) == task_features((TEXTS, LABELS))
    with pytest.raises(ValueError, match="train has no column 'words'; it has"):
        task_features(table, columns=("words", "label"))


def test_what_is_known_is_found():
    image = task_features(CASES["image"], val=CASES["image"])
    assert image["log10_examples"] == image["log10_val_examples"] == pytest.approx(math.log10(60), abs=1e-6)
    assert image["log10_classes"] == pytest.approx(math.log10(3), abs=1e-6) and image["class_entropy"] == 1
    assert image["largest_class"] == pytest.approx(1 / 3, abs=1e-6)
    assert image["log10_channels"] == pytest.approx(math.log10(3), abs=1e-6)
    assert abs(image["smoothness"]) < 0.1 and image["linear_gain"] < 0.5
    series = task_features(CASES["series"])
    assert 10 ** series["log10_season"] == pytest.approx(12, abs=0.01) and series["season"] > 0.9
    assert series["linear_score"] > 0.95 and series["repeat_error"] > 0.5 and series["flatness"] < 0.1
    text = task_features(CASES["text"], val=([TEXTS[0], "never seen words"], [0, 1]))
    assert text["vocabulary_coverage"] == 0.5 and text["linear_gain"] > 0.8
    noise = task_features((RNG.normal(size=(400, 8)), RNG.integers(0, 2, 400)))
    x = RNG.normal(size=(400, 8))
    line = task_features((x, (x[:, 0] > 0).astype(int)))
    assert noise["linear_gain"] < 0.2 < 0.7 < line["linear_gain"]
    assert line["nearest_error"] < noise["nearest_error"]


def test_sequences_as_targets():
    tagged = task_features(([["the", "cat"], ["a", "dog", "sat"]] * 5, [[0, 1], [0, 1, 2]] * 5))
    assert tagged["modality_text"] == tagged["target_sequences"] == 1
    assert tagged["log10_classes"] == pytest.approx(math.log10(3), abs=1e-6)
    spoken = task_features((RNG.normal(size=(6, 40, 13)), ["one", "two"] * 3), modality="audio")
    assert spoken["modality_audio"] == 1 and spoken["log10_length"] == pytest.approx(math.log10(40), abs=1e-6)


shapes = st.sampled_from([(1,), (7,), (1200,), (5, 2), (1, 4, 4), (3, 2, 9)])


@given(
    shape=shapes,
    count=st.sampled_from([1, 2, 3, 9, 40]),
    fill=st.sampled_from(["noise", "constant", "huge", "nan", "bytes"]),
    kind=st.sampled_from(["classes", "one class", "numbers"]),
    seed=st.integers(0, 99),
)
def test_nothing_breaks_it(shape, count, fill, kind, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, *shape)) * (1e18 if fill == "huge" else 1)
    if fill == "constant":
        inputs[:] = 3.0
    if fill == "nan":
        inputs[rng.random(inputs.shape) < 0.3] = np.nan
    if fill == "bytes":
        inputs = rng.integers(0, 255, inputs.shape).astype(np.uint8)
    targets = rng.normal(size=count) if kind == "numbers" else rng.integers(0, 1 if kind == "one class" else 4, count)
    found = task_features((inputs, targets))
    assert all(math.isfinite(value) for value in found.values())
    assert abs(found["input_mean"]) <= 1 and 0 <= found["class_entropy"] <= 1 + 1e-6


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((np.zeros((0, 3)), np.zeros(0, int)), ValueError, "train must have at least one example, got none"),
        ((np.zeros((4, 3)), np.zeros(3, int)), ValueError, "as many targets as inputs, got 3 and 4"),
        (3, TypeError, "train must be .inputs, targets.*got int"),
        ({"x": [1.0], "y": [1]}, ValueError, "name them with columns="),
        ((np.array([object()]), np.zeros(1, int)), TypeError, "inputs must be numbers, texts or pictures"),
        (([None], [1]), TypeError, "inputs must be numbers, texts or pictures"),
        ((np.zeros((2, 3)), [object(), object()]), TypeError, "targets must be class numbers"),
        (["abc", "def", "ghi"], TypeError, r"train\[i\] must be a pair"),
    ],
)
def test_what_cannot_be_read_says_so(data, error, message):
    with pytest.raises(error, match=message):
        task_features(data)


def test_an_unknown_modality_says_which_there_are():
    with pytest.raises(ValueError, match="modality must be one of .*'image'.* got 'video'"):
        task_features(CASES["image"], modality="video")


def test_it_is_cheap():
    rng = np.random.default_rng(0)
    data = Samples(torch.from_numpy(rng.random((5000, 3, 32, 32), dtype=np.float32)), torch.arange(5000) % 100)
    began = time.perf_counter()
    task_features(data)
    assert time.perf_counter() - began < 3  # 0.2 s where nothing else runs


def test_architectures():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(100, 16)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.2, batch_first=True), 3)
            self.head = nn.Linear(16, 5)

    reader = architecture_features(Reader())
    assert reader["net_layers_attention"] == 2 and reader["net_dropout_rate"] == pytest.approx(0.2)
    assert reader["net_depth"] == 3 + 6 + 1 and reader["net_log10_outputs"] == pytest.approx(math.log10(5), abs=1e-6)
    assert sum(reader[f"net_{kind}"] for kind in ("conv", "recurrent", "attention", "linear", "embedding")) <= 1
    forecaster = architecture_features(LSTMForecaster(24, hidden=16, layers=2, dropout=0.3))
    assert forecaster["net_gated"] == 1 and forecaster["net_layers_recurrent"] == pytest.approx(math.log2(3), abs=1e-6)
    assert forecaster["net_dropout_rate"] == pytest.approx(0.3)
    assert architecture_features(nn.GRU(4, 4, bidirectional=True))["net_both_ways"] == 1
    assert architecture_features(nn.Sequential())["net_log10_parameters"] == 0
    assert math.isfinite(architecture_features(nn.LazyLinear(3))["net_log10_parameters"])
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        architecture_features(3)


def test_windows_without_a_name_for_their_kind():
    assert task_features(Windows(torch.rand(20, 8), torch.rand(20, 2)))["modality_series"] == 1
