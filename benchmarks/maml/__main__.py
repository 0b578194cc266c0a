"""Times MAML meta-gradients: `python -m benchmarks.maml --output benchmarks/results/maml_meta_gradient.json`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance

from .contenders import CONTENDERS
from .measure import Results, measure
from .report import markdown
from .workloads import MAIN, WORKLOADS

PEERS = ("jax", "jaxlib", "higher", "parallel-metalearn")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maml", description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(MAIN), choices=list(WORKLOADS))
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5], help="inner steps (default 1 and 5)")
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 1], choices=[1, 2], help="default both")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--only", default="", help="regular expression that a contender's name must match")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of the printed table; both are kept")
    parser.add_argument("--output", type=Path, help="results file (JSON); one that exists is completed")
    args = parser.parse_args(argv)

    wanted = [c for c in CONTENDERS if re.search(args.only, c.name)]
    if not wanted:
        parser.error(f"--only {args.only!r} matches none of: {', '.join(c.name for c in CONTENDERS)}")
    facts = provenance("maml", *PEERS)
    results = Results(args.output, facts)
    for threads in args.threads:
        for steps in args.steps[::-1]:  # the longest rows first: those are what targets are about
            for order in args.orders:
                for workload in args.workloads:
                    measure(
                        results, wanted, workload, steps=steps, order=order, threads=threads, rounds=args.rounds,
                        commit=facts["commit"], log=lambda line: print(line, file=sys.stderr, flush=True),
                    )  # fmt: skip
    results.save()
    print(markdown(results.content, clock=args.clock))
    return results.content


if __name__ == "__main__":
    main()
