"""A search handed to Ray Tune: the same space and settings for Ray's own schedulers, on a cluster."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

from metafast._checks import integer
from metafast._dimensions import Choice, FloatRange, IntRange, ray_domain
from metafast.runs import Run
from metafast.tune.population._asha import ASHA
from metafast.tune.population._member import Leg, run_leg
from metafast.tune.population._pb2 import PB2
from metafast.tune.population._pool import Train
from metafast.tune.population._search import Search, leg_seed

STEPS = "steps"  # what Ray measures time by


def to_ray(search: Search, train: Train, steps: int, *, seed: int = 0) -> dict[str, Any]:
    """Arguments of `ray.tune.Tuner` that run a search with Ray's schedulers: `Tuner(**to_ray(search, train, 2000))`.

    `PB2` becomes Ray's `PB2`, or its `PopulationBasedTraining` with `explore="perturb"`; `ASHA` becomes Ray's
    `ASHAScheduler`, which stops trainings where this package promotes them. Ray's schedulers decide by their own rules.

    Args:
        search: a `PB2` or an `ASHA`.
        train: the function that `run` takes.
        steps: of a training from its beginning to its end.
        seed: of the legs.

    Returns:
        A dict with `trainable`, `param_space` and `tune_config`. Results have "value" and "steps".

    Raises:
        ImportError: Ray Tune is missing.
        TypeError: something else than a search.
        ValueError: something that Ray's scheduler cannot do: its PB2 searches ranges of numbers only.
    """
    try:
        from ray import tune
    except ImportError as error:
        raise ImportError("to_ray needs Ray Tune: pip install 'ray[tune]', or use run(..., workers=...)") from error
    if not isinstance(search, PB2 | ASHA):
        raise TypeError(f"search must be a PB2 or an ASHA, got {type(search).__name__}")
    steps = integer("steps", steps, minimum=1)
    search.check_steps(steps)
    dimensions = search.space.dimensions
    stops = search.rungs(steps) if isinstance(search, ASHA) else search.stops(steps)
    scheduler = _scheduler(search, tune, stops)
    samples = search.trials if isinstance(search, ASHA) else search.size
    return {
        "trainable": _trainable(tune.Trainable, train, stops, seed),
        "param_space": {name: ray_domain(dimension, tune) for name, dimension in dimensions.items()},
        "tune_config": tune.TuneConfig(metric="value", mode=search.mode, scheduler=scheduler, num_samples=samples),
    }


def _scheduler(search: PB2 | ASHA, tune: Any, stops: list[int]) -> Any:
    from ray.tune import schedulers

    if isinstance(search, ASHA):
        return schedulers.ASHAScheduler(
            time_attr=STEPS, max_t=stops[-1], grace_period=stops[0], reduction_factor=search.reduction
        )
    free = {name: search.space.dimensions[name] for name in search.space.free}
    common = {"time_attr": STEPS, "perturbation_interval": search.interval, "quantile_fraction": search.quantile}
    if search.explore == "perturb":
        mutations = {
            name: list(d.choices) if isinstance(d, Choice) else ray_domain(d, tune) for name, d in free.items()
        }
        return schedulers.PopulationBasedTraining(
            hyperparam_mutations=mutations, resample_probability=search.resample, **common
        )
    bounds = {}
    for name, dimension in free.items():
        if isinstance(dimension, Choice):
            raise ValueError(
                f"Ray's PB2 searches ranges of numbers only, and space[{name!r}] is a choice; make it an IntRange or a "
                'FloatRange, or use explore="perturb"'
            )
        assert isinstance(dimension, IntRange | FloatRange)
        bounds[name] = [dimension.low, dimension.high]
    from ray.tune.schedulers.pb2 import PB2 as RayPB2

    return RayPB2(hyperparam_bounds=bounds, **common)


def _trainable(base: Any, train: Train, stops: list[int], seed: int) -> Any:
    """A class for Ray whose step is a leg, with checkpoints from the member's record."""

    class Trainable(base):
        def setup(self, config: dict[str, Any]) -> None:
            self._number, self._values = 0, dict(config)

        def step(self) -> dict[str, Any]:
            number = self._number
            member = zlib.crc32(str(self.trial_id).encode())
            start = stops[number - 1] if number else 0
            leg = Leg(0, number, start, stops[number], self._values, leg_seed(seed, member, number))
            done = run_leg(train, leg, self._folder, lambda step, value: None)
            if done.error is not None:
                raise RuntimeError(done.error)
            self._number += 1
            return {"value": done.value, STEPS: leg.stop, "done": self._number == len(stops)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            shutil.copytree(self._record, Path(checkpoint_dir) / self._record.name, dirs_exist_ok=True)

        def load_checkpoint(self, checkpoint: str) -> None:
            shutil.rmtree(self._record, ignore_errors=True)
            shutil.copytree(Path(checkpoint) / self._record.name, self._record)
            self._number = stops.index(Run.open(self._record).checkpoints()[-1]) + 1

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._values = dict(new_config)
            return True

        @property
        def _folder(self) -> Path:
            return Path(self.logdir)

        @property
        def _record(self) -> Path:
            return self._folder / Leg(0, 0, 0, 0, {}, 0).name

    return Trainable
