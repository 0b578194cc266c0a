"""A small recipe of the experiment, on data of the same form as the real ones, made here."""

import math

import numpy as np

from metafast.experiments.online_tuning import Range, Recipe, Setup, Tuning

TUNING = {"batch": Tuning("carried", 2, 0.1), "epoch": Tuning("one_step", None, 0.5, None)}
TINY = Recipe(
    name="tiny",
    seeds=2,
    trials=3,
    setups={
        "resnet18": Setup(
            "cifar10", 20, 10, 10, 8, 2, {"width": 1},
            {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4},
            {"lr": Range(1e-4, 1.0), "momentum": Range(0.5, 0.99, "log1m"), "weight_decay": Range(1e-6, 1e-2)},
            {"lr": (1e-3, 1e-2)}, TUNING,
        ),
        "bert": Setup(
            "imdb", 16, 8, 8, 8, 2, {"length": 8, "dim": 8, "layers": 1, "heads": 2, "buckets": 50},
            {"lr": 2e-5, "weight_decay": 1e-2}, {"lr": Range(1e-5, 1e-2)}, {"lr": (2e-5, 1e-3)}, TUNING, warmup=2,
        ),
        "lstm": Setup(
            "ett", 40, 12, 16, 8, 2, {"length": 26, "horizon": 4, "stride": 2, "hidden": 4},
            {"lr": 1e-2, "dropout": 0.5}, {"lr": Range(1e-4, 1e-1), "dropout": Range(0.0, 0.8, "linear")},
            {"lr": (1e-2, 1e-3), "dropout": (0.5, 0.2)}, TUNING,
        ),
    },
    about="a few steps.",
)  # fmt: skip


def make_data(folder):
    """cifar10, imdb and ett, as `metafast.data.load` reads them."""
    import datasets

    random = np.random.default_rng(0)

    def write(name, split, rows):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / name / f"{split}.parquet")

    for split, count in (("train", 40), ("test", 20)):
        images = [random.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        labels = [i % 10 for i in range(count)]
        write("cifar10", split, datasets.Dataset.from_dict({"img": images, "label": labels}, features=features))
        words = [" ".join(random.choice(["a", "film", "the", ["bad", "good"][i % 2]], 10)) for i in range(count)]
        rows = {"text": words, "label": [i % 2 for i in range(count)]}
        write("imdb", split, datasets.Dataset.from_dict(rows))
    columns = {
        name: [math.sin(2 * math.pi * (hour + shift) / 24) + hour / 100 for hour in range(200)]
        for shift, name in enumerate(("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL"))
    }
    write("ett", "ETTh1", datasets.Dataset.from_dict(columns))


def use(patch, folder):
    """METAFAST_DATA with those alone."""
    patch.setenv("METAFAST_DATA", str(folder))
    patch.setattr("metafast.experiments.online_tuning._train._parts", {})
