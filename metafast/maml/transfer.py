"""Transfer: an initialization learned on some data sets, chosen on others, and tested on data sets never seen.

A frozen backbone turns pictures into feature maps; a network of four convolutions on the maps is what is meta-learned.
It is fine-tuned on tasks of the test sets from three starts: random, supervised on the training sets, meta-learned.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metafast.data import ClassSet, TaskBatch
from metafast.maml._maml import MAML
from metafast.maml._transfer_backbone import hub_backbone, own_backbone
from metafast.maml._transfer_data import RECIPES, Recipe, Source, at_hand, featured, merged, pictures
from metafast.maml._transfer_test import TEST_SEED, episodes_of, fine_tuned, thresholds
from metafast.maml.baselines import choose_rate, pretrain
from metafast.maml.trainer import Trainer
from metafast.models import Conv4
from metafast.runs import versions
from metafast.runs._checkpoint import replace_file

STARTS = {
    "random": "random",
    "supervised": "supervised",
    "meta": "meta-learned",
}


@dataclass(frozen=True)
class Options:
    """The experiment's settings; the defaults are those of its description.

    Args:
        recipe: "hub" (photo sets by name), "local" (what METAFAST_DATA holds), or a `Recipe`.
        backbone: a model of transformers, "own" (pre-trained here), or "auto": the recipe's.
        iterations: meta-steps.
        ways: classes of a task.
        shots: support examples of a class.
        queries: query examples of a class.
        tasks: of a meta-batch.
        meta_lr: Adam's rate on the meta-parameters.
        inner_lr: rate of fine-tuning.
        steps: of fine-tuning.
        course: steps that the curves of the test go on to.
        pretrain_steps: supervised steps, of the own backbone and of the supervised start.
        episodes: test episodes of each data set.
        val_episodes: of each validation.
        threshold: accuracy to reach; None: 0.9 times the best after `steps`.
        limit: most pictures of a class.
        seed: of everything.
        device: "cpu" or "cuda".
    """

    recipe: str = "local"
    backbone: str = "auto"
    iterations: int = 1000
    ways: int = 5
    shots: int = 5
    queries: int = 15
    tasks: int = 4
    meta_lr: float = 0.001
    inner_lr: float = 0.01
    steps: int = 10
    course: int = 50
    pretrain_steps: int = 2000
    episodes: int = 600
    val_episodes: int = 100
    threshold: float | None = None
    limit: int = 100
    seed: int = 0
    device: str = "cpu"


@dataclass
class Phase:
    """What a part of the experiment cost."""

    name: str
    seconds: float


@dataclass
class Report:
    """The results, as written to results.json.

    Args:
        data: titles of the data sets to train, choose and test on, and how many classes each has.
        backbone: which one, and whether it was pre-trained here.
        rows: a row per start, rate and test set: accuracy and F1 with intervals, steps and seconds to the threshold,
            and the whole course.
        phases: what each part cost, in seconds.
        device: what it ran on; `device_hours` counts each core or card.
    """

    options: dict[str, Any]
    data: dict[str, list[str]]
    backbone: str
    device: str
    devices: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.devices * sum(phase.seconds for phase in self.phases) / 3600

    def plain(self) -> dict[str, Any]:
        """For results.json."""
        return {**asdict(self), "device_hours": round(self.device_hours, 4), "versions": versions()}


def run(
    options: Options,
    output: Path,
    *,
    recipe: Recipe | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> Report:
    """The whole experiment; what a part leaves in `output` is used again with `resume=True`.

    Args:
        options: see `Options`.
        output: folder of the record, the weights and results.json.
        recipe: data sets of your own, in place of the named recipe.
        resume: go on with an interrupted experiment of the same options.
        tell: called with a line of text now and then.
        progress: show the bar of the meta-training.

    Returns:
        The report.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) a data set of the recipe is not at hand.
        ValueError: options that do not fit each other, or another experiment in `output` with `resume=True`.
    """
    recipe = RECIPES[options.recipe] if recipe is None else recipe
    name = recipe.backbone if options.backbone == "auto" else options.backbone
    output.mkdir(parents=True, exist_ok=True)
    _same_options(options, output, resume)
    clock = _Clock(output, resume)

    with clock("reading the data"):
        images = {
            part: [pictures(source, recipe.size, options.limit) for source in getattr(recipe, part)]
            for part in ("train", "val", "test")
        }
    titles = {
        part: [
            f"{source.title} ({one.classes} classes)" for source, one in zip(getattr(recipe, part), sets, strict=True)
        ]
        for part, sets in images.items()
    }
    for part, lines in titles.items():
        tell(f"{part}: {', '.join(lines)}")
    with clock("pre-training the backbone"):
        extract = _backbone(name, options, images["train"], output, tell)
    with clock("features"):
        maps = {part: [featured(one, extract) for one in sets] for part, sets in images.items()}
    shape = maps["train"][0].examples.shape[1:]
    tell(f"backbone: {name}; features {list(shape)}")
    del images

    train, val = _Mixed(maps["train"], options, options.seed), _Mixed(maps["val"], options, TEST_SEED)
    fresh = Conv4(shape[0], options.ways, shape[1], channels=64, seed=options.seed).to(options.device)
    meta = copy.deepcopy(fresh)
    with clock("meta-training"):
        _meta_train(meta, train, val, options, output, resume, progress)
    with clock("supervised training"):
        supervised = _supervised(fresh, maps["train"], options, output)

    cuda = options.device.startswith("cuda")
    report = Report(
        options=asdict(options),
        data=titles,
        backbone=f"{name}, frozen" + (f", pre-trained here for {options.pretrain_steps} steps" * (name == "own")),
        device=torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()} CPU",
        devices=1 if cuda else torch.get_num_threads(),
    )
    starts = {"random": fresh, "supervised": supervised, "meta": meta}
    with clock("tests"):
        for start, model in starts.items():
            for rate in _rates(model, val, options):
                for source, one in zip(recipe.test, maps["test"], strict=True):
                    row = fine_tuned(model, one, rate, options)
                    report.rows.append({"start": start, "data": source.title, "inner_lr": rate, **row})
                    tell(
                        f"{STARTS[start]}, rate {rate:g}, {source.title}: "
                        f"accuracy {100 * row['accuracy'][0]:.1f} ± {100 * row['accuracy'][1]:.1f} %"
                    )
    thresholds(report.rows, options.threshold)
    report.phases = clock.phases
    write(report, output)
    return report


def write(report: Report, output: Path) -> Path:
    """results.json, whole or not at all."""
    text = json.dumps(report.plain(), indent=2) + "\n"
    replace_file(output / "results.json", lambda path: path.write_text(text, encoding="utf-8"))
    return output / "results.json"


# ---- parts


class _Mixed:
    """Episodes of several data sets, one after the other; the position is that of the sum."""

    def __init__(self, sets: list[ClassSet], options: Options, seed: int) -> None:
        self._parts = [episodes_of(one, options, seed) for one in sets]
        self._batch = 0

    def __iter__(self) -> Iterator[TaskBatch]:
        while True:
            number = self._batch
            self._batch += 1
            yield self._parts[number % len(self._parts)][number // len(self._parts)]

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batch = int(state["batch"])


def _backbone(
    name: str, options: Options, train: list[ClassSet], output: Path, tell: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    if name != "own":
        return hub_backbone(name, options.device)
    inputs, labels = merged(train)
    tell(f"pre-training a backbone on {len(labels)} pictures of {int(labels.max()) + 1} classes")
    model = own_backbone(
        inputs, labels, steps=options.pretrain_steps, seed=options.seed, file=output / "backbone.safetensors"
    ).to(options.device)

    @torch.no_grad()
    def extract(x: Tensor) -> Tensor:
        maps: Tensor = model(x.to(options.device))
        return maps

    return extract


def _meta_train(
    model: nn.Module, train: Any, val: Any, options: Options, output: Path, resume: bool, progress: bool
) -> None:
    maml = MAML(model, options.inner_lr, options.steps, on_nan="drop", seed=options.seed)
    trainer = Trainer(
        maml,
        train,
        options.iterations,
        val=val,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=options.meta_lr),
        clip=10.0,
        val_every=max(1, options.iterations // 10),
        val_episodes=options.val_episodes,
        output=output,
        name="meta-training",
        seed=options.seed,
        config=asdict(options),
        tags=["transfer"],
        resume=resume,
        progress=progress,
    )
    trainer.fit()


def _supervised(fresh: nn.Module, train: list[ClassSet], options: Options, output: Path) -> nn.Module:
    file = output / "supervised.safetensors"
    if file.is_file():
        model = copy.deepcopy(fresh)
        model.load_state_dict(load_file(file))
        return model
    inputs, labels = merged(train)
    model = pretrain(
        fresh, inputs.to(options.device), labels.to(options.device), steps=options.pretrain_steps, seed=options.seed
    )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(file, lambda path: save_file(state, path))
    return model


def _rates(model: nn.Module, val: Any, options: Options) -> list[float]:
    """The experiment's rate, and the one that does best on the validation sets, so that no start is held back by it."""

    def make(rate: float) -> MAML:
        return MAML(copy.deepcopy(model), rate, options.steps, on_nan="drop")

    _, best = choose_rate(make, val, n=options.val_episodes)
    return list(dict.fromkeys([options.inner_lr, best]))


