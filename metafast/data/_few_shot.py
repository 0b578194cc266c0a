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
from metafast.data._reading import BUCKETS, PLAIN, SEQUENCE, Reading, first_rows, joined, texts_of
from metafast.data._row_sets import ROW_SETS, split_rows
from metafast.data._tensors import IMAGE_COLUMNS, LABEL_COLUMNS
from metafast.data._text import hash_tokens

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]
ALIASES = {"fewrel": "few_rel"}

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
# Classes of miniImageNet by their WordNet numbers: those to choose on, and those to test on.
_MINI_IMAGENET = (
    """n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
    n03584254 n03770439 n03773504 n03980874 n09256479""".split(),
    """n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
    n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480""".split(),
)


def few_shot(
    name: str,
    path: str | PathLike[str] | None = None,
    *,
    tokenizer: Any = None,
    length: int | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> ClassSplits:
    """The training, validation and test classes of a few-shot data set.

    | name | classes (train/val/test) | what |
    |---|---|---|
    | `omniglot` | 1100/100/423 | characters irrespective of alphabet, as many as in MAML's split |
    | `omniglot_alphabets` | 25/5/20 alphabets | background alphabets to learn on, evaluation alphabets to test on |
    | `cifar_fs` | 64/16/20 | CIFAR-100 with the classes of CIFAR-FS; `cifar100` is the same |
    | `few_rel` | 50/14/16 | relations between entities, as bags of marked words; test: the official validation part |
    | `few_rel_words` | 50/14/16 | the same as sequences of words with markers around the entities |
    | `few_rel_vectors` | 50/14/16 | the same as word vectors and places, `[56, 32, 1]`: see `word_vectors` |
    | `clinc_oos` | 90/30/30 | intents, without the out-of-scope class, as bags of words and pairs of words |
    | `clinc_words` | 90/30/30 | the same as sequences of words, with the numbers of `few_rel_words` |
    | `mini_imagenet` | 64/16/20 | photos of ImageNet; the classes of S. Ravi and H. Larochelle's split |
    | `ag_news`, `imdb`, `glue/sst2`, ... | all in each | parts differ by rows; GLUE's test: its validation part |
    | any other name | 64/16/20 % | its "train" and "test" rows by label, classes split by a fixed seed |

    What was read is kept: a second call with the same arguments gives the same arrays.

    Args:
        name: of the data set; `load` says where it is looked for.
        path: a folder of your own, as in `load`.
        tokenizer: makes the token numbers of texts: one of transformers, or a callable that makes int64 `[N, L]` of a
            list of texts (of pairs of texts). Entities of relations then stand between "$" and "#".
        length: tokens per text of a tokenizer of transformers; default 128, or its own limit.
        size: height and width that pictures are brought to, in three channels.
        limit: the most examples of a class.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        TypeError: a tokenizer that cannot be called, a size that is no integer.
        ValueError: the data have no labels, too few classes to split, or no texts for the tokenizer.

    Source:
        L. Bertinetto et al., Meta-learning with differentiable closed-form solvers, ICLR 2019 (CIFAR-FS);
        B. Lake et al., Human-level concept learning through probabilistic program induction, Science 2015 (Omniglot);
        X. Han et al., FewRel, EMNLP 2018; S. Larson et al., An Evaluation Dataset for Intent Classification and
        Out-of-Scope Prediction, EMNLP 2019; S. Wu, Y. He, Enriching Pre-trained Language Model with Entity
        Information for Relation Classification, CIKM 2019 (marks around entities).
    """
    reading = Reading(tokenizer, length, size, limit)
    return _few_shot(ALIASES.get(name, name), None if path is None else str(path), reading)


def all_classes(
    name: str,
    split: str | None = None,
    path: str | PathLike[str] | None = None,
    *,
    tokenizer: Any = None,
    length: int | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> ClassSet:
    """Every class of a data set, for transfer from and to other data sets.

    Args:
        name: of the data set.
        split: of its rows, such as "test"; None: all rows.
        path: as in `load`.
        tokenizer: as in `few_shot`.
        length: likewise.
        size: likewise.
        limit: likewise.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        ValueError: the data have no labels.
    """
    folder, name = None if path is None else str(path), ALIASES.get(name, name)
    classes = _all_classes(name, split, folder, Reading(tokenizer, length, size, limit))
    return fill_vectors(classes, folder) if name == "few_rel_vectors" else classes


@lru_cache(maxsize=8)
def _few_shot(name: str, path: str | None, reading: Reading) -> ClassSplits:
    if name in ROW_SETS:
        parts = split_rows(name, path, reading, _all_classes)
    else:
        split = _SPLITS.get(name)
        everything = _all_classes(_SAME_ROWS.get(name, name), None, path, reading)
        parts = everything.split() if split is None else split(everything)
        if name == "few_rel_vectors":
            parts = ClassSplits(*(fill_vectors(part, path) for part in parts))
        check_disjoint(train=parts.train, val=parts.val, test=parts.test)
    return ClassSplits(
        *(replace(part, name=f"{name} ({label})") for label, part in zip(("train", "val", "test"), parts, strict=True))
    )


@lru_cache(maxsize=8)
def _all_classes(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
    if name == "imagenet" and (reading.size is None or reading.limit is None):
        raise ValueError("imagenet needs size= and limit=, the most pictures of a class: all of them fit no memory")
    found = _READERS.get(name, _read_labelled)(name, split, path, reading)
    if reading.tokenizer is not None and found.examples.dtype != np.int32:
        raise ValueError(f"tokenizer is for texts, and {name} has none")
    return reading.finish(found)


def _rows(name: str, splits: tuple[str, ...], path: str | None) -> Iterator[Dataset]:
    for split in splits:
        yield load(name, split, path)


def _read_omniglot(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
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


def _read_cifar100(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
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


def _read_clinc(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
    if name == "clinc_words" and reading.tokenizer is not None:
        raise ValueError("clinc_words are words hashed; with a tokenizer it is clinc_oos")
    texts: list[str] = []
    intents, groups = [], {}
    for rows in _rows("clinc_oos", ("train", "validation", "test") if split is None else (split,), path):
        for text, intent, domain in zip(rows["text"][:], rows["intent"][:], rows["domain"][:], strict=True):
            if domain != "oos":
                texts.append(text)
                intents.append(intent)
                groups[intent] = domain
    numbers = sorted(groups)
    return ClassSet(
        _words(texts) if name == "clinc_words" else reading.tokens(texts),
        np.searchsorted(numbers, np.array(intents)),
        tuple(f"intent {number}" for number in numbers),
        tuple(groups[number] for number in numbers),
        name=name,
    )


def _split_clinc(intents: ClassSet) -> ClassSplits:
    return intents.split(train=0.6, val=0.2)


def _split_mini_imagenet(classes: ClassSet) -> ClassSplits:
    val, test = _MINI_IMAGENET
    if not {*val, *test} <= {*classes.names}:
        return classes.split()
    train = [name for name in classes.names if name not in {*val, *test}]
    return ClassSplits(*(classes.select(names) for names in (train, val, test)))


def _read_labelled(name: str, split: str | None, path: str | None, reading: Reading) -> ClassSet:
    if reading.size is None and name in _SIZES:
        reading = replace(reading, size=_SIZES[name])
    splits = _PARTS.get(name, ("train", "test")) if split is None else (split,)
    return joined([of_dataset(rows, None, name, reading) for rows in _rows(name, splits, path)])


def of_dataset(rows: Dataset, label: str | None, name: str, reading: Reading = PLAIN) -> ClassSet:
    """The classes of one split of a data set with pictures or texts."""
    columns = rows.column_names
    usual = [label] if label is not None else [c for c in LABEL_COLUMNS if c in columns]
    if not usual or usual[0] not in columns:
        raise ValueError(f"label must be one of the columns {columns} of {name}, got {label!r}")
    labels = np.array(rows[usual[0]][:])
    if reading.limit is not None:  # before anything is decoded
        numbers = np.unique(labels, return_inverse=True)[1]
        kept = first_rows(numbers, reading.limit)
        rows, labels = rows.select(kept), labels[kept]
    image = next((column for column in IMAGE_COLUMNS if column in columns), None)
    more: dict[str, Any] = {}
    if image is not None:
        if reading.tokenizer is not None:
            raise ValueError(f"tokenizer is for texts, and {name} has pictures")
        examples = pictures(rows, image, reading.size)
        if reading.size is not None:
            more = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's
    else:
        texts = texts_of(rows)
        if texts is None:
            raise ValueError(f"{name} must have a column 'image', 'img', 'text' or 'sentence', got {columns}")
        examples = reading.tokens(texts)
    values, numbers = np.unique(labels, return_inverse=True)
    known = getattr(rows.features[usual[0]], "names", None)
    names = tuple(str(known[value]) if known else f"{name} {value}" for value in values)
    return ClassSet(examples, numbers, names, name=name, **more)


def _words(texts: list[str]) -> Array:
    return hash_tokens(texts, BUCKETS, SEQUENCE).numpy().astype(np.int32)


_SAME_ROWS = {"cifar_fs": "cifar100", "omniglot_alphabets": "omniglot"}
_PARTS = {"mini_imagenet": ("train", "validation", "test"), "imagenet": ("train", "validation")}
_SIZES = {"mini_imagenet": 84}  # its photos are of many sizes
_READERS: dict[str, Callable[[str, str | None, str | None, Reading], ClassSet]] = {
    "omniglot": _read_omniglot,
    "cifar100": _read_cifar100,
    "few_rel": read_few_rel,
    "few_rel_words": read_few_rel,
    "few_rel_vectors": read_few_rel,
    "clinc_oos": _read_clinc,
    "clinc_words": _read_clinc,
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
    "clinc_words": _split_clinc,
    "mini_imagenet": _split_mini_imagenet,
}
