"""Tables and plots of meta-trainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

Content = dict[str, Any]


def rows_of(content: Content, method: str) -> list[dict[str, Any]]:
    """The rows of a method, by seed."""
    found = [row for name, row in content["rows"].items() if name.rpartition(" | ")[0] == method]
    return sorted(found, key=lambda row: row["seed"])


def score(content: Content, method: str) -> tuple[float, float] | None:
    """Mean test metric over seeds and half a 95 % interval over the episodes of all seeds; accuracy in percent."""
    rows = rows_of(content, method)
    if not rows:
        return None
    scale = 100.0 if content["recipe"]["metric"] == "accuracy" else 1.0
    means = [scale * row["test"]["mean"] for row in rows]
    halves = [scale * row["test"]["half_width"] for row in rows]
    return sum(means) / len(means), math.sqrt(sum(h * h for h in halves)) / len(halves)


def table(content: Content) -> str:
    """Every method: the mean of its seeds with an interval, each seed, minutes, and the target where there is one."""
    recipe = content["recipe"]
    percent = recipe["metric"] == "accuracy"
    digits = 2 if percent else 3
    lines = [
        f"**{recipe['title']}** ({'test accuracy, %' if percent else 'test mean squared error'}; {recipe['source']})",
        "",
        "| method | test | each seed | steps of adaptation | meta-steps | minutes | target |",
        "|---|---|---|---|---|---|---|",
    ]
    scale = 100.0 if percent else 1.0
    for method, options in recipe["methods"].items():
        rows, found = rows_of(content, method), score(content, method)
        if found is None:
            continue
        seeds = ", ".join(f"{scale * row['test']['mean']:.{digits}f}" for row in rows)
        steps = ", ".join(sorted({str(row.get("test_steps", row["settings"]["steps"])) for row in rows}))
        meta_steps = ", ".join(sorted({str(row.get("iterations", "")) for row in rows}))
        minutes = sum(row["minutes"] for row in rows) / len(rows)
        lines.append(
            f"| {method} | {found[0]:.{digits}f} ± {found[1]:.{digits}f} | {seeds} | {steps} | {meta_steps} | "
            f"{minutes:.1f} | {_target(content, options, found[0], minutes)} |"
        )
    rows = list(content["rows"].values())
    lines += _margins(content)
    threads = ", ".join(sorted({str(row["threads"]) for row in rows}))
    commits = ", ".join(sorted({str(row["commit"])[:7] for row in rows}))
    episodes, versions = rows[0]["test"]["episodes"], ", ".join(sorted({row["machine"]["torch"] for row in rows}))
    machines = ", ".join(sorted({row["machine"]["cpu"] for row in rows}))
    lines += [
        "",
        f"{episodes} test episodes a seed; {machines}, threads: {threads}; torch {versions}; commit {commits}.",
    ]
    return "\n".join(lines)


def _target(content: Content, options: dict[str, Any], value: float, minutes: float) -> str:
    percent = content["recipe"]["metric"] == "accuracy"
    if "as_good_as" in options:
        other = score(content, options["as_good_as"])
        if other is None:
            return ""
        reached = value >= other[0] if percent else value <= other[0]
        text = f"as good as {options['as_good_as']}"
    elif "target" in options:
        reached = value >= options["target"] if percent else value <= options["target"]
        text = f"{'≥' if percent else '≤'} {options['target']:g}"
    else:
        return ""
    if "target_minutes" in options:
        text += f" in {options['target_minutes']:g} minutes"
        reached = reached and minutes <= options["target_minutes"]
    return f"{text}: {'reached' if reached else '**missed**'}"


def _margins(content: Content) -> list[str]:
    margin = content["recipe"].get("margin")
    if margin is None:
        return []
    others = {name: found[0] for name in margin["over"] if (found := score(content, name)) is not None}
    ours = {
        name: found[0]
        for name in content["recipe"]["methods"]
        if name not in margin["over"] and (found := score(content, name)) is not None
    }
    if not others or not ours:
        return []
    best, other = max(ours, key=lambda n: ours[n]), max(others, key=lambda n: others[n])
    gain = ours[best] - others[other]
    wanted = margin["points"]
    verdict = "" if wanted is None else f" (target: {wanted:g}, {'reached' if gain >= wanted else '**missed**'})"
    return ["", f"{best} is {gain:+.1f} points over {other}{verdict}."]


def plot(content: Content, path: Path) -> None:
    """Left: validation over the training, mean and range of the seeds. Right: the test."""
    from matplotlib.figure import Figure

    recipe = content["recipe"]
    percent = recipe["metric"] == "accuracy"
    scale = 100.0 if percent else 1.0
    methods = [method for method in recipe["methods"] if rows_of(content, method)]
    if not methods:
        return
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, method in enumerate(methods):
        curves = [row["curve"] for row in rows_of(content, method) if row.get("curve")]
        length = min(map(len, curves), default=0)
        if length:
            steps = [step for step, _ in curves[0][:length]]
            values = [[scale * curve[i][1] for curve in curves] for i in range(length)]
            left.plot(steps, [sum(v) / len(v) for v in values], color=f"C{index}", label=method)
            left.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=f"C{index}", alpha=0.2)
        found = score(content, method)
        if found is not None:
            right.barh(index, found[0], xerr=found[1], color=f"C{index}", height=0.6, capsize=3)
            right.text(sum(found), index, f" {found[0]:.2f}", va="center", fontsize=8)
        target = recipe["methods"][method].get("target")
        if target is not None:
            right.plot([target, target], [index - 0.4, index + 0.4], color="black", ls=":", lw=1.5)
    unit = "accuracy, %" if percent else "mean squared error"
    figure.suptitle(recipe["title"], fontsize=11)
    left.set(xlabel="meta-step", ylabel=f"validation {unit}")
    if not percent:
        left.set_yscale("log")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.set(yticks=range(len(methods)), yticklabels=methods, xlabel=f"test {unit} (dotted: target)")
    right.invert_yaxis()
    right.grid(alpha=0.3, axis="x")
    if percent:
        lowest = min(found[0] for m in methods if (found := score(content, m)) is not None)
        right.set_xlim(left=max(0.0, lowest - 10))
    figure.savefig(path, dpi=120)
