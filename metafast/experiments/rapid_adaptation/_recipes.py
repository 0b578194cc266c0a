"""What is adapted to what: the settings of each data set at three sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LORA_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # the second factor starts at 0, so that the first gradients are small


@dataclass(frozen=True)
class Ours:
    """The meta-network of one data set; chosen on validation tasks.

    Args:
        adapt: what is adapted, as `MetaFineTuner` takes it.
        net: the meta-network, likewise.
        options: of `MetaFineTuner`, such as `inner_lr` and `meta_lr`; its defaults are the plan's.
    """

    adapt: str | Mapping[str, str]
    net: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Initial:
    """MAML and ANIL, which learn an initialization from the pre-trained weights on, at rates of validation tasks.

    Args:
        inner_lr: rate of MAML's inner steps.
        head_lr: rate of ANIL's.
        meta_lr: Adam's rate.
        order: of the meta-gradient.
    """

    inner_lr: float
    head_lr: float
    meta_lr: float = 1e-3
    order: int = 2


@dataclass(frozen=True)
class Target:
    """A data set that is met after meta-training only.

    Args:
        title: for people.
        data: its name.
        ways: classes of a task.
        part: "test", the test classes of a few-shot data set; "rows", all classes of its test rows.
    """

    title: str
    data: str
    ways: int
    part: str = "rows"


@dataclass(frozen=True)
class Setup:
    """One data set to meta-train and to test on, its backbone, and where the meta-networks are transferred to.

    Args:
        title: for people.
        data: name of the few-shot data set.
        backbone: of `metafast.adapt.pretrain`; or a model of transformers, by name or folder.
        pretrain_steps: of the own backbone; None: its default.
        ways: classes of a task.
        shots: support examples per class, one setting each.
        queries: query examples per class of a test task.
        rates: of plain fine-tuning, of which one is chosen on validation tasks.
        probe_rates: of the linear probe, likewise.
        ours: the meta-network.
        initial: MAML and ANIL.
        meta_steps: of each meta-training.
        tasks: of a meta-batch.
        meta_queries: query examples per class of a meta-training task.
        trained_with: shots of a test to shots of the meta-training; what is missing is trained as it is tested.
        targets: of the transfer.
        target_shots: of them.
        at_once: test tasks adapted together.
        flip: whether training pictures are flipped and shifted.
        limit: largest share of the backbone's numbers that the meta-network may have.
        objective: of its pre-training: "classes", or "episodes", which is a meta-training of its own.
        lora_rates: of fine-tuning with LoRA, as `rates`.
    """

    title: str
    data: str
    backbone: str
    pretrain_steps: int | None
    ways: int
    shots: tuple[int, ...]
    queries: int
    rates: tuple[float, ...]
    probe_rates: tuple[float, ...]
    ours: Ours
    initial: Initial
    meta_steps: int
    tasks: int
    meta_queries: int
    trained_with: Mapping[int, int] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    target_shots: tuple[int, ...] = (1,)
    at_once: int = 10
    flip: bool = False
    limit: float = 0.05
    objective: str = "classes"
    lora_rates: tuple[float, ...] = LORA_RATES


@dataclass(frozen=True)
class Recipe:
    """All settings at one size.

    Args:
        name: of the recipe.
        seeds: meta-trainings of each method, each tested on other episodes.
        steps: of the adaptation.
        probe_steps: of the linear probe.
        episodes: test episodes of a seed.
        hindsight: of these, how many are adapted to with every rate.
        val_episodes: to choose a rate on.
        repeats: rounds of the clock.
        setups: by name.
        about: what a reader should know about its size.
    """

    name: str
    seeds: int
    steps: int
    probe_steps: int
    episodes: int
    hindsight: int
    val_episodes: int
    repeats: int
    setups: Mapping[str, Setup]
    about: str


RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
PROBE_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
# Chosen on validation tasks: the last layers alone, so that what comes before runs once for all steps.
FAST = {"inner_lr": 0.01, "meta_lr": 2e-3}
SHORT = {
    "omniglot": Ours(
        {"features.7": "film", "features.10": "film"}, "init+alfa+mend", {**FAST, "hidden": 6, "dropout": 0.0}
    ),
    "cifar": Ours(
        {"features.9": "film", "features.13": "film"}, "init+alfa+mend", {**FAST, "hidden": 3, "dropout": 0.0}
    ),
    "fewrel": Ours({"convolution": "film"}, "init+alfa+mend", {**FAST, "meta_lr": 1e-3}),
}
# The plan's networks, convolutions for gradients of pictures and a transformer for those of text, and its
# meta-training: 32 tasks a step, 10,000 steps, inner rate 0.01, meta rate 1e-4, dropout 0.5, L2 1e-4.
PLANNED = {
    "omniglot": Ours(SHORT["omniglot"].adapt, "init+alfa+conv", {"hidden": 6}),
    "cifar": Ours(SHORT["cifar"].adapt, "init+alfa+conv", {"hidden": 3}),
    "fewrel": Ours(SHORT["fewrel"].adapt, "init+alfa+transformer"),
}

FULL = Recipe(
    name="full",
    seeds=3,
    steps=5,
    probe_steps=100,
    episodes=600,
    hindsight=600,
    val_episodes=200,
    repeats=9,
    setups={
        "omniglot": Setup(
            "Omniglot", "omniglot_alphabets", "omniglot", None, 20, (1, 5), 5, RATES, PROBE_RATES,
            PLANNED["omniglot"], Initial(0.01, 0.1), 10_000, 32, 5, targets=(Target("MNIST", "mnist", 5),),
            target_shots=(1, 5),
        ),
        "cifar": Setup(
            "CIFAR-FS", "cifar_fs", "cifar", None, 5, (1, 5), 15, RATES, PROBE_RATES, PLANNED["cifar"],
            Initial(0.01, 0.03), 10_000, 32, 15, flip=True, targets=(
                Target("Fashion-MNIST", "fashion_mnist", 5), Target("CIFAR-10", "cifar10", 5),
            ), target_shots=(1, 5),
        ),
        "fewrel": Setup(
            "FewRel", "few_rel_words", "text", None, 5, (1, 5), 15, RATES, PROBE_RATES,
            PLANNED["fewrel"], Initial(0.003, 0.003, order=1), 10_000, 32, 5, targets=(
                Target("CLINC intents", "clinc_words", 5, "test"),
            ), target_shots=(1, 5), limit=0.01,
        ),
    },
    about="The plan's sizes: 32 tasks a step, 10,000 meta-steps, three seeds. Days of a CPU; give it a GPU.",
)  # fmt: skip

REDUCED = replace(
    FULL,
    name="reduced",
    episodes=200,
    hindsight=40,
    val_episodes=60,
    repeats=5,
    setups={
        "omniglot": replace(
            FULL.setups["omniglot"], queries=2, ours=SHORT["omniglot"], meta_steps=300, tasks=4, meta_queries=2,
            trained_with={5: 1}, target_shots=(1,),
        ),
        "cifar": replace(
            FULL.setups["cifar"], pretrain_steps=1000, queries=5, ours=SHORT["cifar"], meta_steps=200,
            tasks=4, meta_queries=5, trained_with={5: 1}, target_shots=(1,),
        ),
        "fewrel": replace(
            FULL.setups["fewrel"], shots=(1,), pretrain_steps=500, queries=5, ours=SHORT["fewrel"], meta_steps=120,
            tasks=4, meta_queries=5, trained_with={5: 1}, target_shots=(1,),
        ),
    },
    about="Three quarters of an hour on two cores: small backbones pre-trained here, short meta-trainings with one "
    "example per class, 200 test episodes of each of three seeds, FewRel with one example only. Methods compare "
    "with each other, not with published tables.",
)  # fmt: skip

SMOKE = replace(
    REDUCED,
    name="smoke",
    seeds=1,
    probe_steps=20,
    episodes=5,
    hindsight=5,
    val_episodes=5,
    repeats=3,
    setups={
        name: replace(setup, shots=(1,), pretrain_steps=30, meta_steps=3, targets=setup.targets[:1])
        for name, setup in REDUCED.setups.items()
    },
    about="A few steps of everything, to see that it runs: its numbers say nothing.",
)

RECIPES = {recipe.name: recipe for recipe in (SMOKE, REDUCED, FULL)}
