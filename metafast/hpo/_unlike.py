"""Whether a task is unlike what is known, so that what is known should not be asked."""

from __future__ import annotations

from metafast.hpo._surrogate import Query, Surrogate

LEAST_SHARED = 0.34  # of a space's hyperparameters that some known task has
MISFIT = 6.0  # log odds of nothing known against all that is known, from which on the latter is given up
FEWEST = 5  # observations that can speak against what is known


def unlike(surrogate: Surrogate, query: Query, evidence: float) -> str | None:
    """Why the known tasks say nothing about this one, in words; None: they do.

    Args:
        surrogate: what is known.
        query: what was observed.
        evidence: log density of that, as `Surrogate.believe` says.
    """
    names = set(query.axes)
    shared = max((len(family.shared(names)) for family in surrogate.families), default=0)
    if not surrogate.families:
        return "no task is known"
    if shared < LEAST_SHARED * len(names):
        return f"{shared} of {len(names)} hyperparameters are known"
    if len(query.observed) >= FEWEST and surrogate.believe(query, blank=True)[1] - evidence > MISFIT:
        return f"the scores of {len(query.observed)} runs are unlike those of known tasks"
    return None
