"""One checkpoint: tensors in a safetensors file, everything else in a JSON file that carries both checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from metafast.runs._state import pack, unpack

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.json")


class CheckpointError(OSError):
    """A checkpoint could not be written; the checkpoints from before are untouched."""


def dumps(value: Any) -> str:
    """JSON on one line; floats keep every bit, and a non-finite one is an error (encode it first)."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, sync it, and rename it, so that readers see the old or the new one."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        write(temporary)
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left half-written; safetensors has temporary names of its own (".tmpXXXXXX")."""
    for path in folder.glob(".tmp*"):
        path.unlink(missing_ok=True)


def json_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.json"


def steps_on_disk(folder: Path) -> list[int]:
    """Steps with a checkpoint, oldest first; valid or not."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def write(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> int:
    """Write a checkpoint, commit it by renaming its JSON file, then delete all but the newest `keep`.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written to, or similar.
        TypeError: the state holds something that only pickle could store.
    """
    tree, tensors = pack(state)
    size = sum(tensor.nbytes for tensor in tensors.values())
    target = json_path(folder, step)
    tensor_file = target.with_suffix(".safetensors")
    if target.exists():
        # overwriting would leave a moment in which neither the old nor the new pair is whole
        tensor_file = target.with_suffix(f".{os.getpid()}-{len(list(folder.glob(target.stem + '.*')))}.safetensors")
    before = steps_on_disk(folder)
    replaced = _tensor_file(target) if target.exists() else None
    try:
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        replace_file(tensor_file, lambda path: _write_tensors(tensors, path))
        digest = _file_digest(tensor_file)
        body = {"format": FORMAT, "step": step, "tensors": tensor_file.name, "tensors_sha256": digest, "state": tree}
        document = dumps({"sha256": _digest(dumps(body).encode()), "body": body})
        replace_file(target, lambda path: path.write_text(document, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            if not target.exists() or _tensor_file(target) != tensor_file:
                tensor_file.unlink(missing_ok=True)
        raise CheckpointError(_explain(folder, step, size, before, error)) from error
    if replaced is not None and replaced != tensor_file:
        with contextlib.suppress(OSError):
            replaced.unlink(missing_ok=True)
    _keep_last(folder, keep)
    return size + len(document)


def read(folder: Path, step: int) -> dict[str, Any]:
    """Read and verify one checkpoint.

    Raises:
        ValueError: a file is missing, cut off, or does not match its checksum.
    """
    path = json_path(folder, step)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        body = document["body"]
        if _digest(dumps(body).encode()) != document["sha256"]:
            raise ValueError(f"{path.name} does not match its checksum")
        data = (folder / body["tensors"]).read_bytes()
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    if body["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {body['format']}, this metafast reads up to {FORMAT}: update metafast"
        )
    if _digest(data) != body["tensors_sha256"]:
        raise ValueError(f"checkpoint {path} is damaged: {body['tensors']} does not match its checksum")
    tensors: dict[str, Tensor] = load_tensors(data)
    state = unpack(body["state"], tensors)
    assert isinstance(state, dict)
    return state


def valid(folder: Path) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Checkpoints newest first, as ``(step, state or None, what is wrong)``."""
    for step in reversed(steps_on_disk(folder)):
        try:
            yield step, read(folder, step), ""
        except ValueError as error:
            yield step, None, str(error)


def set_aside(folder: Path, step: int) -> None:
    """Rename a damaged checkpoint, so that it no longer counts as one of the last good ones."""
    path = json_path(folder, step)
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_tensors(tensors, path)
    path.chmod(mode)  # safetensors makes private files; a record is as readable as its folder's umask says


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _tensor_file(path: Path) -> Path | None:
    try:
        return path.with_name(json.loads(path.read_text(encoding="utf-8"))["body"]["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_last(folder: Path, keep: int) -> None:
    steps = steps_on_disk(folder)
    for step in steps[:-keep]:
        path = json_path(folder, step)
        tensors = _tensor_file(path)
        with contextlib.suppress(OSError):  # an old checkpoint that stays costs space, nothing else
            path.unlink(missing_ok=True)
            if tensors is not None:
                tensors.unlink(missing_ok=True)
    named = {_tensor_file(json_path(folder, step)) for step in steps_on_disk(folder)}
    for path in folder.glob("step-*.safetensors"):
        if path not in named:  # its JSON file was never written, or is gone
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _explain(folder: Path, step: int, size: int, before: list[int], error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(folder if folder.exists() else folder.parent).free / 1e6:.1f} MB free"
    except OSError:
        free = "free space unknown"
    kept = f"the checkpoint of step {before[-1]} is intact" if before else "there was no earlier checkpoint"
    return (
        f"cannot write the checkpoint of step {step} ({size / 1e6:.1f} MB) to {folder} ({free}): {error}; {kept}. "
        "Free some space or make the folder writable, then save again"
    )
