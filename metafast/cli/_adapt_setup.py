"""What defines a meta-training of `metafast adapt`: the options, and the objects they stand for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import typer

from metafast.adapt import Backbone, MetaFineTuner, freeze, pretrained
from metafast.adapt._choice import Adapt
from metafast.cli._maml_setup import TEST_SEED, check_device
from metafast.data import episodes
from metafast.runs import Run

META = "meta.safetensors"


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on."""

    backbone: str
    dataset: str
    ways: int
    shots: int
    queries: int
    tasks: int
    adapt: Adapt
    net: str | None
    steps: int
    inner_lr: float
    order: int
    meta_lr: float
    dropout: float
    weight_decay: float
    iterations: int
    seed: int
    device: str
    length: int | None = None
    size: int | None = None
    chunk: int | None = None
    regression: bool = False

    @classmethod
    def stored(cls, config: dict[str, Any]) -> Settings:
        """The settings in a run's configuration."""
        if "backbone" not in config.get("settings", {}):
            raise ValueError("run must be one of `metafast adapt train`; this record has no such settings")
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config["settings"].items() if key in names})

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.dataset}, {self.ways}-way {self.shots}-shot, {self.net or 'no network'} on {self.adapt_text}"

    @property
    def adapt_text(self) -> str:
        """What adapts, as the command line takes it."""
        if isinstance(self.adapt, str):
            return self.adapt
        return " ".join(f"{pattern}={kind}" for pattern, kind in self.adapt.items())


def parse_adapt(given: list[str]) -> Adapt:
    """`["lora:r=4"]` or `["*.query=lora:r=4", "*LayerNorm=norm"]`, as `MetaFineTuner` takes it."""
    if len(given) == 1 and "=" not in given[0].partition(":")[0]:
        return given[0]
    pairs = [part.partition("=") for part in given]
    wrong = [text for text, (_, mark, kind) in zip(given, pairs, strict=True) if not mark or not kind]
    if wrong:
        raise ValueError(f"--adapt must be one kind, or pattern=kind each time, got {wrong[0]!r} among {len(given)}")
    return {pattern: kind for pattern, _, kind in pairs}


def load_backbone(name: str) -> tuple[Backbone, Any]:
    """The frozen model, and its tokenizer where it has one.

    Args:
        name: a file of `metafast adapt pretrain`, or its name where it is in the cache folder; or a model of
            transformers: a folder or its name on the hub.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a damaged file, or a model that cannot be frozen.
    """
    if name.endswith(".safetensors") or name in ("omniglot", "cifar", "text"):
        return pretrained(name), None
    from metafast.cli._checks import require

    require("--backbone with a model of transformers", "hf", transformers="transformers")
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name) if model.main_input_name == "input_ids" else None
    return freeze(model, tokenizer=tokenizer), tokenizer


def tasks_of(settings: Settings, tokenizer: Any, split: str, **changes: Any) -> Any:
    """Episodes of a split; those of validation and test do not depend on the training's seed."""
    options: dict[str, Any] = {
        "split": split,
        "ways": settings.ways,
        "shots": settings.shots,
        "queries": settings.queries,
        "tasks": settings.tasks if split == "train" else min(50, max(settings.tasks, 10)),
        "seed": settings.seed if split == "train" else TEST_SEED,
    }
    if tokenizer is not None:
        options["tokenizer"] = tokenizer
    options |= {name: getattr(settings, name) for name in ("length", "size") if getattr(settings, name) is not None}
    return episodes(settings.dataset, **{**options, **changes})


def make_learner(settings: Settings, base: Backbone, net: str | None, **changes: Any) -> MetaFineTuner:
    """The fine-tuner with the settings' sizes; tasks that diverge are dropped and counted."""
    options: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("steps", "inner_lr", "order", "meta_lr", "dropout", "weight_decay", "chunk", "seed")
    }
    return MetaFineTuner(base, settings.adapt, net, **{**options, "on_nan": "drop", **changes})


def restore(run: Path) -> tuple[MetaFineTuner, Settings, Any]:
    """The learner of a run with its best weights, its settings, and its tokenizer."""
    try:
        settings = Settings.stored(Run.open(run).config)
        if not (run / META).is_file():
            raise ValueError(f"{run} has no {META}: its training is not finished; go on with it by --resume")
        check_device(settings.device)
        base, tokenizer = load_backbone(settings.backbone)
        learner = MetaFineTuner.load(run / META, base).to(settings.device)
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="RUN") from None
    return learner, settings, tokenizer
