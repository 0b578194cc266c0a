"""What a result depends on beside its configuration."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import numpy
import torch


@functools.cache
def _facts() -> dict[str, str | None]:
    facts: dict[str, str | None] = {
        "metafast": _metafast_version(),
        "torch": str(torch.__version__),
        "numpy": str(numpy.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }
    return facts


def versions() -> dict[str, str | None]:
    """Versions of metafast, torch, NumPy and Python, the machine's CPU and GPU, and metafast's commit in a checkout.

    Returns:
        Name to text; ``None`` where a thing is absent (no GPU, not a git checkout).

    Example:
        >>> sorted(versions())[:2]
        ['commit', 'cpu']
    """
    return dict(_facts())


def _metafast_version() -> str | None:
    try:
        return importlib.metadata.version("metafast")
    except importlib.metadata.PackageNotFoundError:
        import metafast

        return getattr(metafast, "__version__", None)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
