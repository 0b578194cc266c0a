"""Whether each aim was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metafast.experiments._verdict import Verdict as BaseVerdict
from metafast.experiments.rapid_adaptation._plan import Plan, Row
from metafast.experiments.rapid_adaptation._summaries import Share, Summary

SHARE = 0.8  # of held-out tasks
LETTERS = 3.0  # points above fine-tuning, Omniglot
RELATIONS = 8.0  # points above fine-tuning, FewRel
SLOWER = 1.3  # times plain fine-tuning's time


class Verdict(BaseVerdict):
    """One aim."""

    unjudged = "not judged (its data set is missing)"


def verdicts(plan: Plan, found: Sequence[Summary], shares: Sequence[Share], done: Mapping[str, Row]) -> list[Verdict]:
    """The aims of rapid adaptation.

    Args:
        plan: the experiment.
        found: all summaries.
        shares: all comparisons of losses.
        done: the row of every job by its name.
    """
    table = {(each.setting, each.target, each.shots, each.method): each for each in found}
    return [
        *(_losses(shares, steps) for steps in dict.fromkeys((1, plan.recipe.steps))),
        _letters(table),
        _relations(table),
        *_transfers(found, table),
        *_sizes(plan, done),
        _times(plan, done),
    ]


def _losses(shares: Sequence[Share], steps: int) -> Verdict:
    own = [each for each in shares if not each.target]
    key = str(steps)
    numbers = "; ".join(
        f"{each.case} {_percent(each.best[key])} (below the rate chosen on validation tasks "
        f"{_percent(each.chosen[key])}, below LoRA's {_percent(each.lora[key])})"
        for each in own
    )
    return Verdict(
        f"Loss after {steps} step{'s' * (steps > 1)} below the best of 5 SGD rates, chosen for each task in hindsight, "
        f"on at least {_percent(SHARE)} of held-out tasks in every setting",
        all(each.best[key] >= SHARE for each in own),
        f"{numbers}.",
    )


def _letters(table: Mapping[tuple[str, str | None, int, str], Summary]) -> Verdict:
    aim = f"Omniglot 20-way 1-shot: at least {LETTERS:g} points above fine-tuning, and at least a linear probe's"
    if ("omniglot", None, 1, "ours") not in table:
        return Verdict(aim, None, "")
    ours, tuned, probe = (table["omniglot", None, 1, method] for method in ("ours", "finetune", "probe"))
    over, head = _points(ours, tuned), _points(ours, probe)
    numbers = (
        f"{_accuracy(ours)}; fine-tuning {_accuracy(tuned)} ({over:+.1f}), probe {_accuracy(probe)} ({head:+.1f})."
    )
    return Verdict(aim, over >= LETTERS and head >= 0, numbers)


def _relations(table: Mapping[tuple[str, str | None, int, str], Summary]) -> Verdict:
    aim = f"FewRel 5-way 1-shot, validation relations: at least {RELATIONS:g} points above plain fine-tuning"
    if ("fewrel", None, 1, "ours") not in table:
        return Verdict(aim, None, "")
    parts = []
    for shots in (1, 5):
        if ("fewrel", None, shots, "ours") in table:
            ours, tuned = (table["fewrel", None, shots, method] for method in ("ours", "finetune"))
            parts.append(
                f"{shots}-shot {_accuracy(ours)}, fine-tuning {_accuracy(tuned)} ({_points(ours, tuned):+.1f}), "
                f"fine-tuning with the rate best in hindsight {100 * (tuned.best or 0):.1f}"
            )
    over = _points(table["fewrel", None, 1, "ours"], table["fewrel", None, 1, "finetune"])
    return Verdict(aim, over >= RELATIONS, "; ".join(parts) + ".")


def _transfers(found: Sequence[Summary], table: Mapping[tuple[str, str | None, int, str], Summary]) -> list[Verdict]:
    made = []
    groups = {"images": ("omniglot", "cifar"), "relations to intents": ("fewrel",)}
    for what, settings in groups.items():
        mine = [each for each in found if each.method == "ours" and each.target and each.setting in settings]
        pairs = [(each, table[each.setting, each.target, each.shots, "finetune"]) for each in mine]
        numbers = "; ".join(
            f"{ours.case} {_accuracy(ours)}, fine-tuning {_accuracy(tuned)} ({_points(ours, tuned):+.1f}; with the "
            f"rate best in hindsight {100 * (tuned.best or 0):.1f})"
            for ours, tuned in pairs
        )
        reached = all(_points(ours, tuned) > 0 for ours, tuned in pairs) if pairs else None
        made.append(
            Verdict(
                f"Transfer to data that meta-training never saw ({what}): above plain fine-tuning",
                reached,
                numbers + "." * bool(pairs),
            )
        )
    return made


def _sizes(plan: Plan, done: Mapping[str, Row]) -> list[Verdict]:
    made = []
    for name in plan.names:
        setup = plan.recipe.setups[name]
        row = done[plan.cost(next(plan.cases(name)), done).name]
        share = row["network"] / row["backbone"]
        made.append(
            Verdict(
                f"{setup.title}: the meta-network has at most {100 * setup.limit:g} % of the backbone's numbers",
                share <= setup.limit,
                f"{row['network']:,} of {row['backbone']:,}, {100 * share:.2f} %; and {row['starts']:,} learned "
                "starts of adapters.",
            )
        )
    return made


def _times(plan: Plan, done: Mapping[str, Row]) -> Verdict:
    parts, worst = [], 0.0
    for name in plan.names:
        for case in plan.cases(name):
            if case.target is None:
                row = done[plan.cost(case, done).name]
                tuned, hand = row["ratios"]["finetune"], row["ratios"]["by hand"]
                worst = max(worst, tuned, hand)
                seconds = row["methods"]["ours"]["seconds"]
                engine = row["ratios"].get("engine")
                parts.append(
                    f"{plan.title(case)} {1000 * seconds:.0f} ms, {tuned:.2f} times MetaFineTuner's fine-tuning, "
                    f"{hand:.2f} times a loop with torch.optim.SGD"
                    + (f", {engine:.2f} times the engine for initializations" if engine else "")
                )
    return Verdict(
        f"Adaptation takes at most {SLOWER:g} times plain fine-tuning's time for the same steps, side by side",
        worst <= SLOWER,
        "; ".join(parts) + ".",
    )


def _points(mine: Summary, other: Summary) -> float:
    return 100 * (mine.accuracy - other.accuracy)


def _accuracy(each: Summary) -> str:
    return f"{100 * each.accuracy:.1f} ± {100 * each.half:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
