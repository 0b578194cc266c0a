"""Regularizers whose magnitudes a tuner moves while training: penalties, smoothing, mixup, dropout, augmentation.

Each is an `nn.Module` whose magnitudes are leaf tensors that require a gradient, in its `state_dict` and not among its
`parameters()`. `tune()` returns what goes into the `tune` of an `OnlineTuner`, in the right space and bounds. Random
numbers are those of PyTorch's global generators.
"""

from metafast.tune.regularizers._augment import Augment
from metafast.tune.regularizers._dropout import ConcreteDropout, replace_dropout
from metafast.tune.regularizers._l2 import L2
from metafast.tune.regularizers._label_smoothing import LabelSmoothingCrossEntropy
from metafast.tune.regularizers._mixup import Mixup

__all__ = ["L2", "Augment", "ConcreteDropout", "LabelSmoothingCrossEntropy", "Mixup", "replace_dropout"]
