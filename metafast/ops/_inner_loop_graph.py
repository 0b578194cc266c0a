"""`inner_loop` as CUDA graphs: a whole meta-gradient is one launch by the host instead of some hundreds.

A graph holds on to the addresses it was captured with, so that a call copies its inputs to tensors of the graph,
replays it, and copies the outputs back; both are small beside the work. Everything that is no device tensor (the
program, the number of steps, the query weights, ...) is part of the graph: another value means another graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _program
from .inner_loop import OP

Signature = tuple[Any, ...]

_ARGUMENTS = OP.overload._schema.arguments
_NAMES = [argument.name for argument in _ARGUMENTS]
_OUTPUTS = [i for i, a in enumerate(_ARGUMENTS) if a.alias_info is not None and a.alias_info.is_write]
_SEED = _NAMES.index("seed")


def signature(args: tuple[Any, ...]) -> Signature:
    """What two calls must have in common to share a graph."""
    parts: list[Any] = []
    for arg in args:
        if not isinstance(arg, Tensor):
            parts.append(arg)
        elif arg.device.type == "cpu":  # the host plans from it, so its values count
            parts.append((arg.dtype, tuple(arg.shape), arg.contiguous().numpy().tobytes()))
        else:
            parts.append((arg.dtype, tuple(arg.shape), arg.device))
    if not uses_seed(args):
        parts[_SEED] = None
    return tuple(parts)


def uses_seed(args: tuple[Any, ...]) -> bool:
    """Whether the program draws random numbers, which a graph would repeat."""
    program: Tensor = args[0]
    values, params = int(program[2]), int(program[3])
    first = _program.HEADER + _program.VALUE * values + _program.PARAM * params
    return bool((program[first :: _program.INSTRUCTION] == _program.Opcode.DROPOUT).any())


class GraphedInnerLoop:
    """One call of `inner_loop`, captured; called with new arguments of the same signature it replays them.

    Args:
        args: the op's arguments; device tensors are copied, and are not written to.
        pool: memory that several graphs may share when they are replayed on one stream.
        run: the op that is captured.
    """

    def __init__(self, args: tuple[Any, ...], pool: Any = None, run: Callable[..., None] | None = None) -> None:
        run = OP.overload if run is None else run
        self.args = [_own(arg) for arg in args]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # loads kernels, which a capture may not
            run(*self.args)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            run(*self.args)

    def __call__(self, *args: Any) -> None:
        """Runs the graph on new inputs and fills the outputs among `args`."""
        for index, (own, new) in enumerate(zip(self.args, args, strict=True)):
            if isinstance(own, Tensor) and own.is_cuda and index not in _OUTPUTS:
                own.copy_(new)
        self.graph.replay()
        for index in _OUTPUTS:
            if args[index] is not None:
                args[index].copy_(self.args[index])


class InnerLoopGraphs:
    """A stand-in for the op that captures what it sees a second time: same arguments, same results.

    Calls on the CPU, and the first of each signature, run the op itself. At most `capacity` graphs are kept, the last
    used ones; they share their memory.

    Example:
        >>> from metafast import ops
        >>> run = InnerLoopGraphs()
        >>> run(*ops.REGISTRY["inner_loop"].sample_inputs()[0])  # on the CPU: no graph
        >>> len(run)
        0
    """

    def __init__(self, capacity: int = 8, run: Callable[..., None] | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1")
        self.capacity = capacity
        self.run: Callable[..., None] = OP.overload if run is None else run
        self._seen: OrderedDict[Signature, GraphedInnerLoop | None] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._seen.values())

    def __call__(self, *args: Any) -> None:
        """Runs `inner_loop` on `args`."""
        weights = args[_NAMES.index("weights")]
        if not weights.is_cuda or torch.cuda.is_current_stream_capturing():
            return self.run(*args)
        key = signature(args)
        if key not in self._seen:
            self._seen[key] = None
            while len(self._seen) > self.capacity:
                self._seen.popitem(last=False)
            return self.run(*args)
        graph = self._seen[key]
        if graph is None:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = self._seen[key] = GraphedInnerLoop(args, self._pool, self.run)
        self._seen.move_to_end(key)
        return graph(*args)


def _own(arg: Any) -> Any:
    """A copy of a device tensor; what the host reads stays as it is."""
    if isinstance(arg, Tensor) and arg.is_cuda:
        return arg.detach().clone(memory_format=torch.contiguous_format)
    return arg
