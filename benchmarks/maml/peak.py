"""The core's measured peak of fused multiply-adds, the limit that a meta-gradient's time is compared with."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("peak.cpp")
_FOLDER = Path(__file__).resolve().parents[2] / "build" / "benchmarks"


@dataclass(frozen=True)
class Rate:
    """GFLOP/s by wall time, and by processor time (what it would be on a machine of one's own)."""

    wall: float
    cpu: float


def fma_probe() -> Callable[[int], Rate] | None:
    """A function that takes a number of threads and measures their peak together; None without a C++ compiler."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    library = _FOLDER / f"peak-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-o", str(part),
             str(_SOURCE)],
            check=True,
        )  # fmt: skip
        part.rename(library)
    burst = ctypes.CDLL(str(library)).fma_burst
    burst.argtypes, burst.restype = (ctypes.c_long, ctypes.c_int, ctypes.POINTER(ctypes.c_float)), ctypes.c_double
    sink = ctypes.c_float()

    def measure(threads: int) -> Rate:
        burst(1_000_000, threads, ctypes.byref(sink))  # until the clock is up
        wall, cpu = time.perf_counter(), time.process_time()
        done: float = burst(10_000_000, threads, ctypes.byref(sink))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Rate(done / wall / 1e9, done / (cpu / threads) / 1e9)

    return measure


if __name__ == "__main__":
    probe = fma_probe()
    print("no C++ compiler" if probe is None else f"{max(probe(1).wall for _ in range(5)):.1f} GFLOP/s on one core")
