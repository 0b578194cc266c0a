"""Small searches in Ray itself, where `ray[tune]` is installed: `python -m tests.hpo.real_ray`. A minute: no test."""

import os
import tempfile

import ray
from ray import tune

from metafast.hpo import FloatRange, PredictorSearcher, Space, when
from tests.hpo.stand_in import StandIn

SPACE = Space(
    {"lr": FloatRange(0.01, 1.0, log=True), "opt/name": ["sgd", "adam"], "opt/momentum": [0.0, 0.9]},
    conditions=[when("opt/name", "sgd", "opt/momentum")],
)
DOMAINS = {
    "lr": tune.loguniform(0.01, 1.0),
    "opt": {"name": tune.choice(["sgd", "adam"])},
    "layers": tune.randint(1, 4),
    "dropout": tune.quniform(0, 1, 0.25),
    "batch_size": tune.qrandint(8, 32, 8),
    "data": "digits",
}


def train(config):
    for step in range(1, 5):
        tune.report({"accuracy": config["lr"] * step / 4 + 0.1 * (config["opt"]["name"] == "adam")})


def search(searcher, domains):
    options = tune.TuneConfig(
        search_alg=searcher, num_samples=6, max_concurrent_trials=2, metric="accuracy", mode="max"
    )
    run_config = tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0)
    results = tune.Tuner(train, param_space=domains, tune_config=options, run_config=run_config).fit()
    assert results.num_errors == 0, results.errors
    assert len(results) == 6 and all(result.metrics["training_iteration"] == 4 for result in results)
    best = results.get_best_result()
    print("best", best.config, best.metrics["accuracy"])


if __name__ == "__main__":
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}}
    )
    search(PredictorSearcher(StandIn(), SPACE, metric="accuracy", mode="max", seed=0), {})
    search(PredictorSearcher(StandIn(), seed=0), DOMAINS)
    plain = Space(SPACE.dimensions)
    assert Space.from_ray(plain.to_ray()) == plain
