"""Few-shot classification: tell five characters apart after seeing each once, by MAML on Omniglot.

python examples/maml_omniglot.py            some hours on two cores; metafast maml train does the same and more
python examples/maml_omniglot.py --steps 20 --episodes 20 --tasks 4    to see that it runs
"""

import argparse

from torch.optim import Adam

from metafast.data import episodes
from metafast.maml import MAML, Trainer, evaluate
from metafast.models import Conv4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=32, help="tasks of a meta-batch")
    parser.add_argument("--steps", type=int, default=10_000, help="meta-steps")
    parser.add_argument("--episodes", type=int, default=600, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs")
    options = parser.parse_args()

    def tasks(split: str, **more: int):
        sizes = {"ways": options.ways, "shots": options.shots, "queries": 15, **more}
        return episodes("omniglot", split=split, **sizes)

    maml = MAML(Conv4(1, options.ways, 28, seed=options.seed), inner_lr=0.4, steps=1, order=2, on_nan="drop")
    trainer = Trainer(
        maml,
        tasks("train", tasks=options.tasks, seed=options.seed),
        options.steps,
        val=tasks("val", tasks=20, seed=1),
        val_episodes=min(200, options.episodes),
        optimizer=lambda parameters: Adam(parameters, lr=1e-3),
        schedule="cosine",
        clip=10.0,
        output=options.output,
        seed=options.seed,
        config=vars(options),
    )
    ended = trainer.fit()  # the best weights of the validation are in maml now
    print(f"{ended.steps} meta-steps in {ended.seconds:.0f} s, record in {ended.path}")
    print(maml.explain())

    test = tasks("test", tasks=20, seed=2)
    result = evaluate(maml, test, options.episodes, steps=3, per_step=True)
    for step, score in enumerate(result.per_step):
        print(f"after {step} steps: {100 * score.mean:.2f} ± {100 * score.half:.2f} %")


if __name__ == "__main__":
    main()
