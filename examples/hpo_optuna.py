"""Optuna searches a small network for the digits, led by a predictor that other searches have taught.

python examples/hpo_optuna.py                                 15 trials in this process
python examples/hpo_optuna.py --storage digits.log  (twice)   two workers on one journal file
"""

import argparse

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.hpo import FloatRange, PredictorPruner, PredictorSampler, Space, task_features, when

SPACE = Space(
    {"batch_size": [32, 64, 128], "layers": [1, 2, 3], "width": [16, 32, 64], "dropout": [0.0, 0.1, 0.3]},
    lr=FloatRange(1e-4, 1.0, log=True),
    optimizer=["sgd", "adam"],
    momentum=[0.0, 0.9],
    conditions=[when("optimizer", "sgd", "momentum")],
)


def build(config: dict) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in [64] + [config["width"]] * (config["layers"] - 1):
        layers += [nn.Linear(inputs, config["width"]), nn.ReLU(), nn.Dropout(config["dropout"])]
    return nn.Sequential(*layers, nn.Linear(config["width"], 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--storage", help="a journal file that several workers share")
    options = parser.parse_args()
    split = digits(seed=0)

    def train(trial: optuna.Trial) -> float:
        config = SPACE.ask(trial)
        torch.manual_seed(trial.number)
        model, adam = build(config), config["optimizer"] == "adam"
        opt = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), config["lr"])
        opt.param_groups[0].update({} if adam else {"momentum": config["momentum"]})
        for epoch in range(options.epochs):
            model.train()
            for x, y in Batches(*split.train, batch_size=config["batch_size"], seed=epoch):
                opt.zero_grad()
                F.cross_entropy(model(x), y).backward()
                opt.step()
            model.eval()
            with torch.no_grad():
                accuracy = (model(split.val.inputs).argmax(1) == split.val.labels).float().mean().item()
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    told = {"space": SPACE, "task": task_features(split.train, split.val), "n_steps": options.epochs}
    study = optuna.create_study(
        study_name="digits",
        direction="maximize",
        sampler=PredictorSampler("default", **told),
        pruner=PredictorPruner("default", **told),
        storage=JournalStorage(JournalFileBackend(options.storage)) if options.storage else None,
        load_if_exists=True,
    )
    study.optimize(train, n_trials=options.trials)
    print(f"best validation accuracy {100 * study.best_value:.1f} % with {study.best_params}")


if __name__ == "__main__":
    main()
