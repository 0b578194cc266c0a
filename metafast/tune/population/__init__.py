"""Populations, for hyperparameters that have no gradient: batch sizes, layers, widths, names of things.

`PB2` changes values while its members train; `ASHA` gives up trainings whose values are not good enough. A member is a
function of the user's, in which an `OnlineTuner` may tune what has a gradient.
"""

from metafast._dimensions import Choice, FloatRange, IntRange
from metafast.tune.population._asha import ASHA
from metafast.tune.population._member import Leg, Member
from metafast.tune.population._pb2 import PB2
from metafast.tune.population._ray import to_ray
from metafast.tune.population._result import Found, PopulationResult

__all__ = [
    "ASHA",
    "PB2",
    "Choice",
    "FloatRange",
    "Found",
    "IntRange",
    "Leg",
    "Member",
    "PopulationResult",
    "to_ray",
]
