"""Few-shot data sets by name: which classes are for training, for validation and for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.data._class_sets import ClassSet, ClassSplits, check_disjoint, permutation
from metafast.data._few_rel import fill_vectors, read_few_rel, split_few_rel
from metafast.data._load import load
from metafast.data._pictures import pictures
from metafast.data._tensors import IMAGE_COLUMNS, LABEL_COLUMNS
from metafast.data._text import hash_tokens

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]
BUCKETS, LENGTH = 2**14, 32  # of hashed texts

# Classes of CIFAR-100 by name, in the data set's order; v and t mark those of CIFAR-FS's validation and test split.
_CIFAR100 = """apple aquarium_fish t:baby bear v:beaver t:bed bee v:beetle t:bicycle bottle bowl boy bridge bus
v:butterfly v:camel can castle caterpillar v:cattle chair t:chimpanzee clock cloud cockroach couch v:crab v:crocodile
cup dinosaur dolphin elephant v:flatfish forest t:fox girl hamster house kangaroo keyboard v:lamp lawn_mower t:leopard
lion lizard lobster t:man v:maple_tree v:motorcycle mountain mouse mushroom oak_tree orange orchid v:otter palm_tree
pear t:pickup_truck pine_tree t:plain plate t:poppy porcupine possum rabbit raccoon ray road t:rocket t:rose v:sea seal
v:shark shrew skunk skyscraper t:snail snake spider squirrel streetcar sunflower t:sweet_pepper t:table tank
t:telephone v:television tiger v:tractor train trout tulip turtle t:wardrobe t:whale willow_tree wolf t:woman
t:worm""".split()
_SUPERCLASSES = """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
vehicles_2""".split()


def few_shot(name: str, path: str | PathLike[str] | None = None) -> ClassSplits:
    """The training, validation and test classes of a few-shot data set.

    | name | classes (train/val/test) | what |
    |---|---|---|
    | `omniglot` | 1100/100/423 | characters irrespective of alphabet, as many as in MAML's split |
    | `omniglot_alphabets` | 25/5/20 alphabets | background alphabets to learn on, evaluation alphabets to test on |
    | `cifar_fs` | 64/16/20 | CIFAR-100 with the classes of CIFAR-FS; `cifar100` is the same |
    | `few_rel` | 50/14/16 | relations between entities, as bags of marked words; test: the official validation part |
    | `few_rel_words` | 50/14/16 | the same as sequences of words with markers around the entities |
    | `few_rel_vectors` | 50/14/16 | the same as word vectors and places, `[56, 32, 1]`: see `word_vectors` |
    | `clinc_oos` | 90/30/30 | intents, without the out-of-scope class |
    | any other name | 64/16/20 % | its "train" and "test" rows by label, classes split by a fixed seed |

    What was read is kept: a second call with the same arguments gives the same arrays.

    Args:
        name: of the data set; `load` says where it is looked for.
        path: a folder of your own, as in `load`.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        ValueError: the data have no labels, or too few classes to split.

    Source:
        L. Bertinetto et al., Meta-learning with differentiable closed-form solvers, ICLR 2019 (CIFAR-FS);
        B. Lake et al., Human-level concept learning through probabilistic program induction, Science 2015 (Omniglot);
        X. Han et al., FewRel, EMNLP 2018; S. Larson et al., An Evaluation Dataset for Intent Classification and
        Out-of-Scope Prediction, EMNLP 2019.
    """
    return _few_shot(name, None if path is None else str(path))


def all_classes(name: str, split: str | None = None, path: str | PathLike[str] | None = None) -> ClassSet:
    """Every class of a data set, for transfer from and to other data sets.

    Args:
        name: of the data set.
        split: of its rows, such as "test"; None: all rows.
        path: as in `load`.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        ValueError: the data have no labels.
    """
    folder = None if path is None else str(path)
    classes = _all_classes(name, split, folder)
    return fill_vectors(classes, folder) if name == "few_rel_vectors" else classes


@lru_cache(maxsize=8)
def _few_shot(name: str, path: str | None) -> ClassSplits:
    split = _SPLITS.get(name)
    everything = _all_classes(_SAME_ROWS.get(name, name), None, path)
    parts = everything.split() if split is None else split(everything)
    if name == "few_rel_vectors":
        parts = ClassSplits(*(fill_vectors(part, path) for part in parts))
    check_disjoint(train=parts.train, val=parts.val, test=parts.test)
    return ClassSplits(
        *(replace(part, name=f"{name} ({label})") for label, part in zip(("train", "val", "test"), parts, strict=True))
    )


@lru_cache(maxsize=8)
def _all_classes(name: str, split: str | None, path: str | None) -> ClassSet:
    return _READERS.get(name, _read_labelled)(name, split, path)


def _rows(name: str, splits: tuple[str, ...], path: str | None) -> Iterator[Dataset]:
    for split in splits:
        yield load(name, split, path)


def _read_omniglot(name: str, split: str | None, path: str | None) -> ClassSet:
    examples, labels, drawers, names, groups = [], [], [], {}, {}
    for rows in _rows(name, ("background", "evaluation") if split is None else (split,), path):
        examples.append(pictures(rows, "image"))
        columns = [rows[column][:] for column in ("label", "drawer", "alphabet", "character", "split")]
        labels.append(np.array(columns[0]))
        drawers.append(np.array(columns[1]))
        for label, alphabet, character, part in zip(columns[0], *columns[2:], strict=True):
            names[label], groups[label] = f"{alphabet}/{character}", f"{part}/{alphabet}"
    numbers = sorted(names)
    return ClassSet(
        np.concatenate(examples),
        np.searchsorted(numbers, np.concatenate(labels)),
        tuple(names[n] for n in numbers),
        tuple(groups[n] for n in numbers),
        np.concatenate(drawers),
        turned_classes=True,
        name=name,
    )


def _split_omniglot(characters: ClassSet) -> ClassSplits:
    order = permutation(characters.classes, seed=0)
    return ClassSplits(*(characters.select(sorted(order[a:b])) for a, b in ((0, 1100), (1100, 1200), (1200, None))))


def _split_alphabets(characters: ClassSet) -> ClassSplits:
    background = sorted({group for group in characters.groups if group.startswith("background/")})
    val = {background[i] for i in permutation(len(background), seed=0)[:5]}
    return ClassSplits(
        characters.select(lambda _, group: group in background and group not in val),
        characters.select(lambda _, group: group in val),
        characters.select(lambda _, group: group.startswith("evaluation/")),
    )


def _read_cifar100(name: str, split: str | None, path: str | None) -> ClassSet:
    examples, fine, coarse = [], [], []
    for rows in _rows(name, ("train", "test") if split is None else (split,), path):
        examples.append(pictures(rows, "img"))
        fine.append(np.array(rows["fine_label"][:]))
        coarse.append(np.array(rows["coarse_label"][:]))
    labels, groups = np.concatenate(fine), [""] * 100
    for label, group in {*zip(labels.tolist(), np.concatenate(coarse).tolist(), strict=True)}:
        groups[label] = _SUPERCLASSES[group]
    names = tuple(word.split(":")[-1] for word in _CIFAR100)
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    return ClassSet(np.concatenate(examples), labels, names, tuple(groups), mean=mean, std=std, name=name)


def _split_cifar_fs(classes: ClassSet) -> ClassSplits:
    marks = {word.split(":")[-1]: word[0] if word[1] == ":" else "" for word in _CIFAR100}
    return ClassSplits(
        *(classes.select([name for name in classes.names if marks[name] == mark]) for mark in ("", "v", "t"))
    )


def _read_clinc(name: str, split: str | None, path: str | None) -> ClassSet:
    texts: list[str] = []
    intents, groups = [], {}
    for rows in _rows(name, ("train", "validation", "test") if split is None else (split,), path):
        for text, intent, domain in zip(rows["text"][:], rows["intent"][:], rows["domain"][:], strict=True):
            if domain != "oos":
                texts.append(text)
                intents.append(intent)
                groups[intent] = domain
    numbers = sorted(groups)
    return ClassSet(
        _tokens(texts),
        np.searchsorted(numbers, np.array(intents)),
        tuple(f"intent {number}" for number in numbers),
        tuple(groups[number] for number in numbers),
        name=name,
    )


def _split_clinc(intents: ClassSet) -> ClassSplits:
    return intents.split(train=0.6, val=0.2)


def _read_labelled(name: str, split: str | None, path: str | None) -> ClassSet:
    sets = [
        of_dataset(rows, None, name) for rows in _rows(name, ("train", "test") if split is None else (split,), path)
    ]
    names = tuple(sorted({label for part in sets for label in part.names}))
    place = [np.array([names.index(label) for label in part.names])[part.labels] for part in sets]
    return replace(
        sets[0],
        examples=np.concatenate([part.examples for part in sets]),
        labels=np.concatenate(place),
        names=names,
    )


def of_dataset(rows: Dataset, label: str | None, name: str) -> ClassSet:
    """The classes of one split of a data set with pictures or texts."""
    columns = rows.column_names
    usual = [label] if label is not None else [c for c in LABEL_COLUMNS if c in columns]
    if not usual or usual[0] not in columns:
        raise ValueError(f"label must be one of the columns {columns} of {name}, got {label!r}")
    image = next((column for column in IMAGE_COLUMNS if column in columns), None)
    if image is not None:
        examples = pictures(rows, image)
    elif "text" in columns:
        examples = _tokens(rows["text"][:])
    else:
        raise ValueError(f"{name} must have a column 'image', 'img' or 'text', got {columns}")
    values, numbers = np.unique(np.array(rows[usual[0]][:]), return_inverse=True)
    known = getattr(rows.features[usual[0]], "names", None)
    names = tuple(str(known[value]) if known else f"{name} {value}" for value in values)
    return ClassSet(examples, numbers, names, name=name)


def _tokens(texts: list[str]) -> Array:
    return hash_tokens(texts, buckets=BUCKETS, length=LENGTH, ngrams=2).numpy().astype(np.int32)


_SAME_ROWS = {"cifar_fs": "cifar100", "omniglot_alphabets": "omniglot"}
_READERS: dict[str, Callable[[str, str | None, str | None], ClassSet]] = {
    "omniglot": _read_omniglot,
    "cifar100": _read_cifar100,
    "few_rel": read_few_rel,
    "few_rel_words": read_few_rel,
    "few_rel_vectors": read_few_rel,
    "clinc_oos": _read_clinc,
}
_SPLITS: dict[str, Callable[[ClassSet], ClassSplits]] = {
    "omniglot": _split_omniglot,
    "omniglot_alphabets": _split_alphabets,
    "cifar100": _split_cifar_fs,
    "cifar_fs": _split_cifar_fs,
    "few_rel": split_few_rel,
    "few_rel_words": split_few_rel,
    "few_rel_vectors": split_few_rel,
    "clinc_oos": _split_clinc,
}
