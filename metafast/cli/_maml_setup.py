"""What defines a meta-training: the options, their defaults by data set, and the objects they stand for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from metafast import models
from metafast.data import TaskBatch, episodes
from metafast.maml import ALGORITHMS, MetaLearner
from metafast.maml.baselines import ProtoNet

TEST_SEED = 1_000_003  # test and validation episodes are the same for every training seed


@dataclass(frozen=True)
class Preset:
    """Defaults of a data set, near those of the papers."""

    tasks: int
    inner_lr: float
    inner_steps: int
    test_steps: int
    meta_lr: float


IMAGES = Preset(tasks=8, inner_lr=0.05, inner_steps=5, test_steps=10, meta_lr=1e-3)
PRESETS = {
    "omniglot": Preset(tasks=32, inner_lr=0.4, inner_steps=1, test_steps=3, meta_lr=1e-3),
    "omniglot_alphabets": Preset(tasks=32, inner_lr=0.4, inner_steps=1, test_steps=3, meta_lr=1e-3),
    "sinusoid": Preset(tasks=25, inner_lr=0.01, inner_steps=1, test_steps=10, meta_lr=1e-3),
    "cifar_fs": IMAGES,
    "few_rel_vectors": Preset(tasks=8, inner_lr=0.1, inner_steps=5, test_steps=10, meta_lr=1e-3),
    "few_rel": Preset(tasks=8, inner_lr=0.1, inner_steps=5, test_steps=10, meta_lr=1e-3),
    "clinc_oos": Preset(tasks=8, inner_lr=0.1, inner_steps=5, test_steps=10, meta_lr=1e-3),
}
REGRESSIONS = ("sinusoid", "harmonic", "step")


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on."""

    dataset: str
    ways: int
    shots: int
    queries: int
    tasks: int
    algorithm: str
    model: str
    inner_lr: float
    inner_steps: int
    test_steps: int
    order: int
    meta_lr: float
    iterations: int
    cosine: bool
    clip: float | None
    seed: int
    engine: str
    device: str

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Settings with the data set's defaults where None was given."""
        preset = PRESETS.get(given["dataset"], IMAGES)
        defaults = asdict(preset)
        if given["algorithm"] in ("mamlpp", "alfa") and given["inner_steps"] is None:
            defaults["inner_steps"] = max(5, preset.inner_steps)  # their rates are those of steps
        if given["algorithm"] == "mamlpp":
            defaults["test_steps"] = given["inner_steps"] or defaults["inner_steps"]
        return cls(
            **{key: defaults[key] if value is None and key in defaults else value for key, value in given.items()}
        )

    @classmethod
    def stored(cls, config: dict[str, Any]) -> Settings:
        """The settings in a run's configuration."""
        if "settings" not in config:
            raise ValueError("run must be one of `metafast maml train`; this record has no settings")
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config["settings"].items() if key in names})

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    @property
    def regression(self) -> bool:
        """Whether targets are numbers."""
        return self.dataset in REGRESSIONS

    @property
    def title(self) -> str:
        """For people."""
        what = f"{self.shots}-shot" if self.regression else f"{self.ways}-way {self.shots}-shot"
        return f"{self.dataset}, {what}, {self.algorithm}"


def tasks_of(settings: Settings, split: str, *, rank: int = 0, world_size: int = 1, **changes: Any) -> Any:
    """Episodes of a split; those of validation and test do not depend on the training's seed."""
    options: dict[str, Any] = {
        "split": split,
        "shots": settings.shots,
        "queries": settings.queries,
        "tasks": settings.tasks if split == "train" else min(50, max(settings.tasks, 10)),
        "seed": settings.seed if split == "train" else TEST_SEED,
        "rank": rank,
        "world_size": world_size,
    }
    if not settings.regression:
        options["ways"] = settings.ways
    return episodes(settings.dataset, **{**options, **changes})


def check_device(name: str) -> None:
    """Says so where a device is not there, before anything is read or trained.

    Raises:
        ValueError: no such device.
    """
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not there: torch sees no GPU; use cpu, and see `metafast env`")


def make_model(settings: Settings, sample: TaskBatch) -> nn.Module:
    """The model named, or the usual one, for inputs like those of `sample`."""
    kind, x = settings.model, sample.support_x
    shape = tuple(x.shape[2:])
    tokens, vectors = x.dtype is torch.int64, len(shape) == 3 and shape[2] == 1
    pictures = len(shape) == 3 and not vectors
    if kind == "auto":
        kind = "text" if tokens or vectors else "mlp" if settings.regression else "conv4" if pictures else "fc"
    wrong = {
        "conv4": not pictures,
        "resnet12": not pictures,
        "text": not (tokens or vectors),
        "mlp": not settings.regression,
    }
    if wrong.get(kind, tokens or settings.regression):
        raise ValueError(f"model {kind!r} does not fit {settings.dataset}, whose examples are {x.dtype} {list(shape)}")
    if kind == "conv4":
        if shape[0] == 1 and shape[1] <= 28:
            return models.Conv4(shape[0], settings.ways, shape[1], channels=64, seed=settings.seed)
        return models.Conv4(shape[0], settings.ways, shape[1], channels=32, downsample="max_pool", seed=settings.seed)
    if kind == "resnet12":
        return models.ResNet12(shape[0], settings.ways, seed=settings.seed)
    if kind == "text" and vectors:
        return models.SentenceCNN(shape[0], settings.ways, length=shape[1], seed=settings.seed)
    if kind == "text":
        from metafast.data._few_shot import BUCKETS

        if settings.dataset.endswith("_words"):
            return models.TextCNN(BUCKETS, settings.ways, seed=settings.seed)
        return models.TextMLP(BUCKETS, settings.ways, seed=settings.seed)
    if kind == "mlp":
        return models.SinusoidMLP(seed=settings.seed)
    return models.OmniglotFC(settings.ways, in_features=x[0, 0].numel(), seed=settings.seed)


def make_learner(settings: Settings, model: nn.Module) -> MetaLearner:
    """The algorithm with the settings' rates; tasks that diverge are dropped and counted."""
    loss = "mse" if settings.regression else "cross_entropy"
    options: dict[str, Any] = {"engine": settings.engine, "on_nan": "drop", "seed": settings.seed}
    if settings.algorithm == "protonet":
        return ProtoNet(model, **options).to(settings.device)
    options["loss"] = loss
    if settings.algorithm in ("maml", "anil", "boil", "metasgd", "mamlpp", "alfa", "protomaml"):
        options["order"] = settings.order
    kind = ALGORITHMS[settings.algorithm]
    return kind(model, settings.inner_lr, settings.inner_steps, **options).to(settings.device)
