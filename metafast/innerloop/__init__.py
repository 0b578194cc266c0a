"""Inner loops: K steps of adaptation for a whole batch of tasks at once, and their exact meta-gradient.

`InnerLoop(model)` compiles a supported `nn.Module` to a flat program of task-batched layers with hand-written
second-order passes; every other module runs on `torch.func`, with the same interface and the same numbers.
"""

from metafast.innerloop._inner_loop import InnerLoop
from metafast.innerloop._outcome import Explanation, Outcome
from metafast.innerloop._rules import SGD, Adam

__all__ = ["SGD", "Adam", "Explanation", "InnerLoop", "Outcome"]
