"""What the meta-network adds to adaptation: against plain fine-tuning of the same steps, side by side; and its size.

python -m benchmarks.adapt.overhead                    writes benchmarks/results/adapt_overhead.json; half an hour
python -m benchmarks.adapt.overhead --workloads conv4 bert-small --clock cpu

Adaptation is five steps on the support sets, and the logits of as many query examples. Plain fine-tuning has the same
adapters and the same engine, and no network (`net=None`). All take turns in one process, in an order that rotates;
a row is the median of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.convergence.study import RESULTS
from benchmarks.periods import Period, measure_periods
from benchmarks.provenance import provenance, write_results
from benchmarks.throughput.measure import CLOCKS
from metafast.adapt import MetaFineTuner

from .workloads import Workload, bert, conv4, lora, pictures, resnet50, texts

PLAIN = "plain fine-tuning"
AIM = 1.3
WORKLOADS = {
    "conv4": (
        Workload("Conv4, Omniglot 20-way 1-shot, FiLM", conv4, "film", lambda: pictures(1, 20, 1, (1, 28, 28))),
        ("alfa", "alfa+mend", "init+alfa+mend", "alfa+conv"),
    ),
    "conv4-all": (
        Workload("the same, all weights", conv4, "all", lambda: pictures(1, 20, 1, (1, 28, 28))),
        ("alfa", "alfa+mend", "init+alfa+mend"),
    ),
    "bert-small": (
        Workload(
            "BERT of 4 layers of 128, 5-way 1-shot, 48 tokens, LoRA",
            lambda: bert(4, 128),
            lora(),
            lambda: texts(1, 5, 1, 48),
        ),
        ("alfa", "alfa+mend", "init+alfa+mend", "alfa+transformer", "alfa+rnn"),
    ),
    "bert-base": (
        Workload("BERT-base, 5-way 1-shot, 64 tokens, LoRA", bert, lora(), lambda: texts(1, 5, 1, 64)),
        ("alfa+mend", "init+alfa+mend", "alfa+transformer"),
    ),
    "resnet50": (
        Workload("ResNet-50, 5-way 1-shot, 224 px, FiLM", resnet50, "film", lambda: pictures(1, 5, 1, (3, 224, 224))),
        ("alfa+mend", "init+alfa+mend", "alfa+conv"),
    ),
}


def measure(workload: Workload, nets: Sequence[str], rounds: int, clock: Any) -> dict[str, Any]:
    """Rows of one workload, and how large each network is."""
    base, batch = workload.base(), workload.batch()
    metas = {PLAIN: None, **{net: net for net in nets}}
    learners = {
        name: MetaFineTuner(base, workload.adapt, net, steps=workload.steps, inner_lr=workload.lr).eval()
        for name, net in metas.items()
    }

    def period(meta: MetaFineTuner) -> Period:
        @torch.no_grad()
        def run() -> None:
            meta(batch)

        return run

    rows = measure_periods({name: period(meta) for name, meta in learners.items()}, PLAIN, 1, rounds, clock)
    for row in rows:
        report = learners[row["name"]].report()
        row |= {"base": report.base, "network": report.network, "starts": report.starts, "share": report.share}
    return {"title": workload.title, "steps": workload.steps, "rows": rows}


def table(content: dict[str, Any]) -> str:
    """Times and sizes; ratios above the aim in bold."""
    heads = ("task", "threads", "", "ms", f"against plain (≤ {AIM:g})", "meta-network", "of the backbone")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for run in content["runs"]:
        for row in run["rows"]:
            ratio = row["ratio"]
            text = f"{ratio['median']:.2f}"
            text = f"**{text}**" if ratio["median"] > AIM else text
            spread = f"{text} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            plain = row["name"] == PLAIN
            size = [f"{row['network']:,}", f"{100 * row['share']:.2f} %"]
            cells = [
                run["title"],
                run["threads"],
                row["name"],
                f"{row['ms']:,.0f}" if row["ms"] >= 10 else f"{row['ms']:.1f}",
            ]
            cells += ["", "", ""] if plain else [spread, *size]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS / "adapt_overhead.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {**provenance("adapt_overhead", "transformers"), "clock": args.clock, "runs": []}
    for name in args.workloads:
        workload, nets = WORKLOADS[name]
        found = measure(workload, nets, args.rounds, CLOCKS[args.clock])
        content["runs"].append({"workload": name, "threads": args.threads, "rounds": args.rounds, **found})
        write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
