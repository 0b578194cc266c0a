"""Multi-tensor optimizer ops: one file for each op, with its schema, PyTorch reference, Triton step and paper.

`torch.ops.metafast.<op>` runs the best backend of the tensors' device; `resolve` names one.
"""

from __future__ import annotations

from typing import Any

from . import _native
from . import adam as _adam
from . import adam_tangents as _adam_tangents
from . import grad_squares as _grad_squares
from . import hyper_adam as _hyper_adam
from . import hyper_rate as _hyper_rate
from . import hyper_sgd as _hyper_sgd
from . import inner_loop as _inner_loop
from . import inner_loop_memory as _inner_loop_memory
from . import sgd as _sgd
from . import sgd_tangents as _sgd_tangents
from . import stream as _stream
from . import task_grad as _task_grad
from . import task_hvp as _task_hvp
from ._bucket import CHUNK, Layout, make_layout
from ._define import REGISTRY, Kernel, Op

__all__ = ["BACKENDS", "CHUNK", "REGISTRY", "Kernel", "Layout", "Op", "backend_report", "make_layout", "resolve"]

BACKENDS = ("reference", "cpu", "cuda", "triton")


def _triton_reason() -> str | None:
    """Why Triton cannot serve here, or None."""
    try:
        from . import _triton
    except ImportError as error:
        return f"the triton package is missing ({error}); `pip install metafast[triton]`"
    return _triton.unavailable()


def _choose(name: str, device: str, backend: str | None) -> tuple[str, str]:
    """(backend, reason) that serves an op on a device type."""
    native = _native.LIBRARIES.get(device)
    if backend is None:
        if native is not None and native.loaded:
            return device, f"native kernel from {native.reason}"
        if device == "cuda" and REGISTRY[name].triton is not None and _triton_reason() is None:
            return "triton", "no native CUDA library; Triton is there"
        why = native.reason if native is not None else "no native kernels for this device type"
        return "reference", why
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}, or None for the best")
    if backend in ("cpu", "cuda"):
        if backend != device:
            raise ValueError(f"backend={backend!r} cannot serve tensors on {device!r}; move them, or use backend=None")
        assert native is not None
        if not native.loaded:
            raise ValueError(f"backend={backend!r} is missing here ({native.reason}): {_native.HOW_TO_BUILD}")
    if backend == "triton":
        if REGISTRY[name].triton is None:
            raise ValueError(f"backend='triton' has no kernel for {name}; use backend=None")
        reason = _triton_reason()
        if reason is not None:
            raise ValueError(f"backend='triton' is missing here: {reason}")
    return backend, "asked for"


def resolve(name: str, device: str, backend: str | None = None) -> Kernel:
    """The callable that runs op `name` for tensors of a device type.

    Args:
        name: an op, such as `"adam"`.
        device: the tensors' device type, `"cpu"` or `"cuda"`.
        backend: one of `BACKENDS`; None takes the native kernels, then Triton, then the reference.

    Raises:
        ValueError: a backend that was asked for is unknown, or cannot run here.
    """
    chosen, _ = _choose(name, device, backend)
    op = REGISTRY[name]
    if chosen == "triton":
        assert op.triton is not None
        return op.triton
    if chosen == "reference":
        if backend is None and device in _native.LIBRARIES:
            _native.warn_missing(device)
        return op.reference
    overload: Kernel = op.overload
    return overload


def backend_report() -> list[dict[str, Any]]:
    """Which backend serves which op on which device type, and why: what `metafast env` prints."""
    return [
        {"op": name, "device": device, "backend": backend, "reason": reason}
        for name in REGISTRY
        for device in ("cpu", "cuda")
        for backend, reason in [_choose(name, device, None)]
    ]
