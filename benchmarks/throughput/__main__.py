"""Times every contender, interleaved, in one process: `python -m benchmarks.throughput --threads 1 2`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metafast import ops
from metafast._build import build_info, machine_info

from .contenders import contenders
from .measure import CLOCKS, measure
from .report import markdown
from .sizes import SIZES

PACKAGES = ("torch", "torchopt", "schedulefree", "prodigyopt", "metafast")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts (default 1)")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=[*SIZES, "smoke"], help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--only", default="", help="regular expression that a contender's name must match")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: for one thread, on a shared machine"
    )
    parser.add_argument("--memory-gb", type=float, default=4.0, help="memory for states at a time (default 4)")
    parser.add_argument("--output", type=Path, help="results file (JSON)")
    args = parser.parse_args(argv)

    rows = [row for row in contenders() if re.search(args.only, row.name)]
    if not rows:
        parser.error(f"--only {args.only!r} matches none of: {', '.join(row.name for row in contenders())}")
    results: dict[str, Any] = {**provenance(), "runs": []}
    warnings.filterwarnings("ignore", category=FutureWarning)
    for threads in args.threads:
        for size in args.sizes:
            run = measure(
                rows, size, threads=threads, rounds=args.rounds, clock=args.clock, memory_bytes=1e9 * args.memory_gb,
                log=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
            results["runs"].append(run)
            if args.output is not None:  # after each size, so that an interrupted run leaves what it has
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(markdown(results))
    return results


def provenance() -> dict[str, Any]:
    """Machine, commit, versions and date: without these a time says nothing."""
    return {
        "benchmark": "throughput",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {**machine_info(), "load": list(os.getloadavg())},
        "native": build_info(),
        "backends": {row["op"]: row["backend"] for row in ops.backend_report() if row["device"] == "cpu"},
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*args: str) -> str:
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "metafast", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