class _Clock:
    """Seconds of each part; those of parts done before an interruption come from the file."""

    def __init__(self, output: Path, resume: bool) -> None:
        self._file = output / "phases.json"
        self._before: dict[str, float] = {}
        if resume and self._file.is_file():
            self._before = json.loads(self._file.read_text(encoding="utf-8"))
        self.phases: list[Phase] = []

    def __call__(self, name: str) -> _Clock:
        self._name, self._began = name, time.perf_counter()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._began + self._before.get(self._name, 0.0)
        self.phases.append(Phase(self._name, round(seconds, 3)))
        known = {**self._before, **{phase.name: phase.seconds for phase in self.phases}}
        text = json.dumps(known)
        replace_file(self._file, lambda path: path.write_text(text, encoding="utf-8"))


def _same_options(options: Options, output: Path, resume: bool) -> None:
    file = output / "options.json"
    text = json.dumps(asdict(options))
    if resume:
        if not file.is_file():
            raise ValueError(f"nothing to go on with in {output}; run without --resume first")
        before = json.loads(file.read_text(encoding="utf-8"))
        wrong = [f"{k} {before.get(k)!r}, not {v!r}" for k, v in asdict(options).items() if before.get(k) != v]
        if wrong:
            raise ValueError(f"the experiment in {output} has {', '.join(wrong)}; give the same options")
        return
    if file.is_file():
        for name in ("backbone.safetensors", "supervised.safetensors", "phases.json", "results.json"):
            (output / name).unlink(missing_ok=True)
        old = output / "meta-training"
        if old.exists():
            number = 1
            while (output / f"meta-training-before-{number:03d}").exists():
                number += 1
            os.replace(old, output / f"meta-training-before-{number:03d}")
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


__all__ = ["RECIPES", "STARTS", "Options", "Phase", "Recipe", "Report", "Source", "at_hand", "run", "write"]
