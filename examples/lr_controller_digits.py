"""A perceptron on digits from seven starting rates: with the rate as it is, and steered by the shipped controller.

python examples/lr_controller_digits.py
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from metafast.data import Batches, digits
from metafast.metrics import accuracy
from metafast.models import MLP
from metafast.schedule import LRController


def train(rate: float, steered: bool, steps: int, seed: int) -> tuple[float, str]:
    """Validation accuracy, and what became of the rate."""
    data = digits(seed=seed)
    model = MLP(64, (32,), 10, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    controller = LRController.load()
    if steered:
        controller.attach(optimizer, total_steps=steps, model=model)
    batches = Batches(*data.train, batch_size=32, seed=seed).forever()
    for _, (x, y) in zip(range(steps), batches, strict=False):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if steered:
            controller.step(loss)
    told = " ".join(f"{rates[0]:.0e}" for _, rates in controller.history[:: max(1, steps // 50)]) if steered else ""
    with torch.no_grad():
        return accuracy(model(data.val.inputs), data.val.labels), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for rate in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        fixed, _ = train(rate, False, options.steps, options.seed)
        steered, rates = train(rate, True, options.steps, options.seed)
        print(f"from {rate:g}: fixed {100 * fixed:.1f} %, steered {100 * steered:.1f} %   {rates}")


if __name__ == "__main__":
    main()
