"""What all searches share: members, a record of the population, a pool, and the way back after an interruption."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from metafast._checks import integer
from metafast.runs import Run
from metafast.tune.population._member import LOG, Leg
from metafast.tune.population._pool import InTurn, Pool, Train, Workers
from metafast.tune.population._progress import Progress
from metafast.tune.population._result import PopulationResult
from metafast.tune.population._space import Space

MODES = ("min", "max")


class Search(ABC):
    """A population of trainings. Subclasses say which leg is trained next; they keep no state of their own.

    `todo` is a function of the legs done and under way, the steps and the seed alone, so that a search that was
    interrupted goes on from the list of legs done.
    """

    def __init__(self, space: Mapping[str, Any], mode: str) -> None:
        self.space = Space(space)
        if mode not in MODES:
            raise ValueError(f'mode must be "min" (a loss) or "max" (an accuracy), got {mode!r}')
        self.mode = mode

    @abstractmethod
    def todo(self, done: Sequence[Leg], running: Sequence[Leg], free: int, steps: int, seed: int) -> list[Leg]:
        """Legs to begin now; none where some under way must be waited for, or nothing is left to do."""

    def settings(self) -> dict[str, Any]:
        """What the search was made with, as plain data."""
        return {"space": self.space.describe(), "mode": self.mode}

    @abstractmethod
    def check_steps(self, steps: int) -> None:
        """Raises where a training of so many steps has no room for the search."""

    def total_steps(self, steps: int) -> int | None:
        """Steps of all members together, where they are known."""
        return None

    def score(self, leg: Leg) -> float:
        """The value of a leg that did not fail, larger for better."""
        assert leg.value is not None
        return leg.value if self.mode == "max" else -leg.value

    def run(
        self,
        train: Train,
        steps: int,
        *,
        output: str | os.PathLike[str],
        workers: int = 0,
        threads: int = 1,
        seed: int = 0,
        resume: bool = False,
        progress: bool = True,
    ) -> PopulationResult:
        """Train the population.

        Args:
            train: `train(member)`, called for each leg; see `Member`. With workers, a function at the top of a module.
            steps: of a training from its beginning to its end.
            output: folder of the population: a record of its own, with those of the members in it.
            workers: processes that train; 0 (default): this one, one member after another.
            threads: of torch in each. Default 1; results may depend on it in the last digits.
            seed: of the configurations, the decisions and the members. Default 0.
            resume: go on with what is in `output`, if anything is. Legs done are not trained again.
            progress: show a bar on a terminal, lines elsewhere. Default True.

        Returns:
            Members, legs and the best; failed members have an `error`.

        Raises:
            TypeError, ValueError: an argument that does not fit, or a search with other settings in `output`. Nothing
                has changed then.
            FileExistsError: `output` holds a search and `resume` is False.
            RuntimeError: all members have failed, another process is at work in `output`, or workers cannot start.
        """
        if not callable(train):
            raise TypeError(f"train must be a function of a member, got {type(train).__name__}")
        steps, seed = integer("steps", steps, minimum=1), integer("seed", seed, minimum=0)
        workers, threads = integer("workers", workers, minimum=0), integer("threads", threads, minimum=1)
        self.check_steps(steps)
        if not isinstance(output, str | os.PathLike) or not os.fspath(output):
            raise TypeError(f"output must be a folder such as 'runs/pb2', got {output!r}")
        folder = Path(output)
        bar = Progress(type(self).__name__, self.total_steps(steps), shown=progress)
        place = train, folder, threads, bar.report
        pool: Pool = Workers(*place, workers) if workers else InTurn(*place)
        run, done = self._open(folder, steps, seed, resume)
        with run, bar:
            try:
                self._loop(run, pool, done, steps, seed, bar)
            finally:
                pool.close()
            result = PopulationResult(folder, done, self.mode)
            if all(member.value is None for member in result.members):
                raise RuntimeError(_all_failed(done))
        return result

    def _loop(self, run: Run, pool: Pool, done: list[Leg], steps: int, seed: int, bar: Progress) -> None:
        for leg in done:
            bar.done(leg)
        running: dict[tuple[int, int], Leg] = {}
        while True:
            for leg in self.todo(done, list(running.values()), pool.slots - len(running), steps, seed):
                running[leg.member, leg.number] = leg
                pool.submit(leg)
            if not running:
                return
            for leg in pool.wait():
                del running[leg.member, leg.number]
                done.append(leg)
                facts = {"member": leg.member, "trained_to": leg.stop}
                if leg.value is None:
                    run.note("a leg failed", error=leg.error, **facts)
                else:
                    run.log(step=len(done), value=leg.value, **facts)
                run.save(len(done), extras={"legs": [asdict(leg) for leg in done]})
                bar.done(leg)

    def _open(self, folder: Path, steps: int, seed: int, resume: bool) -> tuple[Run, list[Leg]]:
        """The population's record, and the legs that are done."""
        config = {"search": type(self).__name__, **self.settings(), "steps": steps}
        exists = (folder / LOG).exists()
        if exists and not resume:
            raise FileExistsError(f"{folder} already holds a search; go on with resume=True, or choose another output")
        if not exists:
            folder = folder.absolute()
            return Run.create(folder.parent, name=folder.name, config=config, seed=seed, tags=["population"]), []
        kept = Run.open(folder)
        came = {**kept.config, "seed": kept.seed}
        for key, value in {**config, "seed": seed}.items():
            if came.get(key) != value:
                raise ValueError(
                    f"the search in {folder} has {key}={came.get(key)!r}, this one {value!r}; go on with the same "
                    "settings, or choose another output"
                )
        run = Run.resume(folder)
        back = run.restore(rng=False)
        return run, [] if back is None else [Leg(**leg) for leg in back.extras["legs"]]


def leg_seed(seed: int, member: int, number: int) -> int:
    """Below 2**32, different for every leg."""
    return int(np.random.SeedSequence([seed, member, number]).generate_state(1)[0])


def _all_failed(done: Sequence[Leg]) -> str:
    first = next(leg for leg in done if leg.error)
    return (
        f"all members have failed; the first was member {first.member} with {first.config} at a step after "
        f"{first.start}: {first.error}"
    )
