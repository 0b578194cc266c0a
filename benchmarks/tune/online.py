"""What `metafast run online-tuning` found, as a committed result: numbers with machine and commit, and the figure.

python -m benchmarks.tune.online FOLDER     writes benchmarks/results/online_tuning.json and .png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.provenance import provenance, write_results
from metafast import plots
from metafast.experiments.online_tuning import cost_figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the --output of the command")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/online_tuning"), help="without ending")
    options = parser.parse_args(argv)
    found = json.loads((options.folder / "results.json").read_text(encoding="utf-8"))
    body = {**provenance("online_tuning"), **found}
    write_results(options.output.with_suffix(".json"), body)
    picture, vector = plots.save(cost_figure(found), options.output)
    vector.unlink()
    print(f"{options.output.with_suffix('.json')}\n{picture}")
    for verdict in found["verdicts"]:
        print(verdict["line"])


if __name__ == "__main__":
    main()
