"""Optuna's samplers over the candidates of a table: each suggestion is the nearest candidate that was not run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.experiments.hp_prediction._searchers import Searcher
from metafast.experiments.hp_prediction._tables import Table, encoded

if TYPE_CHECKING:
    import optuna

Array = np.ndarray[Any, Any]
STARTUP = 3  # trials at random of TPE and GP, as few as help with few trials; their default is 10
MOST_LEVELS = 64


class OptunaSearch(Searcher):
    """A study of Optuna. Numbers are searched by their place on their scale, so that their order and ratios count.

    Args:
        table, sources, seed: as every search.
        make: the sampler, from a seed, the sources as studies, and the number of hyperparameters.
        conditional: whether the sampler knows conditional hyperparameters; else all are always there.
    """

    def __init__(
        self,
        table: Table,
        sources: Sequence[Table],
        seed: int,
        make: Callable[[int, Callable[[], list[optuna.Study]]], optuna.samplers.BaseSampler],
        conditional: bool = True,
    ) -> None:
        import optuna

        super().__init__(table, sources, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.conditional = conditional
        self.levels = levels(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samplers that call themselves experimental
            sampler = make(self.drawn, lambda: [self._study(source) for source in sources])
            self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> int:
        """The nearest to what the sampler suggests."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            code = encoded(self.table.task.space, [self._suggested(trial)])
        left = self.untried()
        apart = ((self.table.codes[left] - code) ** 2).sum(1)
        return int(left[apart.argmin()])

    def tell(self, row: int, merit: float) -> None:
        """The candidate that was run is a trial of the study; the one that was suggested is forgotten."""
        import optuna

        super().tell(row, merit)
        last = self.study.get_trials(deepcopy=False)[-1]
        if not last.state.is_finished():
            self.study.tell(last.number, state=optuna.trial.TrialState.FAIL)
        self.study.add_trial(self._trial(self.table, row, merit))

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        space, config = self.table.task.space, dict[str, Any]()
        for name in _parents_first(self.table):
            if self.conditional and not space.active(name, config):
                continue
            level = self.levels[name]
            if level is None:
                config[name] = _value(space, name, trial.suggest_float(name, 0.0, 1.0))
            elif space.scales[name].numeric or not self.conditional:
                config[name] = level[trial.suggest_int(name, 0, len(level) - 1)]
            else:
                config[name] = level[int(trial.suggest_categorical(name, list(range(len(level)))))]
        return {name: value for name, value in config.items() if space.active(name, config)}

    def _trial(self, table: Table, row: int, merit: float) -> optuna.trial.FrozenTrial:
        import optuna

        space, config = self.table.task.space, table.task.configs[row]
        params: dict[str, Any] = {}
        kinds: dict[str, optuna.distributions.BaseDistribution] = {}
        for name in space.dimensions:
            if name not in config and self.conditional:
                continue
            level = self.levels[name]
            if level is None:
                unit = space.scales[name].unit(config[name]) if name in config else 0.5
                params[name] = min(max(unit, 0.0), 1.0)
                kinds[name] = optuna.distributions.FloatDistribution(0.0, 1.0)
                continue
            units = [space.scales[name].unit(value) for value in level]
            mine = space.scales[name].unit(config[name]) if name in config else units[len(units) // 2]
            params[name] = int(np.abs(np.array(units) - mine).argmin())
            numeric = space.scales[name].numeric or not self.conditional
            kinds[name] = (
                optuna.distributions.IntDistribution(0, len(level) - 1)
                if numeric
                else optuna.distributions.CategoricalDistribution(list(range(len(level))))
            )
        return optuna.trial.create_trial(params=params, distributions=kinds, value=merit)

    def _study(self, source: Table) -> optuna.Study:
        import optuna

        made = optuna.create_study(direction="maximize")
        made.add_trials([self._trial(source, row, float(source.merit[row])) for row in range(len(source.merit))])
        return made


def tpe(table: Table, sources: Sequence[Table], seed: int) -> Searcher:
    """Optuna's tree-structured Parzen estimator, all hyperparameters together."""
    import optuna

    return OptunaSearch(
        table, sources, seed, lambda seed, _: optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, multivariate=True, group=bool(table.task.space.conditions), seed=seed
        )
    )  # fmt: skip


def gp(table: Table, sources: Sequence[Table], seed: int) -> Searcher:
    """Optuna's Gaussian process."""
    import optuna

    return OptunaSearch(
        table, sources, seed, lambda seed, _: optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=seed)
    )  # fmt: skip


def cma_es(table: Table, sources: Sequence[Table], seed: int) -> Searcher:
    """Optuna's CMA-ES; names are numbers to it, and conditional hyperparameters are always there."""
    import optuna

    return OptunaSearch(
        table, sources, seed, lambda seed, _: optuna.samplers.CmaEsSampler(seed=seed), conditional=False
    )  # fmt: skip


def meta_tpe(table: Table, sources: Sequence[Table], seed: int) -> Searcher:
    """OptunaHub's TPE that is warmed up by the studies of other tasks; its first trial is drawn at random.

    Raises:
        ImportError: it cannot be had.
    """
    module = load_meta_tpe()
    return OptunaSearch(
        table, sources, seed, lambda seed, studies: module.MetaLearnTPESampler(
            source_studies=studies(), n_startup_trials=1, seed=seed
        ), conditional=False
    )  # fmt: skip


def load_meta_tpe() -> Any:
    """OptunaHub's package, from its cache or the network.

    Raises:
        ImportError: it cannot be had, or this Optuna is too new for it.
    """
    import optuna

    if int(optuna.__version__.split(".")[0]) > 4:
        raise ImportError(f"it calls what Optuna 4 had, and here is Optuna {optuna.__version__}")
    try:
        import optunahub
    except ImportError:
        raise ImportError("it needs optunahub: pip install optunahub") from None
    try:
        return optunahub.load_module("samplers/meta_learn_tpe")
    except Exception as error:  # whatever its downloader raises
        raise ImportError(f"optunahub cannot load it: {error}") from error


def levels(table: Table) -> dict[str, list[Any] | None]:
    """The values that each hyperparameter has in the table, in order; None: so many that they are a continuum."""
    space = table.task.space
    found: dict[str, list[Any] | None] = {}
    for name, dimension in space.dimensions.items():
        values = {space.scales[name].unit(c[name]): c[name] for c in table.task.configs if name in c}
        if not space.scales[name].numeric:
            values = {float(i): value for i, value in enumerate(dimension.values())}
        found[name] = None if len(values) > MOST_LEVELS else [values[unit] for unit in sorted(values)]
    return found


def _parents_first(table: Table) -> list[str]:
    """Hyperparameters, those that others depend on before them."""
    space, names, done = table.task.space, list(table.task.space.dimensions), list[str]()
    needs = {name: [c.parent for c in space.conditions if name in c.children] for name in names}
    while names:
        ready = [name for name in names if all(parent in done for parent in needs[name])]
        done += ready
        names = [name for name in names if name not in ready]
    return done


def _value(space: Any, name: str, unit: float) -> float:
    scale = space.scales[name]
    if scale.log:
        return float(scale.low * (scale.high / scale.low) ** unit)
    return float(scale.low + unit * (scale.high - scale.low))
