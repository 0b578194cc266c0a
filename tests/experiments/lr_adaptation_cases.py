"""Small recipes of the experiment, data of the same form as the real ones, and a controller that is quickly made."""

import json

import numpy as np

from metafast.experiments.lr_adaptation import Recipe, Setup

TEXT = {"length": 8, "buckets": 5000}
RNN = {"dim": 4, "hidden": 4}
ENCODER = {"dim": 8, "layers": 1, "heads": 2}
SIZES = (24, 10, 12, 6)  # train, val, test, steps


def setup(data, model, sizes, encoding=None):
    return Setup(data, model, *SIZES, sizes, encoding or {}, watch=8, batch_size=8)


ALL = [
    setup("cifar10", "resnet18", {"width": 1}),
    setup("cifar10", "vit", {"patch": 8, **ENCODER}),
    setup("fashion_mnist", "resnet18", {"width": 1}),
    setup("mnist", "vit", {"patch": 14, **ENCODER}),
    setup("imdb", "gru", RNN, TEXT),
    setup("ag_news", "lstm", RNN, TEXT),
    setup("ag_news", "bert", ENCODER, TEXT),
    setup("imdb", "roberta", ENCODER, TEXT),
    setup("few_rel", "gru", RNN, TEXT),
    setup("conllpp", "lstm", {**RNN, "pool": "last"}, TEXT),
    setup("mnist", "mlp", {"hidden": (4,)}),
    setup("fashion_mnist", "mlp", {"hidden": (4,)}),
    setup("cifar10", "cnn", {"width": 2, "stride": 2}),
    setup("ag_news", "embedding", {"dim": 4}, TEXT),
]
EVERY = Recipe("every", 1, {each.pair: each for each in ALL}, "a few steps of everything.")
TINY = Recipe(
    "tiny",
    2,
    {name: EVERY.setups[name] for name in ("fashion_mnist/resnet18", "imdb/gru", "mnist/mlp")},
    "a few steps.",
)
RECORD = {
    "meta_training": {"data": ["digits", "cifar100", "clinc_oos"], "models": ["MLP", "SmallCNN"]},
    "meta_validation": {"data": ["few_rel", "conllpp"]},
}


class Controller:
    """Raises the rate by a fifth every few steps, and lowers it by as much in the first half if it was adapted."""

    def __init__(self, factor=1.2):
        self.factor, self.record, self.events, self.optimizer = factor, RECORD, [], None

    @classmethod
    def load(cls, file):
        return cls() if file == "default" else cls(json.loads(file.read_text())["factor"])

    def save(self, file):
        file.write_text(json.dumps({"factor": self.factor}))

    def attach(self, optimizer, interval, per, total_steps, model):
        assert model.training and self.optimizer is None and interval == 10 and total_steps == SIZES[3]
        self.optimizer, self.steps, self.per = optimizer, 0, per

    def step(self, loss):
        assert loss.dim() == 0
        self.steps += 1
        if self.steps == 4:
            self.events.append({"step": 4, "what": "looked"})
        if self.steps % 2 == 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor

    def digest(self):
        return str(self.factor)

    def lr(self):
        (group,) = self.optimizer.param_groups
        count = len(group["params"]) if self.per == "tensor" else 1
        return dict.fromkeys(range(count), group["lr"])

    def adapt(self, task, steps, seed):
        assert steps == 5 and task.steps == SIZES[3] and task.batch_size == 8
        assert task.model(seed)(task.train.inputs[:2]).shape[0] == 2 and len(task.val.labels)
        return Controller(1 / self.factor)

    def state_dict(self):
        return {"steps": self.steps, "events": self.events}

    def load_state_dict(self, state):
        self.steps, self.events = state["steps"], list(state["events"])


def no_hub(*arguments):
    raise ConnectionError("no hub here")


def use(patch, folder):
    """METAFAST_DATA with those alone, no hub, and that controller."""
    patch.setattr("metafast.data._load._from_hub", no_hub)
    patch.setenv("METAFAST_DATA", str(folder))
    patch.setattr("metafast.experiments.lr_adaptation._train._loaded", {})
    patch.setattr("metafast.experiments.lr_adaptation._controller.load", lambda file="default": Controller.load(file))


def make_data(folder):
    """All data sets of the reduced recipe, as `metafast.data.load` reads them."""
    import datasets

    random = np.random.default_rng(0)

    def write(name, split, rows, features=None):
        (folder / name).mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / name / f"{split}.parquet")

    for split, count in (("train", 60), ("test", 30)):
        for name, column, shape in (("cifar10", "img", (32, 32, 3)), ("mnist", "image", (28, 28)),
                                    ("fashion_mnist", "image", (28, 28))):  # fmt: skip
            images = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
            features = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
            write(name, split, {column: images, "label": [i % 10 for i in range(count)]}, features)
        for name, classes in (("imdb", 2), ("ag_news", 4)):
            words = [f"a text of {'abcd'[i % classes]} and number {split}{i}" for i in range(count)]
            write(name, split, {"text": words, "label": [i % classes for i in range(count)]})
        tokens = [[f"Word{i}", "and", "some", "More", "."] for i in range(count)]
        write("conllpp", split, {"tokens": tokens, "ner_tags": [[1 + i % 8, 0, 0, 1 + i % 3, 0] for i in range(count)]})
    entity = {"text": "x", "type": "y", "indices": [[0]]}
    rows = {
        "relation": [f"P{i % 16}" for i in range(96)],
        "tokens": [[f"w{i}", "is", f"r{i % 16}", "of", "it"] for i in range(96)],
        "head": [entity] * 96,
        "tail": [{**entity, "indices": [[4]]}] * 96,
        "names": [["a", "b"]] * 96,
    }
    write("few_rel", "val_wiki", rows)
