"""Texts by any tokenizer, pictures of any size, GLUE and photos by name: real readers on stand-ins in a folder."""

import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets", reason="needs the hf extra")

from metafast.data import _load, all_classes, episodes, few_shot, hash_tokens  # noqa: E402
from metafast.data._few_shot import _MINI_IMAGENET, _all_classes, _few_shot  # noqa: E402
from metafast.data._reading import first_rows  # noqa: E402


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of data sets; nothing else is asked, and nothing is kept."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(_load, "_from_hub", lambda name, split: (_ for _ in ()).throw(OSError(f"no {split} here")))
    yield tmp_path / "data"
    _all_classes.cache_clear()
    _few_shot.cache_clear()


def write(root, name, split, columns, **features):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns)
    for column, feature in features.items():
        rows = rows.cast_column(column, feature)
    with _load._quiet(datasets):
        rows.to_parquet(str(folder / f"{split}.parquet"))


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of transformers over a handful of words: [CLS] a [SEP] b [SEP], padding 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "$", "#", "good", "bad", "rome", "italy", "lies", "in"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]"
    )


GLUE = {
    "sst2": {"sentence": ["good", "bad"]},
    "cola": {"sentence": ["good", "bad"]},
    "mrpc": {"sentence1": ["good", "bad"], "sentence2": ["rome", "in"]},
    "qqp": {"question1": ["good", "bad"], "question2": ["rome", "in"]},
    "mnli": {"premise": ["good", "bad"], "hypothesis": ["rome", "in"]},
    "qnli": {"question": ["good", "bad"], "sentence": ["rome", "in"]},
    "rte": {"sentence1": ["good", "bad"], "sentence2": ["rome", "in"]},
}


@pytest.mark.parametrize("task", GLUE)
def test_glue_by_name(task, root, tokenizer):
    rows = {column: [texts[i % 2] for i in range(20)] for column, texts in GLUE[task].items()}
    label = datasets.ClassLabel(names=["no", "yes"])
    test = "validation_matched" if task == "mnli" else "validation"
    for split in ("train", test):
        write(
            root, f"glue/{task}", split, {**rows, "label": [i % 2 for i in range(20)], "idx": [*range(20)]}, label=label
        )
    parts = few_shot(f"glue/{task}", tokenizer=tokenizer, length=8)
    assert [len(part.labels) for part in parts] == [18, 2, 20] and parts.test.names == ("no", "yes")
    pair = len(GLUE[task]) == 2
    wanted = [2, 6, 3, 8, 3, 0, 0, 0] if pair else [2, 6, 3, 0, 0, 0, 0, 0]
    assert parts.train.examples[parts.train.labels == 0][0].tolist() == wanted
    batch = next(iter(episodes(f"glue/{task}", tokenizer=tokenizer, length=8, ways=2, shots=2, queries=3, tasks=2)))
    assert batch.support_x.shape == (2, 4, 8) and batch.support_x.dtype is torch.int64
    assert all_classes(f"glue/{task}", "train").examples.shape == (20, 32)  # words hashed


def relation(relation, **more):
    tokens = ["Rome", "lies", "in", "Italy"]
    entities = {"head": [{"text": "rome", "indices": [[0]]}] * 6, "tail": [{"text": "italy", "indices": [[3]]}] * 6}
    return {"tokens": [tokens] * 6, **entities, "relation": [relation] * 6, "names": [[f"name {relation}"]] * 6, **more}


def test_relations_by_a_tokenizer_with_marks_around_the_entities(root, tokenizer):
    train = [relation(f"P{i}") for i in range(64)]
    joined = {column: [value for part in train for value in part[column]] for column in train[0]}
    write(root, "few_rel", "train_wiki", joined)  # the whole training part, as the hub has it
    write(root, "few_rel", "val_wiki", relation("P900"))
    lower = lambda texts: tokenizer([t.lower() for t in texts], padding=True, return_tensors="pt")["input_ids"]  # noqa: E731
    parts = few_shot("fewrel", tokenizer=lower)
    assert [part.classes for part in parts] == [50, 14, 1]
    assert parts.test.examples[0].tolist() == [2, 4, 8, 4, 10, 11, 5, 9, 5, 3]
    assert few_shot("fewrel").train.examples.shape[1] == 96
    with pytest.raises(ValueError, match="with a tokenizer it is few_rel"):
        few_shot("few_rel_words", tokenizer=lower)


