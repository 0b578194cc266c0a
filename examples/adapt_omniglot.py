"""A frozen network learns to be fine-tuned: characters of alphabets that neither it nor the meta-network has seen.

python examples/adapt_omniglot.py            about ten minutes on two cores
python examples/adapt_omniglot.py --pretrain 20 --steps 10 --episodes 20 --tasks 4    to see that it runs
"""

import argparse

import torch
from torch.nn import functional as F

from metafast.adapt import MetaFineTuner, freeze
from metafast.data import episodes, few_shot
from metafast.maml import evaluate
from metafast.models import Conv4


def pretrained(steps: int, seed: int) -> torch.nn.Module:
    """A classifier of the background alphabets' characters."""
    classes = few_shot("omniglot_alphabets").train
    x, y = classes.tensors()
    model = Conv4(1, classes.classes, 28, channels=64, track_running_stats=True, seed=seed)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        opt.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=16, help="tasks of a meta-batch")
    parser.add_argument("--pretrain", type=int, default=1500, help="steps of the backbone's training")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps")
    parser.add_argument("--episodes", type=int, default=600, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs")
    options = parser.parse_args()

    def tasks(split: str, queries: int, count: int, seed: int):
        sizes = {"ways": options.ways, "shots": 1, "queries": queries, "tasks": count}
        return episodes("omniglot_alphabets", split=split, seed=seed, **sizes)

    base = freeze(pretrained(options.pretrain, options.seed))
    meta = MetaFineTuner(base, "film", "init+alfa", steps=5, inner_lr=0.1, meta_lr=1e-3, dropout=0.0, order=1)
    print(meta.report())
    train, val = tasks("train", 5, options.tasks, options.seed), tasks("val", 5, 20, 1)
    ended = meta.meta_train(
        train, options.steps, val=val, val_episodes=min(100, options.episodes), output=options.output
    )
    print(f"{ended.steps} meta-steps in {ended.seconds:.0f} s, record in {ended.path}")

    test = tasks("test", 5, 20, 2)
    plain = MetaFineTuner(base, "film", None, steps=5, inner_lr=0.1)  # the same adapters, plain gradient descent
    for name, learner in (("fine-tuning", plain), ("meta-network", meta)):
        course = evaluate(learner, test, options.episodes, per_step=True).per_step
        print(f"{name}, accuracy after 0 to 5 steps:", " ".join(f"{100 * score.mean:.1f}" for score in course))

    task = test[0].task(0)
    model = meta.adapt(task.support_x, task.support_y)  # an ordinary nn.Module, merge() has no adapters left
    print(F.cross_entropy(model.merge()(task.query_x), task.query_y).item())


if __name__ == "__main__":
    main()
