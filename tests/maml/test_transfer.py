"""The transfer experiment on small sets of pictures: what it reports, that it resumes, and its backbones."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metafast.data import ClassSet, DatasetNotFoundError, _few_shot, _load
from metafast.maml import _transfer_data, transfer
from metafast.maml._transfer_backbone import SmallBackbone, hub_backbone, own_backbone
from metafast.maml._transfer_data import RECIPES, Recipe, Source, at_hand

OPTIONS = transfer.Options(
    iterations=2, ways=3, shots=2, queries=3, tasks=2, steps=2, course=4, pretrain_steps=3, episodes=4, val_episodes=2
)


@pytest.fixture
def recipe(monkeypatch):
    """Pictures of coloured noise; a class is a colour, and each set has colours of its own."""

    def made(source, size, limit):
        generator = np.random.default_rng(int(source.name))
        colours = generator.integers(40, 215, (5, 3, 1, 1))
        noise = generator.integers(-40, 40, (5, 8, 3, size, size))
        pixels = (colours[:, None] + noise).astype(np.uint8).reshape(40, 3, size, size)
        names = tuple(f"{source.name}/{number}" for number in range(5))
        return ClassSet(pixels, np.arange(5).repeat(8), names, name=source.title)

    monkeypatch.setattr(transfer, "pictures", made)
    sources = [(Source(f"set {number}", str(number)),) for number in range(3)]
    return Recipe("tiny", 32, "own", *sources)


def test_the_report_has_every_start_with_its_costs(recipe, tmp_path):
    told = []
    report = transfer.run(OPTIONS, tmp_path, recipe=recipe, tell=told.append, progress=False)
    assert {row["start"] for row in report.rows} == {"random", "supervised", "meta"}
    for row in report.rows:
        assert row["data"] == "set 2"
        assert 0 <= row["accuracy"][0] <= 1 and 0 <= row["f1"][0] <= 1
        assert len(row["course"]) == 5 and row["course"][2] == row["accuracy"]
        reached = row["steps_to_threshold"]
        at = [step for step, point in enumerate(row["course"]) if point[0] >= row["threshold"]]
        assert reached == (at[0] if at else None)
        if reached is not None:
            assert row["seconds_to_threshold"] == pytest.approx(reached * row["seconds_per_step"])
    best = max(row["accuracy"][0] for row in report.rows)
    assert report.rows[0]["threshold"] == pytest.approx(0.9 * best)
    assert "pre-trained here for 3 steps" in report.backbone
    assert report.data["test"] == ["set 2 (5 classes)"]
    assert any("set 0 (5 classes)" in line for line in told)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["device_hours"] == pytest.approx(report.device_hours, abs=1e-4) and stored["device_hours"] > 0
    assert [phase["name"] for phase in stored["phases"]][-1] == "tests"
    assert stored["rows"] == json.loads(json.dumps(report.rows))


def test_it_goes_on_after_an_interruption_to_the_same_numbers(recipe, tmp_path, monkeypatch):
    whole = transfer.run(OPTIONS, tmp_path / "whole", recipe=recipe, progress=False)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_supervised", interrupt)
        with pytest.raises(KeyboardInterrupt):
            transfer.run(OPTIONS, tmp_path / "parts", recipe=recipe, progress=False)
    parts = transfer.run(OPTIONS, tmp_path / "parts", recipe=recipe, resume=True, progress=False)

    def numbers(report):
        return [(row["start"], row["inner_lr"], row["accuracy"], row["f1"], row["course"]) for row in report.rows]

    assert numbers(whole) == numbers(parts)
    with pytest.raises(ValueError, match="seed 0, not 1"):
        transfer.run(replace(OPTIONS, seed=1), tmp_path / "parts", recipe=recipe, resume=True, progress=False)
    with pytest.raises(ValueError, match="nothing to go on with"):
        transfer.run(OPTIONS, tmp_path / "new", recipe=recipe, resume=True, progress=False)
    again = transfer.run(OPTIONS, tmp_path / "parts", recipe=recipe, progress=False)  # anew in the same folder
    assert numbers(again) == numbers(whole)


def test_mixed_episodes_alternate_between_sets_and_keep_their_position(recipe):
    sets = [transfer.pictures(Source("a", str(number)), 8, 8) for number in (3, 4)]
    sets = [_transfer_data.featured(one, lambda x: x) for one in sets]
    mixed = transfer._Mixed(sets, OPTIONS, seed=0)
    stream = iter(mixed)
    first = [next(stream) for _ in range(3)]
    state = mixed.state_dict()
    later = next(stream)
    other = transfer._Mixed(sets, OPTIONS, seed=0)
    other.load_state_dict(state)
    assert torch.equal(next(iter(other)).support_x, later.support_x)
    assert not torch.equal(first[0].support_x, first[1].support_x)


def test_own_backbone_is_trained_kept_and_read_again(tmp_path):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(16)
    x = torch.randn(64, 3, 32, 32, generator=generator) + y[:, None, None, None]
    losses = []
    file = tmp_path / "backbone.safetensors"
    made = own_backbone(x, y, steps=12, seed=0, file=file, progress=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    again = own_backbone(x, y, steps=12, seed=0, file=file, progress=lambda *_: pytest.fail("it is there"))
    assert not made.training and torch.equal(made(x[:2]), again(x[:2]))
    assert made(x[:2]).shape == (2, 64, 8, 8)
    assert sum(p.numel() for p in SmallBackbone().parameters()) < 400_000


def test_a_backbone_of_transformers_gives_its_maps(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    extract = hub_backbone(str(tmp_path), "cpu")
    maps = extract(torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, 16, 2, 2) and not maps.requires_grad


def test_the_local_recipe_keeps_train_validation_and_test_classes_apart(data_folder):
    for name in ("cifar100", "omniglot", "fashion_mnist", "mnist", "cifar10"):
        data_folder(name)
    local = RECIPES["local"]
    parts = {
        part: [transfer_pictures(source, 8) for source in getattr(local, part)] for part in ("train", "val", "test")
    }
    for train, val in zip(parts["train"], parts["val"], strict=True):
        assert not set(train.names) & set(val.names) and not set(train.groups) & set(val.groups)
    assert [one.classes for one in parts["train"]] == [75, 838]
    assert [one.classes for one in parts["test"]] == [10, 10, 10]
    for sets in parts.values():
        for one in sets:
            assert one.examples.shape[1:] == (3, 8, 8) and one.counts.max() <= 20


def transfer_pictures(source, size):
    return _transfer_data.pictures(source, size, 20)


def test_photos_of_any_size_are_read_resized_and_limited(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    rows = {
        "image": [image.new("RGB", (9 + i, 7), color=(10 * i, 0, 0)) for i in range(6)],
        "label": [4, 4, 4, 7, 7, 7],
    }
    folder = tmp_path / "photos"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    source = Source("Photos", "photos", ("train",), hub="nobody/photos")
    found = _transfer_data.pictures(source, 16, limit=2)
    assert found.examples.shape == (4, 3, 16, 16) and found.counts.tolist() == [2, 2]
    assert found.names == ("photos/4", "photos/7")
    assert found.examples[1, 0].max() == 10


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with small photos under the names of the hub recipe, and the same as what the hub would give."""
    datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    recipe, folder = RECIPES["hub"], tmp_path / "data"

    def write(source, split, rows, side):
        def picture(label):
            colour = np.array([label * 37 % 200, label * 91 % 200, label * 53 % 200])
            noise = generator.integers(0, 55, (*side(), 3))
            return image.fromarray((colour + noise).astype(np.uint8))

        cifar = source.name == "cifar100"
        columns = {"img" if cifar else "image": [picture(label) for label in rows]}
        columns |= {"fine_label": rows, "coarse_label": [n % 20 for n in rows]} if cifar else {"label": rows}
        kinds = {n: datasets.Image() if n in ("img", "image") else datasets.Value("int64") for n in columns}
        (folder / source.name).mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        made.to_parquet(folder / source.name / f"{split}.parquet")

    for source in (*recipe.train, *recipe.val, *recipe.test):
        several = source.name != "cifar100"
        for split in source.splits:
            rows = list(range(4 if several else 100)) * (6 if len(source.splits) == 1 else 3)
            write(source, split, rows, (lambda: generator.integers(20, 60, 2)) if several else (lambda: (32, 32)))
    caches = (_few_shot._all_classes, _few_shot._few_shot)
    for cache in caches:
        cache.cache_clear()
    yield folder
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("place", ["files", "hub"])
def test_the_hub_recipe_runs_on_what_has_its_names(photos, place, tmp_path, monkeypatch):
    """Every source by its name, a ResNet of transformers from a folder: only the pictures and weights are stand-ins."""
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    recipe, asked = RECIPES["hub"], []
    if place == "files":
        monkeypatch.setenv("METAFAST_DATA", str(photos))
        assert at_hand(recipe)
    else:
        monkeypatch.setenv("METAFAST_DATA", str(tmp_path / "nothing"))
        sources = {s.hub or _load.HUB_NAMES[s.name]: s for s in (*recipe.train, *recipe.val, *recipe.test)}

        def from_hub(name, split):
            asked.append((name, split))
            return _load._read(photos / sources[name].name / f"{split}.parquet")

        monkeypatch.setattr(_load, "_from_hub", from_hub)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    backbone = tmp_path / "resnet"
    transformers.ResNetModel(config).save_pretrained(backbone)
    told = []
    options = replace(OPTIONS, recipe="hub", backbone=str(backbone), limit=6)
    report = transfer.run(options, tmp_path / "out", tell=told.append, progress=False)
    assert report.data == {
        "train": ["CIFAR-100 (100 classes)", "Caltech-256 (4 classes)", "Flowers-102 (4 classes)"],
        "val": ["Stanford Cars (4 classes)", "FGVC Aircraft (4 classes)"],
        "test": ["Oxford-IIIT Pet (4 classes)", "SUN397 (4 classes)"],
    }
    assert {(row["start"], row["data"]) for row in report.rows} == {
        (start, data) for start in transfer.STARTS for data in ("Oxford-IIIT Pet", "SUN397")
    }
    assert all(np.isfinite(row["accuracy"]).all() for row in report.rows)
    assert report.backbone == f"{backbone}, frozen"
    assert f"backbone: {backbone}; features [16, 4, 4]" in told
    if place == "hub":
        everything = (*recipe.train, *recipe.val, *recipe.test)
        wanted = [(s.hub or _load.HUB_NAMES[s.name], split) for s in everything for split in s.splits]
        assert asked == wanted


def test_a_recipe_is_at_hand_in_files_or_by_the_hub(photos, tmp_path, monkeypatch):
    def no_network(*arguments):
        raise OSError("no network")

    monkeypatch.setattr(_transfer_data.socket, "create_connection", no_network)
    monkeypatch.setenv("METAFAST_DATA", str(photos))
    assert at_hand(RECIPES["hub"])
    (photos / "sun397" / "test.parquet").unlink()
    assert not at_hand(RECIPES["hub"])
    monkeypatch.setattr(_transfer_data.socket, "create_connection", lambda *_: contextlib.nullcontext())
    assert at_hand(RECIPES["hub"])


def test_a_data_set_that_is_not_there_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    monkeypatch.setattr("metafast.data._load._from_hub", lambda name, split: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(DatasetNotFoundError, match="nobody/photos"):
        _transfer_data.pictures(Source("Photos", "photos", hub="nobody/photos"), 16, 2)
