"""What a hypergradient method does, and the methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from metafast.tune._dynamics import State
from metafast.tune._knobs import Knob
from metafast.tune._problem import Call, Gradient, Problem

Validate = Callable[[State], Gradient]  # the validation gradient at the weights of a state


class Method:
    """A way to the hypergradient; a tuner has one object of it, bound to the hyperparameters that use it.

    `observe` sees every training step before the optimizer moves; `hypergradient` follows on the calls that are due,
    and returns a derivative of the validation loss after this step for each knob, in the space where it is learned.
    Neither changes the model.
    """

    keeps = False  # whether steps have to be made again after they are over

    def bind(self, problem: Problem, knobs: Sequence[Knob], every: int) -> None:
        """Takes what it works on; raises for what it cannot do."""
        if hasattr(self, "problem"):
            raise ValueError(f"method: this {type(self).__name__} belongs to another tuner; make one for each")
        self.problem = problem
        self.knobs = list(knobs)
        self.every = every

    @property
    def replays(self) -> bool:
        """Whether training losses are computed again, which needs the random states before them."""
        return self.keeps

    def needs_graph(self, due: bool) -> bool:
        """Whether the next training gradient must be differentiable; `due`: a hypergradient follows."""
        return False

    def observe(self, call: Call) -> None:
        """Sees a training step."""

    def hypergradient(self, call: Call, validate: Validate) -> dict[str, Tensor]:
        """The hypergradient of each knob, after `observe` of the same call."""
        raise NotImplementedError

    def takes_step(self, call: Call) -> bool:
        """Whether `step` can stand in the place of the optimizer's step, for a call that nobody else observes later."""
        return False

    def step(self, call: Call, validate: Validate | None) -> dict[str, Tensor]:
        """Makes the optimizer's step too, instead of `observe` and, where `validate` is given, `hypergradient`.

        What may fail comes before anything is changed.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the past."""

    def mark(self) -> Any:
        """What `restore` needs to take back the next `observe` and `hypergradient`."""
        return None

    def restore(self, mark: Any) -> None:
        """Goes back to a mark."""

    def state_dict(self) -> dict[str, Any]:
        """What the next calls depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""


def make_method(method: Any) -> Method:
    """The method of a name, or the object itself."""
    from metafast.tune import METHODS

    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(map(repr, METHODS))} or an object such as "
            f"metafast.tune.Implicit(terms=10), got {method!r}"
        )
    return METHODS[method]()
