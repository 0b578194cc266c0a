"""Data sets by name: the order of places, and errors that say what was tried."""

import subprocess
import sys

import pytest

datasets = pytest.importorskip("datasets", reason="metafast.data.load needs the hf extra")

from metafast.data import DatasetNotFoundError, load  # noqa: E402
from metafast.data import _load as module  # noqa: E402


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """`parquet(folder, split, value)` writes one row; the cache of datasets stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(folder, split, value):
        folder.mkdir(parents=True, exist_ok=True)
        data = datasets.Dataset.from_dict({"text": [value], "label": [0]})
        with module._quiet(datasets):
            data.to_parquet(str(folder / f"{split}.parquet"))
        return folder / f"{split}.parquet"

    return write


@pytest.fixture
def no_hub(monkeypatch):
    calls = []

    def refuse(name, split):
        calls.append((name, split))
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(module, "_from_hub", refuse)
    return calls


def test_order_of_places(tmp_path, monkeypatch, parquet):
    mine = parquet(tmp_path / "mine", "test", "from path")
    parquet(tmp_path / "root" / "mnist", "test", "from variable")
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(module, "_from_hub", lambda name, split: f"{name}/{split} from hub")
    assert load("mnist", "test", path=mine)["text"][0] == "from path"
    assert load("mnist", "test", path=tmp_path / "mine")["text"][0] == "from path"
    assert load("mnist", "test", path=str(tmp_path / "root"))["text"][0] == "from variable"
    assert load("mnist", "test")["text"][0] == "from variable"
    assert load("fashion_mnist", "train") == "zalando-datasets/fashion_mnist/train from hub"
    assert load("owner/name", "train") == "owner/name/train from hub"


def test_the_hub_is_asked_through_datasets(monkeypatch):
    monkeypatch.delenv("METAFAST_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: (args, options))
    assert load("mnist", "test") == (("ylecun/mnist",), {"split": "test"})


def test_reading_shows_no_progress_bars_and_leaves_the_setting(tmp_path, capfd, parquet):
    file = parquet(tmp_path / "d", "test", "x")
    load("d", "test", path=file)
    assert "examples" not in capfd.readouterr().err
    assert not datasets.utils.are_progress_bars_disabled()


def test_the_error_tells_everything_tried(tmp_path, monkeypatch, no_hub):
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError) as caught:
        load("mnist", "test")
    text = str(caught.value)
    assert f"METAFAST_DATA: no file {tmp_path}/mnist/test.parquet" in text
    assert "Hugging Face hub: 'ylecun/mnist', split 'test': ConnectionError: no network\n" in text
    assert "set METAFAST_DATA" in text
    assert "path=" in text
    assert no_hub == [("ylecun/mnist", "test")]
    monkeypatch.delenv("METAFAST_DATA")
    with pytest.raises(FileNotFoundError, match="METAFAST_DATA: not set"):
        load("mnist", "test")


def test_a_wrong_split_lists_the_splits(tmp_path, monkeypatch, parquet, no_hub):
    parquet(tmp_path / "d", "train", "x")
    monkeypatch.setenv("METAFAST_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError, match=r"no split 'trian'; it has \['train'\]"):
        load("d", "trian")
    assert no_hub == []


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, "test"), TypeError, "name must be a string, got 1"),
        (("mnist", None), TypeError, "split must be a string"),
        (("../etc", "test"), ValueError, "name must be"),
        (("a/b/c", "test"), ValueError, "name must be"),
        (("", "test"), ValueError, "name must be"),
        (("mnist", "../test"), ValueError, "split must be"),
    ],
)
def test_names_that_cannot_be(arguments, error, text, no_hub):
    with pytest.raises(error, match=text):
        load(*arguments)
    assert no_hub == []


def test_an_explicit_path_is_the_only_place(tmp_path, no_hub):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        load("d", "test", path=tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError, match=r"has neither test.parquet nor d/test.parquet"):
        load("d", "test", path=tmp_path)
    assert no_hub == []


def test_damaged_files(tmp_path, parquet):
    (tmp_path / "test.parquet").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        load("d", "test", path=tmp_path)
    file = parquet(tmp_path / "cut", "test", "x" * 1000)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot be read as a Parquet file.*get it again"):
        load("d", "test", path=file)
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(ValueError, match="is not a Parquet file"):
        load("d", "test", path=tmp_path / "empty.parquet")


def test_without_the_datasets_package_the_error_says_how_to_get_it(tmp_path):
    code = """
import sys
sys.modules["datasets"] = None
from metafast.data import load
open(sys.argv[1], "wb").write(b"PAR1")
try:
    load("d", "test", path=sys.argv[1])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, timeout=60)
    assert "pip install 'metafast[hf]'" in done.stdout, done.stderr


def test_real_data(data_folder, tmp_path, monkeypatch):
    data_folder("mnist")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = load("mnist", "test")
    assert {"image", "label"} <= set(data.column_names)
    assert len(data) >= 5000
