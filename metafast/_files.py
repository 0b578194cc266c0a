"""Tensors with a description in one safetensors file, written whole and refused whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from metafast.runs._checkpoint import replace_file

KEY = "metafast"  # of the description among the file's metadata


@dataclass(frozen=True)
class Kind:
    """What a file holds.

    Args:
        format: its name in the file.
        version: likewise.
        noun: what the file holds, in errors.
        where: where to get one.
        maker: what writes one.
        anew: how one of an older version is made anew.
    """

    format: str
    version: int
    noun: str
    where: str
    maker: str
    anew: str

    def write(
        self,
        save: Callable[..., None],
        tensors: Mapping[str, Any],
        about: Mapping[str, Any],
        path: str | os.PathLike[str],
    ) -> None:
        """Writes the file, whole or not at all; `save` is safetensors' for this sort of tensors."""
        told = {"format": self.format, "version": self.version, **about}
        metadata = {KEY: json.dumps(told, allow_nan=False)}
        replace_file(Path(path), lambda file: save(dict(tensors), file, metadata=metadata))

    def read(self, path: str | os.PathLike[str], framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The description and the tensors.

        Args:
            path: of the file.
            framework: "pt" or "np".

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, something else, or of another version.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no {self.noun} at {file}; {self.where}")
        try:
            with safe_open(file, framework=framework) as opened:
                about = json.loads((opened.metadata() or {}).get(KEY, "null"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from None
        if not isinstance(about, dict) or about.get("format") != self.format:
            raise ValueError(f"{file} holds no {self.noun}; one is made by {self.maker}")
        if about.get("version") != self.version:
            raise ValueError(
                f"{file} has version {about.get('version')!r} of the format, this metafast reads {self.version}: "
                f"{self.anew}, or install the metafast that made it"
            )
        return about, tensors
