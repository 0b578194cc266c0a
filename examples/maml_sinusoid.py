"""Few-shot regression: learn to fit a sinusoid from ten points, by MAML and by Meta-SGD.

python examples/maml_sinusoid.py            about a minute on one core
python examples/maml_sinusoid.py --steps 50 --episodes 50    to see that it runs
"""

import argparse

import torch

from metafast.data import episodes
from metafast.maml import MAML, MetaSGD, evaluate
from metafast.models import SinusoidMLP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15_000, help="meta-steps")
    parser.add_argument("--episodes", type=int, default=600, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    learners = {
        "MAML": MAML(SinusoidMLP(seed=options.seed), inner_lr=0.01, steps=1, loss="mse"),
        "Meta-SGD": MetaSGD(SinusoidMLP(seed=options.seed), inner_lr=0.01, steps=1, loss="mse"),
    }
    test = episodes("sinusoid", split="test", shots=10, queries=100, tasks=50, seed=1)
    for name, maml in learners.items():
        train = episodes("sinusoid", shots=10, queries=10, tasks=25, seed=options.seed)
        opt = torch.optim.Adam(maml.parameters(), lr=1e-3)
        for step, batch in zip(range(1, options.steps + 1), train, strict=False):
            loss, _ = maml(batch)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if step % max(1, options.steps // 5) == 0:
                print(f"{name}: step {step}, query loss {loss.item():.3f}")
        result = evaluate(maml, test, options.episodes, steps=5, per_step=True)
        course = ", ".join(f"{score.mean:.2f}" for score in result.per_step)
        print(f"{name}: mean squared error {result} after 5 steps (after 0, 1, ...: {course})")

    # An adapted learner is an ordinary module.
    task = test[0].task(0)
    model = learners["Meta-SGD"].adapt(task.support_x, task.support_y, steps=5)
    print("one task:", torch.nn.functional.mse_loss(model(task.query_x), task.query_y).item())


if __name__ == "__main__":
    main()
