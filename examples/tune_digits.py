"""Tune learning rates, momentum and penalties while a small network trains, from a rate that is far too low.

python examples/tune_digits.py            some seconds on one core
python examples/tune_digits.py --plot tuning    also writes tuning.png and tuning.svg
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.tune import OnlineTuner, Tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=1e-5, help="where the learning rate starts")
    parser.add_argument("--method", default="reverse", help="forward, reverse, implicit, one_step or sama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="file without an ending")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    data = digits(seed=options.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    penalty = torch.tensor([1e-4, 1e-4], requires_grad=True)  # of each layer; any tensor of the loss can be tuned

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes = torch.stack([model[1].weight.square().sum(), model[3].weight.square().sum()])
        return F.cross_entropy(model(x), y) + penalty @ sizes

    tuner = OnlineTuner(
        model,
        opt,
        tune=[Tune("lr", per="layer"), "momentum", Tune(penalty, space="log", name="penalty")],
        val_loader=Batches(data.val.inputs, data.val.labels, batch_size=128, seed=options.seed, drop_last=True),
        method=options.method,
        every=10,
        val_loss=lambda model, x, y: F.cross_entropy(model(x), y),
    )
    train = Batches(data.train.inputs, data.train.labels, batch_size=64, seed=options.seed)
    while tuner.calls < options.steps:
        for x, y in train:
            loss = tuner.step(loss_fn, x, y)
            if tuner.calls % max(1, options.steps // 5) == 0:
                rates = ", ".join(f"{label}: {value:.2g}" for label, value in tuner.state["lr"].values.items())
                print(f"step {tuner.calls}, training loss {loss.item():.3f}, learning rates {rates}")
            if tuner.calls == options.steps:
                break

    with torch.no_grad():
        right = (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()
    print(f"test accuracy {100 * right:.1f} %")
    if options.plot:
        from metafast.plots import hyperparameter_trajectories, save

        save(hyperparameter_trajectories(tuner.state, tuner.validation, title="Digits, tuned"), options.plot)


if __name__ == "__main__":
    main()
