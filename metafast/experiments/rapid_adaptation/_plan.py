"""Which jobs there are, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from metafast.experiments.rapid_adaptation._jobs import Job, meta_job
from metafast.experiments.rapid_adaptation._methods import META, METHODS, RATED
from metafast.experiments.rapid_adaptation._recipes import Recipe, Setup

Row = dict[str, Any]


class Case(NamedTuple):
    """Tasks of one form: a data set or a target of it, and how many support examples each class has."""

    setting: str
    target: int | None
    ways: int
    shots: int


@dataclass(frozen=True)
class Plan:
    """The jobs of one recipe.

    Args:
        recipe: what to do.
        names: the data sets of it.
        seed: the first; also of the backbone.
        seeds: meta-trainings of each method, with their own test episodes.
        device: "cpu" or "cuda".
    """

    recipe: Recipe
    names: tuple[str, ...]
    seed: int = 0
    seeds: int = 3
    device: str = "cpu"

    def cases(self, name: str) -> Iterator[Case]:
        """What a data set's methods are tested on: first its own tasks, then the targets."""
        setup = self.recipe.setups[name]
        for shots in setup.shots:
            yield Case(name, None, setup.ways, shots)
        for number, target in enumerate(setup.targets):
            for shots in setup.target_shots:
                yield Case(name, number, target.ways, shots)

    def title(self, case: Case) -> str:
        """For people."""
        setup = self.recipe.setups[case.setting]
        what = setup.title if case.target is None else f"{setup.title} to {setup.targets[case.target].title}"
        return f"{what}, {case.ways}-way {case.shots}-shot"

    def backbones(self) -> list[Job]:
        """One for all seeds."""
        return [Job("backbone", name, self.recipe, seed=self.seed, device=self.device) for name in self.names]

    def rates(self) -> list[Job]:
        """The choices of a rate, for all seeds: neither the backbone nor the validation tasks depend on them."""
        wanted = [(case.setting, case.ways, case.shots) for name in self.names for case in self.cases(name)]
        return [
            Job("rates", name, self.recipe, method, shots, self.seed, ways=ways, device=self.device)
            for name, ways, shots in dict.fromkeys(wanted)
            for method in RATED
        ]

    def metas(self) -> list[Job]:
        """The meta-trainings, the longest kinds first."""
        made = [
            meta_job(self.test(case, method, seed, {}))
            for method in reversed(META)
            for seed in range(self.seeds)
            for name in self.names
            for case in self.cases(name)
        ]
        return list({job.name: job for job in made}.values())

    def second(self) -> list[Job]:
        """What needs the backbones only."""
        return self.metas() + self.rates()

    def test(self, case: Case, method: str, seed: int, done: Mapping[str, Row]) -> Job:
        """One test; `seed` counts from the plan's."""
        rate = None
        if method in RATED:
            rates = Job("rates", case.setting, self.recipe, method, case.shots, ways=case.ways)
            rate = done[rates.name]["rate"]
        return Job(
            "test", case.setting, self.recipe, method, case.shots, self.seed + seed, case.target, case.ways, rate,
            self.device,
        )  # fmt: skip

    def tests(self, done: Mapping[str, Row]) -> list[Job]:
        """All tests; "no adaptation" is the first point of fine-tuning's course."""
        return [
            self.test(case, method, seed, done)
            for method in METHODS
            if method != "none"
            for name in self.names
            for case in self.cases(name)
            for seed in range(self.seeds)
        ]

    def cost(self, case: Case, done: Mapping[str, Row]) -> Job:
        """The clock of a data set's own tasks."""
        rate = self.test(case, "finetune", 0, done).rate
        return Job(
            "cost", case.setting, self.recipe, shots=case.shots, seed=self.seed, ways=case.ways, rate=rate,
            device=self.device,
        )  # fmt: skip

    def costs(self, done: Mapping[str, Row]) -> list[Job]:
        """One after the other, so that nothing else runs beside the clock."""
        return [self.cost(case, done) for name in self.names for case in self.cases(name) if case.target is None]

    def setup(self, case: Case) -> Setup:
        """The data set of a case."""
        return self.recipe.setups[case.setting]
