"""A population finds batch size and layers, while in each member an OnlineTuner finds learning rate and momentum.

python examples/tune_population.py                 PB2: the batch size follows a schedule, layers are inherited
python examples/tune_population.py --search asha   ASHA: trainings that fall behind are given up
"""

import argparse
import functools

import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.runs import Run
from metafast.tune import OnlineTuner
from metafast.tune.population import ASHA, PB2, Choice, Member, PopulationResult

data = functools.cache(digits)


def build(layers: int) -> nn.Sequential:
    hidden = [nn.Linear(64, 32), nn.ReLU(), *(m for _ in range(layers - 1) for m in (nn.Linear(32, 32), nn.ReLU()))]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


def train(member: Member) -> None:
    split = data(seed=0)
    model = build(member.config["layers"])
    opt = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    val = Batches(*split.val, batch_size=128, seed=0, drop_last=True)
    tuner = OnlineTuner(model, opt, ["lr", "momentum"], val, method="one_step", every=10)
    member.restore(model, opt, tuner=tuner)
    batches = Batches(*split.train, batch_size=member.config["batch_size"], seed=member.seed).forever()
    for step in member.steps:
        loss = tuner.step(lambda x, y: F.cross_entropy(model(x), y), *next(batches))
        if step % 50 == 0 or step == member.stop:
            with torch.no_grad():
                value = F.cross_entropy(model(split.val.inputs), split.val.labels)
            member.report(step, value, train_loss=loss, lr=opt.param_groups[0]["lr"])
    member.save(model, opt, tuner=tuner)


def main() -> PopulationResult:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", choices=["pb2", "asha"], default="pb2")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", default="runs/population")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    space = {"batch_size": [8, 16, 32, 64, 128, 256], "layers": Choice([1, 2, 3], fixed=True)}
    if options.search == "pb2":
        search: PB2 | ASHA = PB2(space, size=4, interval=max(1, options.steps // 10))
    else:
        search = ASHA(space, trials=12, min_steps=max(1, options.steps // 9), reduction=3)
    result = search.run(
        train, options.steps, output=options.output, workers=options.workers, resume=options.resume, seed=0
    )
    for row in result.table()[:4]:
        print(row)
    print("batch size of the best, from step on:", result.schedule()["batch_size"])
    rates = Run.open(result.best.path).curve("lr")
    print(f"its learning rate at step {rates.steps[-1]}: {rates.values[-1]:.3g}")
    model = build(result.best.config["layers"])
    model.load_state_dict(result.best.state_dict())
    test = data(seed=0).test
    with torch.no_grad():
        right = (model(test.inputs).argmax(1) == test.labels).float().mean().item()
    print(f"test accuracy {100 * right:.1f} %")
    return result


if __name__ == "__main__":
    main()
