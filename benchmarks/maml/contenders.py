"""Everything that is timed: metafast, PyTorch's ways, the peers and JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.peers.maml_problem import MetaGradient, Problem

CONVOLUTIONAL = ("omniglot", "miniimagenet", "tiny_conv", "tiny_pool")
DENSE = ("sinusoid", "tiny_mlp")


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: what the table says.
        source: `module:function`, imported only in the process that measures it; the function takes a problem.
        needs: package or module to import.
        workloads: where it takes part; None everywhere.
        orders: the orders that it has.
        kind: `"ours"`, `"torch"`, `"jax"` or `"peer"`.
        fetched: a check beyond `needs`, `module:function`.
    """

    name: str
    source: str
    needs: str | None = None
    workloads: tuple[str, ...] | None = None
    orders: tuple[int, ...] = (1, 2)
    kind: str = "peer"
    fetched: str | None = None

    def missing(self) -> str | None:
        """Why it cannot run here; None when it can."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if self.fetched is not None and not _resolve(self.fetched)():
            return f"not there: python -m {self.fetched.split(':')[0]} gets it"
        return None

    def load(self) -> Callable[[Problem], MetaGradient]:
        """Its builder, with everything that it needs imported."""
        if self.needs is not None:
            import_module(self.needs)
        builder: Any = _resolve(self.source)
        return builder

    def build(self, problem: Problem) -> MetaGradient:
        """The function that is timed."""
        return self.load()(problem)


def _resolve(source: str) -> Callable[..., object]:
    module, _, function = source.partition(":")
    found: Callable[..., object] = getattr(import_module(module), function)
    return found


_PEERS, _OURS = "benchmarks.peers.maml_", "benchmarks.maml.ours:"
CONTENDERS = (
    Contender("metafast", _OURS + "build", kind="ours"),
    Contender("metafast, recomputing", _OURS + "build_recomputing", kind="ours", workloads=CONVOLUTIONAL),
    Contender("metafast, generic loop", _OURS + "build_loop", kind="ours"),
    Contender("metafast, generic vmap", _OURS + "build_vmap", kind="ours", workloads=DENSE),
    Contender(
        "learn2learn", _PEERS + "learn2learn:build", fetched=_PEERS + "learn2learn:available",
    ),
    Contender("plain torch loop", _PEERS + "loop:build", kind="torch"),
    Contender("plain torch loop, tuned malloc", _PEERS + "loop:build_tuned", kind="torch"),
    Contender("higher", _PEERS + "higher:build", needs="higher"),
    Contender("torchopt", _PEERS + "torchopt:build", needs="torchopt", orders=(2,)),
    Contender("parallel-metalearn", _PEERS + "parallel:build", needs="metalearn"),
    Contender("torch.func vmap", _PEERS + "func:build", kind="torch"),
    Contender("torch.func vmap, torch.compile", _PEERS + "func:build_compiled", kind="torch", workloads=DENSE),
    Contender("JAX vmap", _PEERS + "jax:build_vmap", needs="jax", kind="jax", workloads=DENSE),
    Contender("JAX scan", _PEERS + "jax:build_scan", needs="jax", kind="jax"),
)  # fmt: skip
BY_NAME = {c.name: c for c in CONTENDERS}
