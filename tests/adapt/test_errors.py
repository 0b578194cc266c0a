"""Bad input: errors say what was expected, what came, and the way out; files are refused whole or loaded whole."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from metafast.adapt import MetaFineTuner, freeze
from metafast.data import TaskBatch

from .task_cases import bert_config, small_cnn


def mlp(width=16, layers=2):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4 if i == 0 else width, width), nn.ReLU()) for i in range(layers)]
    return nn.Sequential(*blocks, nn.Linear(width, 3))


def tasks(tasks=2, ways=3, **changes):
    x, y = torch.randn(tasks, 2 * ways, 4), torch.arange(ways).repeat(tasks, 2)
    return TaskBatch(**{"support_x": x, "support_y": y, "query_x": x, "query_y": y, **changes})


@pytest.fixture
def meta():
    return MetaFineTuner(freeze(mlp()), "lora:r=2", "alfa+mend", steps=2)


# ---- what adapts, and by what


@pytest.mark.parametrize(
    ("adapt", "error", "message"),
    [
        ({"*.query": "lora:r=4"}, ValueError, r"the pattern '\*.query' matches no module; the model has 0.0, 1.0"),
        ({"*.0": "lora", "2": "film"}, ValueError, "the pattern '2' matches"),
        ({"*.0": "norm"}, ValueError, r"the pattern '\*.0' matches 0.0, 1.0, none of which norm adapts"),
        ({"*.0": "lora:r=0"}, ValueError, "r must be above 0, got 0"),
        ({"*.0": "lora:rank=4"}, ValueError, "lora has no option 'rank'; lora has r and alpha"),
        ({"*.0": "head"}, ValueError, r"adapt\['\*.0'\] must be one of lora, film, bias, norm or all, got 'head'"),
        ("lore", ValueError, "adapt must be one of lora, film, bias, norm, head, last, all, got 'lore'"),
        ("norm", ValueError, "adapt='norm' finds no module to adapt; the model has 0.0, 1.0"),
        ({}, TypeError, "adapt must be a kind such as"),
        (["lora"], TypeError, "adapt must be a kind such as"),
        ({"*.0": 4}, TypeError, "adapt must name kinds by text, got 4"),
    ],
)
def test_what_adapts(adapt, error, message):
    with pytest.raises(error, match=message):
        MetaFineTuner(freeze(mlp()), adapt)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"net": "alfa+mendd"}, ValueError, "net must be parts out of .* got 'alfa"),
        ({"net": "alfa+alfa"}, ValueError, "has a part twice"),
        ({"net": 3}, TypeError, "net must be a text"),
        ({"ways": 1}, ValueError, "ways must be at least 2, got 1"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"inner_lr": -1.0}, ValueError, "inner_lr must be above 0, got -1.0"),
        ({"inner_lr": "fast"}, TypeError, "inner_lr must be a number"),
        ({"inner_lr": float("nan")}, ValueError, "inner_lr must be"),
        ({"meta_lr": float("inf")}, ValueError, "meta_lr must be"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"order": 3}, ValueError, "order must be one of 1, 2, got 3"),
        ({"loss": "mse"}, ValueError, "loss must be one of"),
        ({"loss": "span"}, ValueError, "needs a base with features of every token: freeze"),
        ({"on_nan": "skip"}, ValueError, "on_nan must be one of"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        MetaFineTuner(freeze(mlp()), **options)


# ---- tasks


def test_labels_beyond_the_head():
    meta = MetaFineTuner(freeze(mlp()), ways=2, steps=1)
    with pytest.raises(ValueError, match=r"support_y of task 0 must be from 0 to 1 \(2 classes\), got 2"):
        meta(tasks(ways=3))
    with pytest.raises(ValueError, match=r"must be from 0 to 1 \(2 classes\), got 2"):
        meta.adapt(torch.randn(3, 4), torch.arange(3))


def test_query_labels_that_no_support_example_has(meta):
    with pytest.raises(ValueError, match=r"query_y of task 0 must be from 0 to 2 \(3 classes\), got 7"):
        meta(tasks(query_y=torch.full((2, 6), 7)))


def test_negative_labels(meta):
    with pytest.raises(ValueError, match="support_y of task 1 must be .*got -1"):
        meta(tasks(support_y=torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, -1]])))


def test_a_task_with_one_class(meta):
    y = torch.tensor([[0, 1, 2, 0, 1, 2], [1] * 6])
    with pytest.raises(
        ValueError, match="support_y of task 1 must have examples of at least two classes, all are of class 1"
    ):
        meta(tasks(support_y=y))
    with pytest.raises(ValueError, match="at least two classes"):
        meta.adapt(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64))


def test_a_task_whose_mask_leaves_one_class(meta):
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, [1, 2, 4, 5]] = False
    with pytest.raises(ValueError, match="task 0 must have examples of at least two classes"):
        meta(tasks(support_mask=mask))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_examples_that_are_not_finite(meta, value):
    batch = tasks()
    batch.support_x[1, 0, 0] = value
    with pytest.raises(ValueError, match=r"task 1: its query loss is nan; .*look for NaN in its examples"):
        meta(batch)
    with pytest.raises(ValueError, match="adaptation to x and y diverged"):
        meta.adapt(batch.support_x[1], batch.support_y[1])


def test_examples_of_another_kind(meta):
    with pytest.raises(TypeError, match="x must be floating point, as the base takes, got torch.int64"):
        meta(tasks(support_x=torch.ones(2, 6, 4, dtype=torch.int64), query_x=torch.ones(2, 6, 4, dtype=torch.int64)))
    with pytest.raises(TypeError, match="support_y must be int64 class numbers"):
        meta(tasks(support_y=torch.zeros(2, 6, 1), query_y=torch.zeros(2, 6, 1)))


def test_pictures_with_other_channels():
    meta = MetaFineTuner(freeze(small_cnn()), steps=1)
    with pytest.raises(ValueError, match=r"x must be \[N, 3, H, W\], as the base takes, got \[2, 1, 32, 32\]"):
        meta.adapt(torch.randn(2, 1, 32, 32), torch.arange(2))


def test_texts():
    transformers = pytest.importorskip("transformers")
    meta = MetaFineTuner(freeze(transformers.BertModel(bert_config())), steps=1)
    y = torch.arange(2)
    with pytest.raises(ValueError, match="x has 33 tokens per text, and the base has positions for 32: cut the texts"):
        meta.adapt(torch.ones(2, 33, dtype=torch.int64), y)
    with pytest.raises(ValueError, match="x must be token numbers from 0 to 99, got 1 to 100"):
        meta.adapt(torch.tensor([[1, 2], [3, 100]]), y)
    with pytest.raises(TypeError, match="x must be token numbers of int64"):
        meta.adapt(torch.ones(2, 5), y)


# ---- files


def saved(meta, path):
    """A file of a meta-network whose numbers are not those of the start."""
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.add_(0.01)
    return meta.save(path)


def edited(path, change, **about):
    """The file with other tensors or another description."""
    with safe_open(path, framework="pt") as opened:
        told = json.loads(opened.metadata()["metafast"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"metafast": json.dumps({**told, **about})})


def nothing(tensors):
    pass


def nan(tensors):
    next(iter(tensors.values())).view(-1)[0] = float("nan")


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "empty": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_text("no safetensors"),
    "nothing told": lambda path: save_file({"a": torch.ones(1)}, path),
    "wrong version": lambda path: edited(path, nothing, version=99),
    "another format": lambda path: edited(path, nothing, format="metafast.hpo.Predictor"),
    "a tensor missing": lambda path: edited(path, lambda tensors: tensors.popitem()),
    "a tensor too many": lambda path: edited(path, lambda tensors: tensors.update(more=torch.ones(2))),
    "another shape": lambda path: edited(path, lambda tensors: tensors.update({next(iter(tensors)): torch.ones(1, 9)})),
    "not finite": lambda path: edited(path, nan),
    "a setting missing": lambda path: edited(path, nothing, base=None),
    "a wrong setting": lambda path: edited(path, nothing, steps="five"),
    "a network of other parts": lambda path: edited(path, nothing, net="alfa"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(meta, tmp_path, damage):
    path = tmp_path / "m.safetensors"
    saved(meta, path)
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=str(path)):
        MetaFineTuner.load(path, meta.base)


def test_bits_that_flipped_are_noticed(meta, tmp_path):
    path = tmp_path / "m.safetensors"
    saved(meta, path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=str(path)):
        MetaFineTuner.load(path, meta.base)


def test_no_file(meta, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no meta-network at .*m.safetensors; MetaFineTuner.save writes one"):
        MetaFineTuner.load(tmp_path / "m.safetensors", meta.base)


@pytest.mark.parametrize("other", [mlp(width=17), mlp(layers=3), small_cnn()], ids=["wider", "deeper", "another"])
def test_a_base_of_other_shapes(meta, tmp_path, other):
    path = tmp_path / "m.safetensors"
    saved(meta, path)
    with pytest.raises(ValueError, match=r"base: .*give the base that it was made for"):
        MetaFineTuner.load(path, freeze(other))


def test_a_base_without_the_named_modules(tmp_path):
    meta = MetaFineTuner(freeze(mlp()), {"1.0": "lora"}, steps=1)
    path = tmp_path / "m.safetensors"
    saved(meta, path)
    with pytest.raises(ValueError, match="the pattern '1.0' matches no module"):
        MetaFineTuner.load(path, freeze(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))))


def test_a_file_that_cannot_be_written_leaves_the_old_one(meta, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    saved(meta, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("metafast.adapt._file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        meta.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_was_saved_is_what_is_loaded(meta, tmp_path):
    saved(meta, tmp_path / "m.safetensors")
    again = MetaFineTuner.load(tmp_path / "m.safetensors", freeze(mlp()))
    batch = tasks()
    assert torch.equal(again.eval()(batch)[1]["logits"], meta.eval()(batch)[1]["logits"])
