"""Tune dropout, label smoothing and L2 penalties while a network trains on few digits, 30 % of them with random labels.

python examples/tune_regularizers.py            some seconds on one core; without tuning first, then with it
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.tune import OnlineTuner
from metafast.tune.regularizers import L2, LabelSmoothingCrossEntropy, replace_dropout


def train(options: argparse.Namespace, tuned: bool) -> None:
    torch.manual_seed(options.seed)
    data = digits(seed=options.seed)
    inputs, labels = data.train.inputs[: options.examples], data.train.labels[: options.examples].clone()
    wrong = torch.rand(len(labels)) < 0.3
    labels[wrong] = torch.randint(10, labels[wrong].shape)
    batches = Batches(inputs, labels, batch_size=50, seed=options.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.05), nn.Linear(128, 10))
    dropout = replace_dropout(model)
    smoothing, penalty = LabelSmoothingCrossEntropy(0.05), L2(model, 1e-3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return smoothing(model(x), y) + penalty()

    tuner = OnlineTuner(
        model,
        opt,
        tune=[*dropout, *smoothing.tune(), *penalty.tune()],
        val_loader=Batches(data.val.inputs, data.val.labels, batch_size=128, seed=options.seed, drop_last=True),
        method="reverse",
        every=options.every,  # long enough to see what overfitting does: over a few steps, less of all looks better
        hyper_lr=0.5,
    )
    step = 0
    while step < options.steps:
        for x, y in batches:
            if tuned:
                tuner.step(loss_fn, x, y)
            else:
                opt.zero_grad()
                loss_fn(x, y).backward()
                opt.step()
            step += 1
            if step == options.steps:
                break

    print("tuned" if tuned else "not tuned")
    for name, record in tuner.state.items():
        first, last = (", ".join(f"{x:.2g}" for x in values) for _, values in (record.history[0], record.history[-1]))
        print(f"  {name}: {first} -> {last}" if tuned else f"  {name}: {first}")
    model.eval()
    with torch.no_grad():
        scores = model(data.test.inputs)
    right = (scores.argmax(1) == data.test.labels).float().mean().item()
    print(f"  test accuracy {100 * right:.1f} %, cross-entropy {F.cross_entropy(scores, data.test.labels).item():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--examples", type=int, default=400, help="to train on")
    parser.add_argument("--every", type=int, default=50, help="steps between two updates, and their horizon")
    parser.add_argument("--seed", type=int, default=0)
    for tuned in (False, True):
        train(parser.parse_args(), tuned)
