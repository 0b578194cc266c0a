"""The MAML family: initializations, rates and rules that are learned over tasks, on `metafast.innerloop`.

Every algorithm is a module whose parameters are the meta-parameters; called with a batch of tasks it returns
`(loss, metrics)`, and `loss.backward()` gives the meta-gradient. `ALGORITHMS` lists them by name.
"""

from metafast.maml._alfa import ALFA
from metafast.maml._clone import Learner
from metafast.maml._evaluate import Evaluation, evaluate
from metafast.maml._learner import MetaLearner
from metafast.maml._maml import ANIL, BOIL, FOMAML, MAML, MetaSGD
from metafast.maml._mamlpp import MAMLpp, cosine_schedule
from metafast.maml._protomaml import ProtoMAML
from metafast.maml._reptile import IMAML, Reptile
from metafast.maml.baselines import ProtoNet
from metafast.maml.trainer import Trainer, Training

ALGORITHMS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "metasgd": MetaSGD,
    "mamlpp": MAMLpp,
    "imaml": IMAML,
    "alfa": ALFA,
    "protomaml": ProtoMAML,
}

__all__ = [
    "ALFA",
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "Evaluation",
    "Learner",
    "MAMLpp",
    "MetaLearner",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "Trainer",
    "Training",
    "cosine_schedule",
    "evaluate",
]
