"""metafast: fast meta-learning for PyTorch.

`metafast.optim` has SGD, Adam and AdamW whose learning rate adapts itself in the same memory pass; `metafast.runs`
records every run, `metafast.data` loads data, and `metafast.plots` draws results.
"""

from __future__ import annotations

from . import ops, optim

__version__ = "0.1.0"
__all__ = ["__version__", "ops", "optim"]
