"""Chooses the engine for a model and a batch: the compiled program where there is one, else the faster generic form."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metafast.innerloop._call import Call, Result
from metafast.innerloop._compiled import Compiled
from metafast.innerloop._generic import Generic
from metafast.innerloop._layout import Layout
from metafast.innerloop._loss import LossKind
from metafast.innerloop._outcome import Explanation
from metafast.innerloop._trace import Traced, Unsupported, trace
from metafast.ops._native import LIBRARIES

Engine = Compiled | Generic
VMAP_BYTES = 1 << 30  # weights of all tasks and steps that "auto" lets vmap hold at once
ENGINES = ("auto", "compiled", "reference", "loop", "vmap")


class Engines:
    """The engines of one model, by the shape of the examples and the modules' training flags.

    Args:
        model, layout, loss: what they run.
        engine: one of `ENGINES`.
        batch_norm: `"auto"`, `"batch"` or `"running"`.
    """

    def __init__(self, model: nn.Module, layout: Layout, loss: LossKind, engine: str, batch_norm: str) -> None:
        self.model, self.layout, self.loss, self.engine, self.batch_norm = model, layout, loss, engine, batch_norm
        self.modules = list(model.modules())
        self.loop = Generic(model, layout, loss, batch_norm)
        self.vmap = Generic(model, layout, loss, batch_norm, vectorized=True)
        self.chosen: dict[Any, tuple[Engine, Explanation]] = {}
        self.explanation = Explanation("undecided", "no batch was seen yet")
        self.memory: Tensor | None = None  # of the engine chosen last, where it is known

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles choose anew: programs hold kernels."""
        return {**self.__dict__, "chosen": {}, "memory": None}

    def key(self, x: Tensor) -> Any:
        return x.shape[2:], x.dtype, tuple([module.training for module in self.modules])

    def choose(self, x: Tensor) -> Engine:
        """The engine for tasks with examples `x` `[T, N, ...]`.

        Raises:
            ValueError: the engine that was asked for cannot run the model.
        """
        key = self.key(x)
        found = self.chosen.get(key)
        if found is None:
            found = self.chosen[key] = self._choose(x)
        self.explanation = found[1]
        self.memory = found[0].memory if isinstance(found[0], Compiled) else None
        return found[0]

    def explain(self) -> Explanation:
        """What was chosen last and why, with the memory of its last call."""
        held = 0 if self.memory is None else int(self.memory)
        return replace(self.explanation, memory=held) if held else self.explanation

    def _choose(self, x: Tensor) -> tuple[Engine, Explanation]:
        if self.engine in ("loop", "vmap"):
            return (self.vmap if self.engine == "vmap" else self.loop), Explanation(self.engine, "asked for")
        try:
            compiled = Compiled(self._trace(x), self.model, "reference" if self.engine == "reference" else None)
        except Unsupported as why:
            if self.engine != "auto":
                raise ValueError(f"engine={self.engine!r} cannot run this model: {why}; use engine='auto'") from None
            return self.loop, Explanation("loop", f"no compiled form: {why}")
        name = "reference" if self.engine == "reference" else "compiled"
        reason = "asked for" if self.engine != "auto" else "every layer has a compiled form"
        library = LIBRARIES.get(x.device.type)
        if name == "compiled" and (library is None or not library.loaded):
            reason += f"; run by the slow PyTorch reference, without native kernels for {x.device.type}"
        return compiled, Explanation(name, reason, compiled.traced.layers)

    def _trace(self, x: Tensor) -> Traced:
        dtypes = {p.dtype for p in self.layout.params()}
        if not dtypes <= {torch.float32, torch.float64} or len(dtypes) > 1:
            names = ", ".join(sorted(map(str, dtypes)))
            raise Unsupported(f"model: its parameters are {names}; only float32 or float64 has a compiled form")
        if self.loss.kind is None:
            raise Unsupported(f"loss: {self.loss.name} is a function of the user")
        return trace(
            self.model, x.shape[2:], dtype=x.dtype, adapted=self.layout.adapted.__contains__, loss=self.loss.kind,
            label_smoothing=self.loss.smoothing, batch_norm=self.batch_norm,
        )  # fmt: skip

    def run(self, engine: Engine, call: Call) -> tuple[Engine, Result]:
        """Runs a call, and says by what; where the choice is open, loop and vmap both run and the faster one stays."""
        if isinstance(engine, Compiled):
            return engine, engine.run(call)
        why_loop = _why_loop(call)
        if why_loop is not None:
            if engine.vectorized:
                self.explanation = replace(self.explanation, engine="loop", reason=f"vmap cannot: {why_loop}")
            return self.loop, self.loop.run(call)
        if engine.vectorized:
            try:
                return engine, engine.run(call)
            except (RuntimeError, ValueError, IndexError) as error:
                result = self.loop.run(call)  # an error of the model itself is raised again here
                return self._settle(call, Explanation("loop", f"vmap cannot: {_first_line(error)}")), result
        tried = self.explanation.seconds or "vmap cannot" in self.explanation.reason
        if self.engine != "auto" or tried or call.batch.support_x.shape[0] < 2:
            return engine, engine.run(call)
        held = self.layout.numel * call.batch.support_x.shape[0] * (call.steps + 2) * call.weights.element_size()
        if held > VMAP_BYTES:
            reason = (
                f"{self.explanation.reason}; vmap cannot: the weights of all tasks and steps are {held / 1e9:.1f} GB"
            )
            return self._settle(call, Explanation("loop", reason)), self.loop.run(call)
        return self._measure(call)

    def _measure(self, call: Call) -> tuple[Engine, Result]:
        seconds: dict[str, float] = {}
        results: dict[str, Result] = {}
        reason = self.explanation.reason
        for name, engine in (("loop", self.loop), ("vmap", self.vmap)):
            try:
                for _ in range(2):  # the first warms up
                    begin = time.perf_counter()
                    results[name] = engine.run(call)
                    if call.weights.is_cuda:
                        torch.cuda.synchronize()
                    seconds[name] = time.perf_counter() - begin
            except (RuntimeError, ValueError, IndexError) as error:
                if name == "loop":
                    raise
                settled = self._settle(call, Explanation("loop", f"{reason}; vmap cannot: {_first_line(error)}"))
                return settled, results["loop"]
        best = min(seconds, key=seconds.__getitem__)
        explanation = Explanation(best, f"{reason}; the faster of loop and vmap", (), seconds)
        return self._settle(call, explanation), results[best]

    def _settle(self, call: Call, explanation: Explanation) -> Engine:
        engine = self.vmap if explanation.engine == "vmap" else self.loop
        self.chosen[self.key(call.batch.support_x)] = (engine, explanation)
        self.explanation = explanation
        return engine


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _why_loop(call: Call) -> str | None:
    """What only the loop over tasks can do."""
    batch = call.batch
    if batch.support_mask is not None or batch.query_mask is not None:
        return "tasks have different numbers of examples"
    if batch.classes is not None:
        return "tasks have different numbers of classes"
    return None
