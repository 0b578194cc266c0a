"""One piece of the experiment: a pre-training, a choice of rates, a meta-training, a test, or the clock."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from metafast.experiments._running import Row
from metafast.experiments.rapid_adaptation import _backbones
from metafast.experiments.rapid_adaptation._methods import META, learner
from metafast.experiments.rapid_adaptation._recipes import Recipe, Setup, Target
from metafast.maml.trainer import BEST, load_weights
from metafast.runs import Run

VALUES = "values.safetensors"
NOTE = "found"


@dataclass(frozen=True)
class Job:
    """One piece; equal ones are done once.

    Args:
        kind: "backbone", "rates", "meta", "test" or "cost".
        setting: name of the data set in the recipe.
        recipe: with all sizes.
        method: name in `METHODS`; "" for the backbone and the clock.
        shots: support examples per class.
        seed: of meta-training, and of the test episodes.
        target: number of the target among the data set's; None: its own test classes.
        ways: classes of a task; None: the data set's.
        rate: that was chosen on validation tasks.
        device: "cpu" or "cuda".
    """

    kind: str
    setting: str
    recipe: Recipe
    method: str = ""
    shots: int = 0
    seed: int = 0
    target: int | None = None
    ways: int | None = None
    rate: float | None = None
    device: str = "cpu"

    @property
    def setup(self) -> Setup:
        """Its data set."""
        return self.recipe.setups[self.setting]

    @property
    def goal(self) -> Target | None:
        """The target of a transfer."""
        return None if self.target is None else self.setup.targets[self.target]

    @property
    def classes(self) -> int:
        """Of a task."""
        return self.ways or self.setup.ways

    @property
    def name(self) -> str:
        """Folder name of its record."""
        where = self.setting if self.goal is None else f"{self.setting}-to-{self.goal.data}"
        if self.kind == "backbone":
            return f"backbone-{where}"
        size = f"{self.classes}w{self.shots}s"
        if self.kind in ("rates", "cost"):
            return "-".join(part for part in (self.kind, where, size, self.method) if part)
        return f"{self.kind}-{where}-{size}-{self.method}-s{self.seed}"

    @property
    def steps(self) -> int:
        """What its progress ends at."""
        recipe = self.recipe
        return {
            "backbone": self.setup.pretrain_steps or 1,
            "rates": len(self.rates) * recipe.val_episodes,
            "meta": self.setup.meta_steps,
            "test": recipe.episodes + recipe.hindsight * len(self.others),
            "cost": recipe.repeats,
        }[self.kind]

    @property
    def rates(self) -> tuple[float, ...]:
        """What a rate is chosen from."""
        return {"probe": self.setup.probe_rates, "lora": self.setup.lora_rates}.get(self.method, self.setup.rates)

    @property
    def others(self) -> tuple[float, ...]:
        """Rates of plain fine-tuning that were not chosen, and are tested to see what was possible."""
        return tuple(rate for rate in self.setup.rates if rate != self.rate) if self.method == "finetune" else ()

    @property
    def inner_steps(self) -> int:
        """Steps of its adaptation."""
        return self.recipe.probe_steps if self.method == "probe" else self.recipe.steps

    def config(self) -> Row:
        """For its record."""
        mine = {key: value for key, value in asdict(self).items() if key != "recipe"}
        return {**mine, "recipe": self.recipe.name, "setup": json.loads(json.dumps(asdict(self.setup)))}


def row_of(run: Run) -> Row:
    """What a finished record says."""
    if run.name.startswith("meta-"):
        return _meta_row(run)
    found: Row = next(row["data"] for row in reversed(run.rows()) if row.get("text") == NOTE)
    return found


def values_of(root: Path, job: Job) -> dict[str, Tensor]:
    """What a test measured: "loss" and "accuracy" `[tasks, 1]` at the end, and courses of the first tasks.

    Those are "course_loss" and "course_accuracy" `[tasks, points]`, and "course_loss@rate" of the rates not chosen.
    """
    return load_file(root / job.name / VALUES)


def meta_job(job: Job) -> Job:
    """The meta-training that a test's learner comes from."""
    shots = job.setup.trained_with.get(job.shots, job.shots)
    return Job("meta", job.setting, job.recipe, job.method, shots, job.seed, device=job.device)


def trained(job: Job, root: Path) -> Any:
    """The learner of a test or of the clock, with its meta-trained weights."""
    base = _backbones.backbone(job.setup, job.setting, root).to(job.device)
    # what was meta-trained with a fixed head keeps it, and masks what a task does not have
    ways = job.setup.ways if job.method in ("maml", "anil") else job.classes
    made = learner(job.method, job.setup, base, ways, job.inner_steps, rate=job.rate, seed=job.seed).to(job.device)
    if job.method in META:
        load_weights(made, root / meta_job(job).name / BEST)
    return made


def _meta_row(run: Run) -> Row:
    courses = {name: run.curve(name) for name in ("val_accuracy", "val_loss", "loss")}
    return {
        "seconds": run.rows()[-1]["time"],
        "val_accuracy": float(courses["val_accuracy"].values.max()),
        **{
            f"{name}_course": [[int(step), float(value)] for step, value in zip(*curve, strict=True)]
            for name, curve in courses.items()
        },
    }
