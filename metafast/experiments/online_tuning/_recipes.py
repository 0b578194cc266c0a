"""What is trained with what: the settings of each experiment at three sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Values = dict[str, float]
FEEDBACK = ("batch", "epoch")


@dataclass(frozen=True)
class Range:
    """What a search draws a hyperparameter from.

    Args:
        low: lowest value.
        high: highest value.
        scale: "log" (uniform in the logarithm), "log1m" (in the logarithm of one minus the value) or "linear".
    """

    low: float
    high: float
    scale: str = "log"


@dataclass(frozen=True)
class Tuning:
    """How the adaptive runs are tuned; chosen on validation data.

    Args:
        method: "forward", `metafast.tune.Forward` without second derivatives over the steps since the last update;
            "decayed", which forgets a tenth per step; "carried", which forgets 3 % but keeps the past over updates;
            "one_step" or "sama".
        every: training steps between two updates; None: an epoch.
        hyper_lr: rate of the hyper-optimizer.
        val_batches: validation batches of an update, as large as those of training; None: all of them.
        memory: betas of Adam as the hyper-optimizer.
        start: training steps before the first ones that count.
    """

    method: str
    every: int | None
    hyper_lr: float
    val_batches: int | None = 1
    memory: tuple[float, float] = (0.9, 0.999)
    start: int = 0


@dataclass(frozen=True)
class Setup:
    """One experiment.

    Args:
        data: name of the data set.
        train, val, test: examples of each part; None: all (of validation: a tenth of what there is to train on).
        batch_size: of training.
        epochs: passes over the training part.
        model: sizes, as the model takes them.
        static: the hyperparameters of the static run, where the adaptive ones start.
        space: what the searches may choose.
        grid: values of the grid; the others are as in `static`.
        tuning: by kind of feedback, "batch" and "epoch".
        warmup: steps until the learning rate is reached.
    """

    data: str
    train: int | None
    val: int | None
    test: int | None
    batch_size: int
    epochs: int
    model: dict[str, Any]
    static: Values
    space: dict[str, Range]
    grid: dict[str, tuple[float, ...]]
    tuning: dict[str, Tuning]
    warmup: int = 0


@dataclass(frozen=True)
class Recipe:
    """All experiments at one size.

    Args:
        name: of the recipe.
        seeds: trainings of the static and the adaptive runs, and of what a search has chosen.
        trials: of the random search.
        setups: by name of the experiment.
        about: what a reader should know about its size.
    """

    name: str
    seeds: int
    trials: int
    setups: dict[str, Setup]
    about: str


SGD_SPACE = {"lr": Range(1e-4, 1.0), "momentum": Range(0.5, 0.99, "log1m"), "weight_decay": Range(1e-6, 1e-2)}
LSTM_SPACE = {"lr": Range(1e-4, 1e-1), "dropout": Range(0.0, 0.8, "linear")}
# the first places of each list, and then around them, are what a grid of few cells has
SGD_GRID = {"lr": (1e-3, 1e-2, 1e-4, 1e-1, 1e-5), "weight_decay": (1e-4, 1e-3)}
LSTM_GRID = {"lr": (1e-2, 3e-3, 3e-2, 1e-3, 1e-1), "dropout": (0.5, 0.2)}
# The first hypergradients are the largest; a short training cannot wait until Adam with its usual betas forgets them.
QUICK = (0.5, 0.9)

FULL = Recipe(
    name="full",
    seeds=3,
    trials=20,
    setups={
        "resnet18": Setup(
            data="cifar10",
            train=None,
            val=None,
            test=None,
            batch_size=64,
            epochs=30,
            model={"width": 64},
            static={"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4},
            space=SGD_SPACE,
            grid={"lr": SGD_GRID["lr"], "weight_decay": (1e-4, 1e-3, 1e-5, 1e-2)},
            tuning={"batch": Tuning("forward", 25, 0.1, 4, QUICK), "epoch": Tuning("forward", None, 0.5, None, QUICK)},
        ),
        "bert": Setup(
            data="imdb",
            train=None,
            val=None,
            test=None,
            batch_size=32,
            epochs=3,
            model={"name": "bert-base-uncased", "length": 128},
            static={"lr": 2e-5, "weight_decay": 1e-2},
            space={"lr": Range(2e-6, 2e-4), "weight_decay": Range(1e-4, 1e-1)},
            grid={"lr": (2e-5, 5e-5, 1e-5, 1e-4, 5e-6), "weight_decay": (1e-2, 1e-1, 1e-3, 1e-4)},
            tuning={"batch": Tuning("forward", 25, 0.1, 4, QUICK), "epoch": Tuning("forward", None, 0.5, None, QUICK)},
            warmup=1000,
        ),
        "lstm": Setup(
            data="electricity",
            train=None,
            val=None,
            test=None,
            batch_size=128,
            epochs=10,
            model={"length": 168, "horizon": 24, "stride": 24, "hidden": 64},
            static={"lr": 1e-2, "dropout": 0.5},
            space=LSTM_SPACE,
            grid={"lr": LSTM_GRID["lr"], "dropout": (0.5, 0.2, 0.8, 0.0)},
            tuning={"batch": Tuning("decayed", 10, 0.1, 2), "epoch": Tuning("forward", None, 0.3, None)},
        ),
    },
    about="the sizes of the experiment's description: all of CIFAR-10 and IMDB with bert-base-uncased, and the hourly "
    "loads of 321 clients, from METAFAST_DATA or the hub. Meant for a GPU.",
)

REDUCED = Recipe(
    name="reduced",
    seeds=3,
    trials=20,
    setups={
        "resnet18": replace(
            FULL.setups["resnet18"],
            train=1600,
            val=640,
            test=2000,
            epochs=5,
            model={"width": 8},
            grid=SGD_GRID,
            tuning={
                "batch": Tuning("decayed", 4, 0.3, 4, (0.8, 0.95)),
                "epoch": Tuning("forward", None, 0.7, None, QUICK),
            },
        ),
        "bert": replace(
            FULL.setups["bert"],
            train=2400,
            val=800,
            test=2000,
            epochs=6,
            model={"length": 96, "dim": 32, "layers": 2, "heads": 2, "buckets": 4096},
            static={"lr": 3e-4, "weight_decay": 1e-2},
            space={"lr": Range(1e-5, 1e-2), "weight_decay": Range(1e-4, 1e-1)},
            grid={"lr": (3e-4, 1e-3, 1e-4, 3e-3, 3e-5), "weight_decay": (1e-2, 1e-1)},
            tuning={  # at chance level for 100 steps and more, where hypergradients are noise
                "batch": Tuning("carried", 8, 0.25, 2, QUICK, start=150),
                "epoch": Tuning("forward", None, 0.5, None, QUICK, start=150),
            },
            warmup=20,
        ),
        "lstm": replace(
            FULL.setups["lstm"],
            data="ett",
            train=4000,
            val=1200,
            test=4000,
            epochs=8,
            model={"length": 48, "horizon": 24, "stride": 1, "hidden": 64},
            grid=LSTM_GRID,
            tuning={"batch": Tuning("decayed", 10, 0.1, 2), "epoch": Tuning("forward", None, 0.3, None)},
        ),
    },
    about="small models and parts of the data, so that all of it takes 45 minutes on two cores: a ResNet-18 an eighth "
    "as wide on 1,600 pictures, a BERT of two layers with random weights on 2,400 texts, the six loads of one "
    "transformer of ETT in place of 321 clients. BERT starts from a rate of 3e-4, because 2e-5 is for pretrained "
    "weights, goes through a warm-up of 20 steps, and is tuned from step 150 on, when it has left chance level.",
)

SMOKE = Recipe(
    name="smoke",
    seeds=1,
    trials=3,
    setups={
        "resnet18": replace(
            REDUCED.setups["resnet18"],
            train=640,
            val=320,
            test=400,
            epochs=2,
            grid={"lr": (1e-3, 1e-2)},
            tuning={"batch": Tuning("forward", 5, 0.4, 1, QUICK), "epoch": Tuning("forward", None, 1.0, None, QUICK)},
        ),
        "bert": replace(
            REDUCED.setups["bert"],
            train=640,
            val=320,
            test=400,
            epochs=2,
            grid={"lr": (3e-4, 1e-3)},
            tuning={"batch": Tuning("forward", 10, 0.4, 2, QUICK), "epoch": Tuning("forward", None, 0.5, None, QUICK)},
            warmup=10,
        ),
        "lstm": replace(
            REDUCED.setups["lstm"],
            train=1280,
            val=400,
            test=800,
            epochs=3,
            grid={"lr": (1e-2, 3e-3)},
        ),
    },
    about="a few steps of everything. It shows that everything works; the numbers are no result.",
)

RECIPES = {recipe.name: recipe for recipe in (SMOKE, REDUCED, FULL)}
