"""What each method reached in each case, over seeds, and on how many tasks the meta-network's loss was lowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metafast.experiments.rapid_adaptation._jobs import meta_job, values_of
from metafast.experiments.rapid_adaptation._methods import META, METHODS
from metafast.experiments.rapid_adaptation._plan import Case, Plan, Row
from metafast.maml._metrics import interval


@dataclass(frozen=True)
class Summary:
    """One method in one case, over seeds.

    Args:
        case: title of the tasks.
        setting: the data set; `target` tells a transfer.
        target: title of the target; None: the data set's own test classes.
        shots: support examples per class.
        method: its name.
        accuracy, half: mean over the test episodes of all seeds, and half of its 95 % interval; shares from 0 to 1.
        by_seed: mean and half interval of each seed.
        course: accuracy and half interval before adaptation and after each step, of the first tasks of each seed; of
            fewer points where only the end was measured.
        losses: query loss likewise.
        loss: of all tasks after the last step.
        steps: of the adaptation.
        rate: chosen on validation tasks; None: not chosen.
        best: accuracy on the first tasks with the rate that is best there, of plain fine-tuning.
        seconds, cpu_seconds, peak_mb: of adapting to one task; None where they were not measured.
        meta_seconds: of a meta-training, mean over seeds; None: not meta-trained.
        lost: tasks whose loss was not finite.
        episodes: test episodes of each seed.
    """

    case: str
    setting: str
    target: str | None
    shots: int
    method: str
    accuracy: float
    half: float
    by_seed: list[list[float]]
    course: list[list[float]]
    losses: list[list[float]]
    loss: list[float]
    steps: int
    rate: float | None
    best: float | None
    seconds: float | None
    cpu_seconds: float | None
    peak_mb: float | None
    meta_seconds: float | None
    lost: int
    episodes: int


@dataclass(frozen=True)
class Share:
    """On how many tasks of a case the meta-network's loss is below others', by the number of steps.

    Args:
        case: title of the tasks.
        target: whether they are of a transfer.
        tasks: how many, of all seeds.
        best: share of tasks with a loss below that of every rate of plain fine-tuning after as many steps, in
            hindsight for each task.
        chosen: below plain fine-tuning with the rate chosen on validation tasks.
        lora: below fine-tuning with LoRA with its chosen rate.
    """

    case: str
    target: bool
    tasks: int
    best: dict[str, float]
    chosen: dict[str, float]
    lora: dict[str, float]


def summaries(plan: Plan, done: Mapping[str, Row], root: Path) -> list[Summary]:
    """A summary per case and method.

    Args:
        plan: the experiment.
        done: the row of every job by its name.
        root: the folder of the records.
    """
    made = []
    for name in plan.names:
        for case in plan.cases(name):
            values = {method: _values(plan, case, method, done, root) for method in METHODS if method != "none"}
            values["none"] = [_before(each) for each in values["finetune"]]
            made += [_summary(plan, case, method, values[method], done) for method in METHODS]
    return made


def shares(plan: Plan, done: Mapping[str, Row], root: Path) -> list[Share]:
    """Comparisons of losses task by task, a share per case."""
    made = []
    for name in plan.names:
        for case in plan.cases(name):
            ours, tuned, lora = (_values(plan, case, method, done, root) for method in ("ours", "finetune", "lora"))
            points = range(1, plan.recipe.steps + 1)
            mine, chosen, low = (torch.cat([each["course_loss"] for each in values]) for values in (ours, tuned, lora))
            best = torch.cat([lowest(each) for each in tuned])
            made.append(
                Share(
                    plan.title(case),
                    case.target is not None,
                    len(mine),
                    *({str(k): below(mine[:, k], other[:, k]) for k in points} for other in (best, chosen, low)),
                )
            )
    return made


def lowest(values: Mapping[str, Tensor]) -> Tensor:
    """The lowest loss of any rate after each step, task by task."""
    found: Tensor = torch.stack([v for key, v in values.items() if key.split("@")[0] == "course_loss"]).amin(0)
    return found


def below(mine: Tensor, other: Tensor) -> float:
    """The share of tasks where mine is lower."""
    return float((mine < other).double().mean())


def _values(plan: Plan, case: Case, method: str, done: Mapping[str, Row], root: Path) -> list[dict[str, Tensor]]:
    return [values_of(root, plan.test(case, method, seed, done)) for seed in range(plan.seeds)]


def _summary(
    plan: Plan, case: Case, method: str, values: Sequence[Mapping[str, Tensor]], done: Mapping[str, Row]
) -> Summary:
    setup = plan.setup(case)
    accuracy, half = _intervals([each["accuracy"] for each in values])[-1]
    job = plan.test(case, "finetune" if method == "none" else method, 0, done)
    known = done[plan.cost(case, done).name]["methods"].get(method, {}) if case.target is None else {}
    keys = [key for key in values[0] if key.startswith("course_accuracy")]
    rates = [float(torch.cat([each[key][:, -1] for each in values]).double().mean()) for key in keys]
    seeds = range(plan.seeds if method in META else 0)
    metas = [done[meta_job(plan.test(case, method, seed, done)).name] for seed in seeds]
    return Summary(
        case=plan.title(case),
        setting=case.setting,
        target=None if case.target is None else setup.targets[case.target].title,
        shots=case.shots,
        method=method,
        accuracy=accuracy,
        half=half,
        by_seed=[_intervals([each["accuracy"]])[-1] for each in values],
        course=_intervals([each["course_accuracy"] for each in values]),
        losses=_intervals([each["course_loss"] for each in values]),
        loss=_intervals([each["loss"] for each in values])[-1],
        steps={"none": 0, "protonet": 0}.get(method, job.inner_steps),
        rate=None if method == "none" else job.rate,
        best=max(rates) if method == "finetune" else None,
        seconds=0.0 if method == "none" and case.target is None else known.get("seconds"),
        cpu_seconds=known.get("cpu_seconds"),
        peak_mb=known.get("peak_mb"),
        meta_seconds=sum(each["seconds"] for each in metas) / len(metas) if metas else None,
        lost=sum(int((~each["loss"][:, -1].isfinite()).sum()) for each in values),
        episodes=len(values[0]["loss"]),
    )


def _before(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first point of a course as all that there is."""
    first = {key: values[f"course_{key}"][:, :1] for key in ("loss", "accuracy")}
    return {**first, **{f"course_{key}": value for key, value in first.items()}}


def _intervals(values: Sequence[Tensor]) -> list[list[float]]:
    """Mean and half interval of each column; of tasks that did not diverge, which are counted elsewhere."""
    table = torch.cat(list(values)).double()
    made = []
    for column in table.T:
        finite = column[column.isfinite()]
        found = interval(finite) if len(finite) > 1 else None
        made.append([math.nan, math.nan] if found is None else [found.mean, found.half])
    return made
