"""metafast: fast meta-learning for PyTorch.

`metafast.optim` has SGD, Adam and AdamW whose learning rate adapts itself in the same memory pass; `metafast.maml` has
the MAML family on `metafast.innerloop`, which adapts a whole meta-batch of tasks in one program; `metafast.tune` tunes
hyperparameters during one training run; `metafast.runs` records every run, `metafast.data` loads data and samples
few-shot tasks, and `metafast.plots` draws results.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, innerloop, maml, metrics, models, ops, optim, plots, runs, tune

__version__ = "0.1.0"
__all__ = ["__version__", "data", "innerloop", "maml", "metrics", "models", "ops", "optim", "plots", "runs", "tune"]


def __getattr__(name: str) -> Any:
    # At first use, so that `metafast --help` does not wait for torch.
    if name in __all__:
        return import_module(f"metafast.{name}")
    raise AttributeError(f"module 'metafast' has no attribute {name!r}")
