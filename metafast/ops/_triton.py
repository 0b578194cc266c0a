"""The Triton backend: one driver that takes a rule's step as a constexpr jit function. CUDA has the fast kernels.

A program takes one chunk, in fp32, and writes its four sums; a last launch adds them tensor by tensor in a fixed order.
Set TRITON_INTERPRET=1 before the first import to run it on CPU tensors.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _bucket

try:
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    jit = triton.jit
except ImportError as error:  # the steps are then plain functions that nobody calls
    _missing: str | None = f"the triton package is missing ({error}); `pip install metafast[triton]`"
    tl = None

    def jit(fn: Any = None, **_: Any) -> Any:
        return fn if fn is not None else jit

else:
    _missing = None

P, G, S0, S1, S2, S3 = 1, 2, 4, 8, 16, 32  # streams, as in csrc/rules/rule.h
BLOCK = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1."""
    return _missing is None and isinstance(_step_kernel, InterpretedFunction)


def unavailable() -> str | None:
    """Why Triton cannot run here, or None."""
    if _missing is not None:
        return _missing
    if not torch.cuda.is_available() and not interpreted():
        return "no CUDA device; TRITON_INTERPRET=1 in the environment interprets it on the CPU"
    return None


@jit
def mix32(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@jit
def rounding_key(seed_low, seed_high, slot, step):
    mixed = mix32(seed_low.to(tl.uint32) ^ mix32(seed_high.to(tl.uint32)))
    return mix32(mixed + slot.to(tl.uint32) * 0x9E3779B9 + step.to(tl.uint32) * 0x85EBCA6B)


@jit
def rounding_bits(word, STREAM: tl.constexpr):
    other = word * 0x9E3779B1 + 0x7F4A7C15
    if STREAM == 0:
        bits = other >> 16
    elif STREAM == 1:
        bits = word & 0xFFFF
    elif STREAM == 2:
        bits = word >> 16
    elif STREAM == 3:
        bits = (other >> 8) & 0xFFFF
    else:
        bits = (other >> 4) & 0xFFFF
    return bits


@jit
def store(pointer, value, mask, word, STREAM: tl.constexpr, STOCHASTIC: tl.constexpr):
    if pointer.dtype.element_ty == tl.bfloat16:
        u = value.to(tl.uint32, bitcast=True)
        bits = rounding_bits(word, STREAM) if STOCHASTIC else 0x7FFF + ((u >> 16) & 1)
        rounded = tl.where(value == value, (u + bits) >> 16, 0x7FC0)
        tl.store(pointer, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@jit
def adam_bias(t, log_beta1, log_beta2, eps):
    late = tl.maximum(t, 1.0).to(tl.float64)
    root = tl.sqrt(1.0 - tl.exp(late * log_beta2))
    k = (root / (1.0 - tl.exp(late * log_beta1))).to(tl.float32)
    e = tl.maximum((eps * root).to(tl.float32), 1e-18)
    return tl.where(t < 1.0, 0.0, k), tl.where(t < 1.0, 1.0, e)


@jit(do_not_specialize=["item", "first_chunk", "numel", "seed_low", "seed_high"])
def _step_kernel(
    p, copy, g, s0, s1, s2, s3, items, partials, step, lr, grad_scale, found_inf, clip,
    item, first_chunk, numel, seed_low, seed_high, lr_scale, options,
    HYPER: tl.constexpr, RULE: tl.constexpr, FLAGS: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr,
    STATS: tl.constexpr, COUNTS: tl.constexpr, LR_PER_SLOT: tl.constexpr, MAXIMIZE: tl.constexpr,
    MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if found_inf is not None:  # noqa: SIM102 (a missing tensor is known when compiling, its value is not)
        if tl.load(found_inf) != 0.0:
            return
    chunk = tl.program_id(0).to(tl.int64)
    slot = tl.load(items + 3 * item)
    offset = tl.load(items + 3 * item + 1)
    t = tl.load(step + slot)
    if COUNTS:
        t += 1.0
    g_mul = 1.0
    if MAXIMIZE:
        g_mul = -1.0
    if clip is not None:
        g_mul = g_mul * tl.load(clip)
    if grad_scale is not None:
        g_mul = g_mul / tl.load(grad_scale)
    rate = tl.load(lr + slot) if LR_PER_SLOT else tl.load(lr)
    h = HYPER(options, FLAGS, t, (rate * lr_scale).to(tl.float32), g_mul)
    if STOCHASTIC:
        key = rounding_key(seed_low, seed_high, slot, t)

    gg = tl.zeros([BLOCK], tl.float32)
    gu = tl.zeros([BLOCK], tl.float32)
    uu = tl.zeros([BLOCK], tl.float32)
    pp = tl.zeros([BLOCK], tl.float32)
    none = tl.zeros([BLOCK], tl.float32)
    for start in range(0, CHUNK, BLOCK):
        i = chunk * CHUNK + start + tl.arange(0, BLOCK)
        mask = i < numel
        a = offset + i
        own = a if MASTER else i
        gi, pi, x0, x1, x2, x3 = none, none, none, none, none, none
        if READS & 2:
            gi = tl.load(g + i, mask=mask, other=0.0).to(tl.float32)
        if READS & 1:
            pi = tl.load(p + own, mask=mask, other=0.0).to(tl.float32)
            pp += pi * pi
        if READS & 4:
            x0 = tl.load(s0 + a, mask=mask, other=0.0).to(tl.float32)
        if READS & 8:
            x1 = tl.load(s1 + a, mask=mask, other=0.0).to(tl.float32)
        if READS & 16:
            x2 = tl.load(s2 + a, mask=mask, other=0.0).to(tl.float32)
        if READS & 32:
            x3 = tl.load(s3 + a, mask=mask, other=0.0).to(tl.float32)
        gi, u, pi, x0, x1, x2, x3 = RULE(h, FLAGS, gi, pi, x0, x1, x2, x3)
        if STATS:
            gg += gi * gi
            gu += gi * u
            uu += u * u
        word = none
        if STOCHASTIC:
            word = mix32((i.to(tl.uint32) ^ key) + (i >> 32).to(tl.uint32) * 0x9E3779B9)
        if WRITES & 1:
            if MASTER:
                tl.store(p + own, pi, mask=mask)
                store(copy + i, pi, mask, word, 0, False)
            else:
                store(p + own, pi, mask, word, 0, STOCHASTIC)
        if WRITES & 4:
            store(s0 + a, x0, mask, word, 1, STOCHASTIC)
        if WRITES & 8:
            store(s1 + a, x1, mask, word, 2, STOCHASTIC)
        if WRITES & 16:
            store(s2 + a, x2, mask, word, 3, STOCHASTIC)
        if WRITES & 32:
            store(s3 + a, x3, mask, word, 4, STOCHASTIC)
    row = partials + 4 * (first_chunk + chunk)
    if STATS:
        tl.store(row, tl.sum(gg.to(tl.float64)))
        tl.store(row + 1, tl.sum(gu.to(tl.float64)))
        tl.store(row + 2, tl.sum(uu.to(tl.float64)))
    if READS & 1:
        tl.store(row + 3, tl.sum(pp.to(tl.float64)))


@jit(do_not_specialize=["chunk_count"])
def _finish_kernel(
    items, chunks, partials, step, stats, found_inf, chunk_count,
    FROM: tl.constexpr, TO: tl.constexpr, COUNTS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if found_inf is not None:  # noqa: SIM102 (a missing tensor is known when compiling, its value is not)
        if tl.load(found_inf) != 0.0:
            return
    item = tl.program_id(0).to(tl.int64)
    slot = tl.load(items + 3 * item)
    for k in tl.static_range(FROM, TO):
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, BLOCKS * BLOCK, BLOCK):
            row = start + tl.arange(0, BLOCK).to(tl.int64)
            mine = tl.load(chunks + 3 * row, mask=row < chunk_count, other=-1) == item
            total += tl.load(partials + 4 * row + k, mask=mine, other=0.0)
        tl.store(stats + 4 * slot + k, tl.sum(total))
    if COUNTS:
        tl.store(step + slot, tl.load(step + slot) + 1.0)


def log_beta(beta: float) -> float:
    """ln beta, finite for a beta of 0."""
    return math.log(beta) if beta > 0 else -1e30


@torch.no_grad()
def run(
    hyper: Any,
    rule: Any,
    flags: tuple[int, ...],
    options: tuple[float, ...],
    reads: int,
    writes: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    arenas: Sequence[Tensor | None],
    master: Tensor | None,
    step: Tensor,
    stats: Tensor,
    partials: Tensor,
    items: Tensor,
    chunks: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
    lr_scale: float,
    maximize: bool,
    seed: int,
    *,
    has_stats: bool = True,
    counts_step: bool = True,
) -> None:
    """Runs `rule` over a bucket, a launch for each tensor; `hyper` gives its scalars from `options`, step and rate."""
    if len(items) != len(params):
        raise ValueError(f"{len(params)} params and {len(items)} items must agree")
    # The host's own sizes: those in `items` would have to be fetched from the device.
    _bucket.check(params, grads, torch.tensor([[0, 0, p.numel()] for p in params]).reshape(-1, 3))
    for tensor in (*params, *grads):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"backend='triton' takes float32, bfloat16 and float16, not {tensor.dtype}")
    touched = reads | writes
    s = [arena if touched & (S0 << k) else None for k, arena in enumerate((*arenas, None, None, None, None)[:4])]
    counts = [-(-param.numel() // _bucket.CHUNK) for param in params]
    if sum(counts) != len(chunks):
        raise ValueError(f"chunks has {len(chunks)} rows, the tensors need {sum(counts)}; use metafast.ops.make_layout")
    options = tuple(map(float, options))
    first_chunk = 0
    for item, (param, grad, count) in enumerate(zip(params, grads, counts, strict=True)):
        if count > 0:
            _step_kernel[(count,)](
                param if master is None else master, None if master is None else param, grad, *s,
                items, partials, step, lr, grad_scale, found_inf, clip,
                item, first_chunk, param.numel(), seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF,
                float(lr_scale), options,
                HYPER=hyper, RULE=rule, FLAGS=flags, READS=reads, WRITES=writes, STATS=has_stats, COUNTS=counts_step,
                LR_PER_SLOT=lr.numel() > 1, MAXIMIZE=maximize, MASTER=master is not None, STOCHASTIC=seed >= 0,
                CHUNK=_bucket.CHUNK, BLOCK=BLOCK,
            )  # fmt: skip
        first_chunk += count
    if len(items):
        _finish_kernel[(len(items),)](
            items, chunks, partials, step, stats, found_inf, len(chunks),
            FROM=0 if has_stats else 3, TO=4 if reads & P else 3, COUNTS=counts_step,
            BLOCKS=-(-len(chunks) // BLOCK), BLOCK=BLOCK,
        )  # fmt: skip
