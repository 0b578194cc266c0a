"""Where numbers come from, and the files that they go to."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metafast import ops
from metafast._build import build_info, machine_info

PACKAGES = ("torch", "torchopt", "schedulefree", "prodigyopt", "metafast")


def provenance(benchmark: str, *peers: str) -> dict[str, Any]:
    """Machine, commit, versions (of other packages too) and date: without these a time says nothing."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {**machine_info(), "load": list(os.getloadavg())},
        "native": build_info(),
        "backends": {row["op"]: row["backend"] for row in ops.backend_report() if row["device"] == "cpu"},
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: found for name in (*PACKAGES, *peers) if (found := _version(name)) is not None},
        },
    }


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Writes a results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*args: str) -> str:
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "metafast", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
