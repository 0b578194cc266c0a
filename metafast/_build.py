"""What this build is and what this machine can do: from `metafast._host`, or from Python where that was not built."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    _host: Any = import_module("metafast._host")
    MISSING: str | None = None
except ImportError as error:
    _host, MISSING = None, str(error)

_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512bf16")


def build_info() -> dict[str, Any] | None:
    """Version, commit, compiler, flags and targets of the native build, or None for a pure Python install."""
    return dict(_host.build_info()) if _host is not None else None


def machine_info() -> dict[str, Any]:
    """Processor, its kernel level, caches and cores.

    Returns:
        `cpu` (name), `cpu_level` (`"avx512"`, `"avx2"`, `"neon"` or `"none"`: the kernels that it can run),
        `cpu_features` (name to bool), `cache_bytes` (`l1d`, `l2`, `l3`; 0 where unknown), `cores` (usable here).

    Example:
        >>> machine_info()["cpu_level"] in {"avx512", "avx2", "neon", "none"}
        True
    """
    return dict(_host.machine_info()) if _host is not None else _python_machine_info()


def _python_machine_info() -> dict[str, Any]:
    facts = _cpuinfo()
    features: dict[str, bool] = {}
    level = "none"
    if platform.machine().lower() in {"arm64", "aarch64"}:
        features, level = {"neon": True}, "neon"
    elif "flags" in facts:
        present = set(facts["flags"].replace("avx512_bf16", "avx512bf16").split())
        features = {name: name in present for name in _FEATURES}
        if features["avx2"] and features["fma"]:
            level = "avx512" if all(features[f] for f in _FEATURES[2:7]) else "avx2"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cpu_level": level,
        "cpu_features": features,
        "cache_bytes": _caches(),
        "cores": cores,
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, int]:
    sizes = {"l1d": 0, "l2": 0, "l3": 0}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind, text = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        key = {"1": "l1d", "2": "l2", "3": "l3"}.get(level)
        if key and kind != "Instruction":
            sizes[key] = int(text.rstrip("KM")) * {"K": 1024, "M": 1024**2}.get(text[-1], 1)
    return sizes
