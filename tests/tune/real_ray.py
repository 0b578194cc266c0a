"""Small searches in Ray itself, where `ray[tune]` is installed: `python -m tests.tune.real_ray`. Minutes: no test."""

import argparse
import os
import tempfile

import ray
from ray import tune

from metafast.tune.population import ASHA, PB2, FloatRange, IntRange, to_ray
from tests.tune.population_cases import train

RATE = FloatRange(1e-3, 0.3, log=True)
SPACE = {"rate": RATE, "batch_size": IntRange(1, 8)}
SEARCHES = {
    "pb2": lambda: PB2(SPACE, 4, interval=4),
    "pbt": lambda: PB2({**SPACE, "other": [1, 2]}, 4, interval=4, explore="perturb"),
    "asha": lambda: ASHA({"rate": RATE}, 6, 2, reduction=2),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("searches", nargs="*", help=f"default: {', '.join(SEARCHES)}")
    searches = parser.parse_args().searches or list(SEARCHES)
    if unknown := set(searches) - set(SEARCHES):
        parser.error(f"searches, got {', '.join(sorted(unknown))}: choose from {', '.join(SEARCHES)}")
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
    for name in searches:
        run_config = tune.RunConfig(storage_path=tempfile.mkdtemp(), name=name, verbose=0)
        results = tune.Tuner(**to_ray(SEARCHES[name](), train, 16), run_config=run_config).fit()
        best = results.get_best_result()
        assert results.num_errors == 0, results.errors
        assert best.metrics["steps"] == 16, best.metrics
        print(name, "best", best.config, best.metrics["value"])
