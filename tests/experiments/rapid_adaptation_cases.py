"""A small recipe of rapid adaptation, on classes and backbones made here."""

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from metafast.adapt import freeze
from metafast.data import ClassSet, ClassSplits
from metafast.experiments.rapid_adaptation import Initial, Ours, Recipe, Setup, Target
from metafast.models import Conv4

SIZE, WORDS = 16, 8
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
OURS = Ours("lora:r=2", "alfa", {"inner_lr": 0.1, "meta_lr": 1e-2})
TINY = Recipe(
    name="tiny",
    seeds=2,
    steps=2,
    probe_steps=4,
    episodes=6,
    hindsight=4,
    val_episodes=3,
    repeats=2,
    setups={
        "omniglot": Setup(
            "Letters", "letters", "omniglot", 2, 3, (1,), 2, RATES, RATES, OURS, Initial(0.1, 0.1), 2, 2, 2,
            targets=(Target("Digits", "digits", 2),), at_once=3,
        ),
        "fewrel": Setup(
            "Relations", "relations", "text", 2, 2, (1,), 2, RATES, RATES, OURS, Initial(0.1, 0.1, order=1), 2, 2, 2,
            trained_with={2: 1}, targets=(Target("Intents", "intents", 2, "test"),), at_once=3, limit=0.01,
        ),
    },
    about="a few steps.",
)  # fmt: skip


def pictures(classes, seed, name, size=SIZE):
    random = np.random.default_rng(seed)
    shapes = random.integers(0, 200, (classes, 1, size, size))
    noise = random.integers(0, 56, (classes, 6, 1, size, size))
    examples = (shapes[:, None] + noise).reshape(-1, 1, size, size).astype(np.uint8)
    return ClassSet(examples, np.arange(classes).repeat(6), tuple(f"{name} {i}" for i in range(classes)), name=name)


def sentences(classes, seed, name):
    random = np.random.default_rng(seed)
    words = random.integers(1, 40, (classes * 6, WORDS)).astype(np.int32)
    words[:, 0] = 40 + np.arange(classes).repeat(6) % 9
    words[:, 5:] = 0
    return ClassSet(words, np.arange(classes).repeat(6), tuple(f"{name} {i}" for i in range(classes)), name=name)


def few_shot(name, path=None):
    make = pictures if name == "letters" else sentences
    return ClassSplits(*(make(4, part, f"{name} {part}") for part in range(3)))


def all_classes(name, split=None, path=None):
    assert (name, split) == ("digits", "test")
    return pictures(3, 9, name, size=20)


class Reader(nn.Module):
    """The mean of a sentence's words, as a layer sees them."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.words = nn.Embedding(50, 8, padding_idx=0)
            self.query = nn.Linear(8, 8)

    def forward(self, tokens):
        there = (tokens != 0).unsqueeze(2).float()
        return (torch.relu(self.query(self.words(tokens))) * there).sum(1) / there.sum(1)


def model(name):
    if name == "omniglot":
        return freeze(Conv4(1, 2, SIZE, channels=4, track_running_stats=True, seed=0))
    return freeze(Reader(), head=False)


def use(patch):
    """Those classes and backbones in place of the real ones."""

    def pretrain(name, output, *, steps, seed, progress=None, **options):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.zeros(steps)}, output)
        made = pretrained(name, output)
        made.about = {"title": f"a tiny {name}", "objective": "classes"}
        return made

    def pretrained(name, path):
        assert path.is_file()
        return model(name)

    where = "metafast.experiments.rapid_adaptation"
    patch.setattr(f"{where}._tasks.few_shot", few_shot)
    patch.setattr(f"{where}._tasks.all_classes", all_classes)
    patch.setattr(f"{where}._backbones.pretrain", pretrain)
    patch.setattr(f"{where}._backbones.pretrained", pretrained)
    patch.setattr(f"{where}._backbones._loaded", {})
