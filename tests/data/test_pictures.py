"""Pictures are decoded once, and a damaged or unwritable cache does no harm."""

import io

import numpy as np
import pytest

datasets = pytest.importorskip("datasets", reason="needs the hf extra")
pil = pytest.importorskip("PIL.Image", reason="needs pillow")

from metafast.data import _pictures as module  # noqa: E402
from metafast.data._pictures import pictures  # noqa: E402


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "metafast"


def rows(count=5, mode="RGB", size=(4, 3)):
    made = []
    for index in range(count):
        buffer = io.BytesIO()
        array = np.full((size[1], size[0], 3), index % 256, np.uint8)
        pil.fromarray(array[..., 0] if mode == "L" else array).save(buffer, "PNG")
        made.append({"bytes": buffer.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"img": made}, features=datasets.Features({"img": datasets.Image()}))


def refuse(*_):
    raise AssertionError("decoded again")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_decoded_once(mode, channels, cache, monkeypatch):
    first = pictures(rows(700, mode), "img")
    assert first.shape == (700, channels, 3, 4) and first.dtype == np.uint8
    assert (first == (np.arange(700) % 256)[:, None, None, None]).all()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "_decode", refuse)
    assert np.array_equal(pictures(rows(700, mode), "img"), first)
    with pytest.raises(AssertionError, match="decoded again"):
        pictures(rows(699, mode), "img")


def test_a_damaged_cache_is_replaced(cache):
    first = pictures(rows(), "img")
    [file] = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"not numpy", whole[:-7]):
        file.write_bytes(damaged)
        assert np.array_equal(pictures(rows(), "img"), first)
        assert file.read_bytes() == whole


def test_without_a_cache_folder_pictures_are_still_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert pictures(rows(), "img").shape == (5, 3, 3, 4)


def test_nothing_is_left_of_a_write_that_fails(cache, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert pictures(rows(), "img").shape == (5, 3, 3, 4)
    assert list(cache.iterdir()) == []


def test_sizes_that_differ_are_refused(cache):
    both = datasets.concatenate_datasets([rows(2), rows(2, size=(5, 5))])
    with pytest.raises(
        ValueError, match=r"'img' must hold 8-bit pictures of one size, got \[\(3, 4, 3\), \(5, 5, 3\)\]"
    ):
        pictures(both, "img")
    with pytest.raises(ValueError, match="column 'img' must not be empty"):
        pictures(rows(0), "img")