def test_a_function_as_tokenizer_on_real_intents(data_folder):
    data_folder("clinc_oos")
    mine = few_shot("clinc_oos", tokenizer=words).test
    assert np.array_equal(mine.examples, few_shot("clinc_words").test.examples)
    assert few_shot("clinc_oos", tokenizer=words).test is mine
    with pytest.raises(ValueError, match="with a tokenizer it is clinc_oos"):
        few_shot("clinc_words", tokenizer=words)


def words(texts):
    return hash_tokens(texts, 2**14, 48)


def photos(root, name, split, names, each=5):
    from PIL import Image

    pictures = [Image.new("RGB", (20 + i, 30), color=(i % 256, 0, 0)) for i in range(each * len(names))]
    labels = [i % len(names) for i in range(len(pictures))]
    label = datasets.ClassLabel(names=names)
    write(root, name, split, {"image": pictures, "label": labels}, label=label)


def test_mini_imagenet_by_its_published_classes(root):
    val, test = _MINI_IMAGENET
    names = [*(f"n0000{i:04}" for i in range(64)), *val, *test]
    for split in ("train", "validation", "test"):
        photos(root, "mini_imagenet", split, names, each=1)
    parts = few_shot("mini_imagenet", size=16, limit=2)
    assert [part.classes for part in parts] == [64, 16, 20] and set(parts.test.names) == set(test)
    assert parts.train.examples.shape == (128, 3, 16, 16) and parts.val.names == tuple(val)
    assert few_shot("mini_imagenet").val.examples.shape[1:] == (3, 84, 84)


def test_imagenet_needs_a_size_and_a_limit(root):
    names = [f"n{i}" for i in range(10)]
    for split in ("train", "validation"):
        photos(root, "imagenet", split, names)
    with pytest.raises(ValueError, match="imagenet needs size= and limit="):
        few_shot("imagenet", size=224)
    loader = episodes("imagenet", split="val", size=24, limit=4, ways=2, shots=1, queries=2, tasks=1)
    assert next(iter(loader)).query_x.shape == (1, 4, 3, 24, 24)


def test_pictures_of_one_size_are_resized_too(data_folder):
    data_folder("mnist")
    found = all_classes("mnist", "test", size=40, limit=3)
    assert found.examples.shape == (30, 3, 40, 40) and found.counts.tolist() == [3] * 10


def test_the_first_of_each_class():
    assert first_rows(np.array([1, 0, 1, 1, 0, 2]), 2).tolist() == [0, 1, 2, 4, 5]


def test_what_the_hub_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)))
    for name in ("nyu-mll/glue:sst2", "ILSVRC/imagenet-1k", _load.HUB_NAMES["few_rel"]):
        _load._from_hub(name, "train_wiki")
    assert asked[:2] == [
        (("nyu-mll/glue", "sst2"), {"split": "train_wiki"}),
        (("ILSVRC/imagenet-1k",), {"split": "train_wiki"}),
    ]
    files = "hf://datasets/thunlp/few_rel@refs%2Fconvert%2Fparquet/default/train_wiki/*.parquet"
    assert asked[2] == (("parquet",), {"data_files": {"train_wiki": files}, "split": "train_wiki"})
    assert {f"glue/{task}" for task in GLUE} < set(_load.HUB_NAMES)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tokenizer": "bert"}, TypeError, "tokenizer must be one of transformers, or a function.*got str"),
        ({"tokenizer": words, "length": 5}, ValueError, "a function chooses its own"),
        ({"length": 5}, ValueError, "give one with tokenizer="),
        ({"size": 0}, ValueError, "size must be at least 1"),
        ({"limit": 1.5}, TypeError, "limit must be an integer"),
        ({"tokenizer": lambda texts: torch.zeros(1, 2)}, ValueError, r"token numbers \[4, L\], got shape \[1, 2\]"),
    ],
)
def test_wrong_options(options, error, text, root):
    write(root, "texts", "train", {"text": ["a", "b", "c", "d"], "label": [0, 0, 1, 1]})
    with pytest.raises(error, match=text):
        all_classes("texts", "train", **options)


def test_options_that_the_source_has_no_use_for(root):
    with pytest.raises(ValueError, match="has examples of its own already"):
        episodes((torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])), tokenizer=words)
    photos(root, "photos", "train", ["a", "b"])
    with pytest.raises(ValueError, match="tokenizer is for texts, and photos has pictures"):
        all_classes("photos", "train", tokenizer=words)
