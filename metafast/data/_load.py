"""Data sets by name: an explicit path, then METAFAST_DATA, then the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

VARIABLE = "METAFAST_DATA"
# the hub keeps these under their owners' names; after a colon, the configuration; after an @, the branch with Parquet
# files of what is a script on the main one
HUB_NAMES = {
    "ag_news": "fancyzhx/ag_news",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "clinc_oos": "clinc/clinc_oos",
    "electricity": "autogluon/chronos_datasets:monash_electricity_hourly",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "few_nerd": "DFKI-SLT/few-nerd:supervised",
    "few_rel": "thunlp/few_rel@refs/convert/parquet:default",
    **{f"glue/{task}": f"nyu-mll/glue:{task}" for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")},
    "imagenet": "ILSVRC/imagenet-1k",
    "imdb": "stanfordnlp/imdb",
    "librispeech": "openslr/librispeech_asr:clean",
    "mini_imagenet": "timm/mini-imagenet",
    "mnist": "ylecun/mnist",
    "squad_v2": "rajpurkar/squad_v2",
    "yelp": "Yelp/yelp_review_full",
}
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DatasetNotFoundError(FileNotFoundError):
    """No place had the data set; the message lists every place that was tried."""


def load(name: str, split: str, path: str | os.PathLike[str] | None = None) -> Dataset:
    """One split of a data set, from the first of three places that has it.

    1. `path`, where given: a Parquet file, or a folder with `<split>.parquet`; nothing else is tried then.
    2. `$METAFAST_DATA/<name>/<split>.parquet`.
    3. The Hugging Face hub.

    Args:
        name: such as "mnist", "ag_news" or "owner/name".
        split: such as "train" or "test". Tune on a part of "train" (see `split_validation`), never on "test".
        path: a file or folder of your own.

    Returns:
        A `datasets.Dataset`; `to_tensors` makes tensors of it.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it; the message says all that was tried.
        ImportError: the `datasets` package is missing.
        TypeError: an argument that is no text.
        ValueError: a name or split that cannot be one, or a file that is no Parquet file.

    Example:
        >>> load("no such name", "test")
        Traceback (most recent call last):
        ...
        ValueError: name must be letters, digits, '.', '_' and '-' (hub: owner/name), got 'no such name'
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, got {value!r} ({type(value).__name__})")
    parts = name.split("/")
    if len(parts) > 2 or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"name must be letters, digits, '.', '_' and '-' (hub: owner/name), got {name!r}")
    if not _PART.fullmatch(split):
        raise ValueError(f"split must be letters, digits, '.', '_' and '-', such as 'train', got {split!r}")
    if path is not None:
        return _from_path(name, split, Path(path))

    tried = []
    root = os.environ.get(VARIABLE)
    if root:
        file = Path(root) / name / f"{split}.parquet"
        if file.is_file():
            return _read(file)
        others = sorted(other.stem for other in file.parent.glob("*.parquet"))
        if others:
            raise DatasetNotFoundError(f"{VARIABLE} has {name!r}, but no split {split!r}; it has {others}")
        tried.append(f"{VARIABLE}: no file {file}")
    else:
        tried.append(f"{VARIABLE}: not set")
    hub = HUB_NAMES.get(name, name)
    try:
        return _from_hub(hub, split)
    except ImportError:
        raise
    except Exception as error:  # the hub's client raises its own, the network's and the file system's errors
        first = (str(error).strip() or "no message").splitlines()[0]
        tried.append(f"Hugging Face hub: {hub!r}, split {split!r}: {type(error).__name__}: {first}")
        steps = "\n".join(f"  {number}. {line}" for number, line in enumerate(tried, 1))
        raise DatasetNotFoundError(
            f"data set {name!r}, split {split!r}, was not found. Tried:\n{steps}\n"
            f"Ways out: set {VARIABLE} to a folder that holds {name}/{split}.parquet, "
            f"or pass path= with a Parquet file, or go online once so that the hub can be read."
        ) from error


def _from_path(name: str, split: str, path: Path) -> Dataset:
    if path.is_file():
        return _read(path)
    candidates = [path / f"{split}.parquet", path / name / f"{split}.parquet"]
    for file in candidates:
        if path.is_dir() and file.is_file():
            return _read(file)
    if path.is_dir():
        raise DatasetNotFoundError(
            f"path {path} has neither {candidates[0].name} nor {candidates[1].relative_to(path)}"
        )
    raise DatasetNotFoundError(f"path {path} does not exist; leave path out to look in {VARIABLE} and on the hub")


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "metafast.data.load needs the datasets package: pip install 'metafast[hf]' (or pip install datasets)"
        ) from error
    return datasets


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Reading a local file shows no progress bar of its own."""
    was_disabled = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()


def _read(file: Path) -> Dataset:
    datasets = _datasets()
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"PAR1":
        raise ValueError(f"{file} is not a Parquet file (it begins with {magic!r})")
    with _quiet(datasets):
        try:
            return datasets.load_dataset("parquet", data_files={"data": str(file)}, split="data")
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:  # pyarrow's errors are ValueErrors
            cause = error.__cause__ or error
            raise ValueError(f"{file} cannot be read as a Parquet file: {cause}; get it again") from error


def _from_hub(name: str, split: str) -> Dataset:
    name, _, configuration = name.partition(":")
    if "@" not in name:
        return _datasets().load_dataset(name, *([configuration] if configuration else []), split=split)
    repository, _, branch = name.partition("@")
    files = f"hf://datasets/{repository}@{branch.replace('/', '%2F')}/{configuration}/{split}/*.parquet"
    return _datasets().load_dataset("parquet", data_files={split: files}, split=split)
