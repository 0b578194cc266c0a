"""Class sets: selections and splits share no classes, and errors name what is wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import ClassSet, all_classes, check_disjoint, class_set, few_shot


def letters(classes=10, each=3, kinds=2, **fields):
    values = {
        "examples": np.arange(classes * each, dtype=np.float32)[:, None],
        "labels": np.arange(classes * each) % classes,
        "names": tuple(f"letter {i}" for i in range(classes)),
        "groups": tuple(f"group {i % kinds}" for i in range(classes)),
        "name": "letters",
    }
    return ClassSet(**{**values, **fields})


def test_select_renumbers_and_keeps_what_belongs_together():
    chosen = letters(order=np.arange(30)).select(["letter 7", "letter 2"])
    assert chosen.names == ("letter 7", "letter 2")
    assert chosen.groups == ("group 1", "group 0")
    assert chosen.counts.tolist() == [3, 3]
    assert [int(x) % 10 for x in chosen.examples[:, 0]] == [[7, 2][label] for label in chosen.labels]
    assert chosen.order.tolist() == chosen.examples[:, 0].tolist()
    assert letters().select(lambda name, group: group == "group 0").classes == 5
    assert letters().select([9]).names == ("letter 9",)


def test_members_are_ordered_by_class_then_order():
    made = letters(order=-np.arange(30))
    members, starts = made.members()
    assert starts.tolist() == list(range(0, 31, 3))
    for c in range(10):
        assert members[starts[c] : starts[c + 1]].tolist() == [20 + c, 10 + c, c]


@given(st.integers(5, 60), st.integers(0, 5), st.booleans())
def test_splits_are_disjoint_complete_and_reproducible(classes, seed, by_group):
    made = letters(classes, kinds=5)
    parts = made.split(0.5, 0.25, seed, by_group=by_group)
    check_disjoint(**parts._asdict())
    assert sorted(name for part in parts for name in part.names) == sorted(made.names)
    assert [part.names for part in made.split(0.5, 0.25, seed, by_group=by_group)] == [part.names for part in parts]
    if by_group:
        groups = [set(part.groups) for part in parts]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_other_seeds_split_otherwise():
    assert len({letters(40).split(seed=seed).test.names for seed in range(5)}) == 5


def test_resized():
    pictures = np.zeros((4, 1, 8, 8), np.uint8)
    pictures[:, :, :, 4:] = 200
    grey = ClassSet(pictures, np.arange(4) % 2, ("a", "b"))
    colour = grey.resized(16, channels=3)
    assert colour.examples.shape == (4, 3, 16, 16) and colour.examples.dtype == np.uint8
    assert (colour.examples[..., :6] == 0).all() and (colour.examples[..., 10:] == 200).all()
    assert np.array_equal(colour.resized(8, channels=1).examples[..., [0, 7]], pictures[..., [0, 7]])
    with pytest.raises(ValueError, match="channels must be 1 or 3, from 1 or 3, got 4 from 1"):
        grey.resized(channels=4)
    with pytest.raises(ValueError, match="only pictures can be resized, and letters has float32"):
        letters().resized(4)


def test_tensors_are_normalized_as_in_tasks():
    pictures = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4)).astype(np.uint8)
    made = ClassSet(pictures, np.arange(6) % 2, ("a", "b"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    x, y = made.tensors()
    expected = (torch.from_numpy(pictures) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.2, 0.2, 0.1]
    )[:, None, None]
    torch.testing.assert_close(x, expected, atol=2e-6, rtol=1e-5)
    assert y.tolist() == [0, 1] * 3
    tokens = ClassSet(np.ones((2, 5), np.int32), np.arange(2), ("a", "b")).tensors()[0]
    assert tokens.dtype is torch.int64


def test_of_arrays_and_tensors():
    made = class_set((torch.randint(0, 9, (4, 3)), torch.tensor([7, 3, 7, 3])), name="toy")
    assert made.examples.dtype == np.int32 and made.names == ("toy 3", "toy 7") and made.labels.tolist() == [1, 0, 1, 0]
    assert class_set((torch.zeros(2, 3, dtype=torch.float64), [0, 1])).examples.dtype == np.float32
    assert class_set(made) is made


def test_of_a_dataset():
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    pil = pytest.importorskip("PIL.Image", reason="needs pillow")
    rows = {
        "image": [pil.new("RGB", (3, 2), (i, 0, 9)) for i in range(4)],
        "label": [0, 1, 1, 0],
        "other": list("xxyy"),
    }
    made = class_set(datasets.Dataset.from_dict(rows), name="pictures")
    assert made.examples.shape == (4, 3, 2, 3) and made.examples[2, :, 0, 0].tolist() == [2, 0, 9]
    assert made.names == ("pictures 0", "pictures 1")
    assert class_set(datasets.Dataset.from_dict(rows), label="other").labels.tolist() == [0, 0, 1, 1]
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    text = class_set(datasets.Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0]}, features=names))
    assert text.examples.dtype == np.int32 and text.names == ("no", "yes")
    with pytest.raises(ValueError, match=r"label must be one of the columns \['text'\] of examples, got None"):
        class_set(datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="must have a column 'image', 'img', 'text' or 'sentence'"):
        class_set(datasets.Dataset.from_dict({"label": [0]}))


def test_overlap_is_named():
    made = letters()
    with pytest.raises(
        ValueError, match=r"train and test must not share classes, but 2 classes are in both: 'letter 3'"
    ):
        check_disjoint(train=made.select(range(5)), val=made.select([9]), test=made.select([3, 4, 8]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: letters(examples=np.zeros((30, 2))),
            TypeError,
            "examples must be an array of uint8, int32 or float32",
        ),
        (lambda: letters(examples=np.zeros((30, 2), np.uint8)), ValueError, r"must be \[M, C, H, W\] uint8"),
        (lambda: letters(labels=np.zeros(30)), TypeError, "labels must be integers"),
        (lambda: letters(labels=np.zeros(29, int)), ValueError, r"labels must be \[30\]"),
        (lambda: letters(labels=np.full(30, 10)), ValueError, "labels must be from 0 to 9"),
        (lambda: letters(names=("a",) * 10), ValueError, "names must differ from each other, got 'a' twice"),
        (lambda: letters(groups=("a",)), ValueError, "groups must be one for each of 10 classes, got 1"),
        (lambda: letters(order=np.zeros(3)), ValueError, r"order must be \[30\] as labels, got shape \(3,\)"),
        (lambda: letters(mean=(0.0, 1.0)), ValueError, r"mean must be one number or 1 \(channels\)"),
        (lambda: letters().select(["nothing"]), ValueError, "must be among the 10 of letters, got 'nothing'"),
        (lambda: letters().select([10]), ValueError, "must be numbers from 0 to 9, got 10"),
        (lambda: letters().select([1, 1]), ValueError, "at least one class of letters, and none twice"),
        (lambda: letters().select(lambda *_: False), ValueError, "at least one class of letters"),
        (
            lambda: letters().split(0.99, 0.005),
            ValueError,
            "leave a part without classes, out of 10 classes of letters",
        ),
        (lambda: letters(groups=()).split(by_group=True), ValueError, "by_group needs groups, and letters has none"),
        (lambda: class_set([1, 2, 3]), TypeError, "source must be a ClassSet, .* got list"),
        (lambda: class_set((1, 2, 3)), TypeError, "got tuple of 3"),
        (lambda: class_set((np.zeros((2, 3)), np.zeros(2))), ValueError, r"labels must be \[2\] integers"),
        (lambda: class_set((np.full((2, 3), -1), np.zeros(2, int))), ValueError, "token numbers must be from 0"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


SIZES = {
    "omniglot": ((1100, 100, 423), (1, 28, 28), np.uint8, "omniglot"),
    "omniglot_alphabets": ((786, 178, 659), (1, 28, 28), np.uint8, "omniglot"),
    "cifar_fs": ((64, 16, 20), (3, 32, 32), np.uint8, "cifar100"),
    "few_rel": ((50, 14, 16), (96,), np.int32, "few_rel"),
    "few_rel_words": ((50, 14, 16), (48,), np.int32, "few_rel"),
    "few_rel_vectors": ((50, 14, 16), (56, 32, 1), np.float32, "few_rel"),
    "clinc_oos": ((90, 30, 30), (32,), np.int32, "clinc_oos"),
    "clinc_words": ((90, 30, 30), (48,), np.int32, "clinc_oos"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "few_rel_vectors" else ()) for name in SIZES]
)
def test_data_sets_by_name(name, data_folder):
    classes, shape, dtype, folder = SIZES[name]
    pytest.importorskip("datasets", reason="needs the hf extra")
    data_folder(folder)
    parts = few_shot(name)
    assert tuple(part.classes for part in parts) == classes
    assert all(part.examples.shape[1:] == shape and part.examples.dtype == dtype for part in parts)
    check_disjoint(**parts._asdict())
    # the same through the examples themselves: no picture or sentence of a test class is one of a training class
    train, test = ({row.tobytes() for row in part.examples[::7]} for part in (parts.train, parts.test))
    assert len(train & test) <= 2  # a blank corner of two alphabets, or a sentence of two words
    if name == "omniglot_alphabets":
        assert not set(parts.train.groups) & set(parts.val.groups)
        assert all(group.startswith("evaluation/") for group in parts.test.groups)
    if name == "cifar_fs":
        assert {"rocket", "worm", "baby"} <= set(parts.test.names) and "otter" in parts.val.names
        assert parts.test.groups[parts.test.names.index("rocket")] == "vehicles_2"
    if name.startswith("few_rel"):
        from metafast.data import _few_rel

        # the vectors are made of sentences of these relations alone
        assert [part.names for part in parts] == [part.names for part in few_shot("few_rel")]
        train, val = _few_rel._train_val(range(64))
        numbers = sorted(int(name.split()[0][1:]) for part in parts[:2] for name in part.names)
        assert len(numbers) == 64 and sorted(train + val) == list(range(64))
        if name == "few_rel_vectors":
            everything = all_classes(name, "val_wiki")
            chosen = everything.select(parts.test.names)
            np.testing.assert_array_equal(chosen.examples, parts.test.examples)
    assert few_shot(name).train is parts.train


def test_every_class_of_a_data_set(data_folder):
    pytest.importorskip("datasets", reason="needs the hf extra")
    data_folder("mnist")
    digits = all_classes("mnist", "test")
    assert digits.classes == 10 and digits.counts.tolist() == [500] * 10
