"""Resident memory of this process, from the kernel's own high-water mark."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_mb() -> float:
    """Resident now, in MB (10^6 bytes)."""
    return _field("VmRSS")


def peak_mb() -> float:
    """The most that was resident since `reset_peak`, in MB."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Starts a new high-water mark.

    Raises:
        OSError: the kernel has no /proc/self/clear_refs.
    """
    _CLEAR.write_text("5")


def _field(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no {name}")
