"""Times every contender, interleaved, in one process: `python -m benchmarks.throughput --threads 1 2`."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance, write_results

from .contenders import contenders
from .measure import CLOCKS, measure
from .report import markdown
from .sizes import SIZES


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
    results: dict[str, Any] = {**provenance("throughput"), "runs": []}
    warnings.filterwarnings("ignore", category=FutureWarning)
    for threads in args.threads:
        for size in args.sizes:
            run = measure(
                rows, size, threads=threads, rounds=args.rounds, clock=args.clock, memory_bytes=1e9 * args.memory_gb,
                log=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
            results["runs"].append(run)
            if args.output is not None:  # after each size, so that an interrupted run leaves what it has
                write_results(args.output, results)
    print(markdown(results))
    return results


if __name__ == "__main__":
    main()
