"""A population searches batch size and depth; inside each member, hypergradients move the learning rate.

python examples/tune_population.py [--steps 400]
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.tune import Forward, OnlineTuner
from metafast.tune.population import PB2, Choice, Member

DATA = digits(seed=0)


def build(layers: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden: list[nn.Module] = []
    for _ in range(layers - 1):
        hidden += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def train(member: Member) -> None:
    """One leg of a training: restore, go on, report, save."""
    model = build(member.config["layers"], seed=member.id)
    opt = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    # the tuner's validation data is not the population's: what one chooses by, the other must not have seen
    half = len(DATA.val.labels) // 2
    val = Batches(DATA.val.inputs[:half], DATA.val.labels[:half], batch_size=64, seed=0)
    tuner = OnlineTuner(model, opt, "lr", val, Forward(hvp=False, decay=0.9), every=10)
    member.restore(model, opt, tuner=tuner)
    batches = Batches(
        DATA.train.inputs, DATA.train.labels, batch_size=member.config["batch_size"], seed=member.seed
    ).forever()
    for _ in member.steps:
        x, y = next(batches)
        tuner.step(lambda x, y: F.cross_entropy(model(x), y), x, y)
    with torch.no_grad():
        loss = F.cross_entropy(model(DATA.val.inputs[half:]), DATA.val.labels[half:])
    member.report(member.stop, loss, lr=opt.param_groups[0]["lr"])
    member.save(model, opt, tuner=tuner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each member; they are compared four times")
    steps = parser.parse_args().steps
    space = {"batch_size": [16, 32, 64, 128], "layers": Choice([1, 2, 3], fixed=True)}
    with tempfile.TemporaryDirectory() as folder:
        search = PB2(space, size=4, interval=steps // 4)
        result = search.run(train, steps, output=f"{folder}/pb2", seed=0, progress=False)
        for row in result.table():
            print("  ".join(f"{key} {value}" for key, value in row.items() if key != "error"))
        print("schedule of the best:", result.schedule())
        model = build(result.best.config["layers"], seed=0)
        model.load_state_dict(result.best.state_dict())
        with torch.no_grad():
            right = (model(DATA.test.inputs).argmax(1) == DATA.test.labels).float().mean()
        print(f"test accuracy {100 * right:.1f} %")


if __name__ == "__main__":
    main()
