"""The Triton kernels of `_triton_layers.py`.

One program takes one set of statistics (a channel of a batch norm, a group of an example), so that a pass reads its
maps twice and writes its result once. A ReLU behind a normalization runs along. `kept` holds six numbers of a set: the
mean, r = 1/sqrt(variance + eps), and the means of g, g x̂, ẋ and ẋ x̂, with g = weight dy and x̂ = (x - mean) r.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import jit, tl


@jit
def _place(e, s, SIZE, HW, C, GROUPS, KIND: tl.constexpr):
    """Where element e of set s lies in a task's map, its weight, and its example."""
    if KIND == 0:
        example = e // HW
        at = example * (C * HW) + s * HW + e % HW
        affine = e * 0 + s
    else:
        example = e * 0 + s // GROUPS
        at = s * SIZE + e
        affine = (s % GROUPS) * (SIZE // HW) + e // HW if KIND == 1 else e
    return at, affine, example


@jit
def _norm_forward(
    x, y, weight, bias, valid, kept, eps, N, C, HW, GROUPS, SIZE, AFFINE,
    KIND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += t * N * C * HW
    y += t * N * C * HW
    kept += (t * tl.num_programs(0) + s) * 6
    zero = tl.zeros([BLOCK], x.dtype.element_ty)
    total, count = zero, zero
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, _affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        ok = e < SIZE
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        total += tl.load(x + at, mask=ok, other=0.0)
        count += tl.where(ok, zero + 1, zero)
    n = tl.maximum(tl.sum(count), 1.0)
    mean = tl.sum(total) / n
    squares = zero
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, _affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        ok = e < SIZE
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        d = tl.where(ok, tl.load(x + at, mask=ok, other=0.0) - mean, zero)
        squares += d * d
    variance = tl.sum(squares) / n
    r = 1.0 / tl.sqrt(variance + tl.load(eps))
    tl.store(kept, mean)
    tl.store(kept + 1, r)
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, _example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        ok = e < SIZE
        out = (tl.load(x + at, mask=ok, other=0.0) - mean) * r
        if weight is not None:
            out *= tl.load(weight + t * AFFINE + affine, mask=ok, other=0.0)
        if bias is not None:
            out += tl.load(bias + t * AFFINE + affine, mask=ok, other=0.0)
        if RELU:
            out = tl.where(out <= 0.0, zero, out)
        tl.store(y + at, out, mask=ok)


@jit
def _norm_backward(
    x, y, dy, dx, weight, valid, kept, dw, db, N, C, HW, GROUPS, SIZE, AFFINE,
    KIND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    map_at = t * N * C * HW
    kept += (t * tl.num_programs(0) + s) * 6
    mean, r = tl.load(kept), tl.load(kept + 1)
    zero = tl.zeros([BLOCK], x.dtype.element_ty)
    total, product, count, plain, plain_product = zero, zero, zero, zero, zero
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        inside = e < SIZE
        ok = inside
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        hat = (tl.load(x + map_at + at, mask=inside, other=0.0) - mean) * r
        upper = tl.load(dy + map_at + at, mask=inside, other=0.0)
        if RELU:
            upper = tl.where(tl.load(y + map_at + at, mask=inside, other=0.0) <= 0.0, zero, upper)
        plain += upper
        plain_product += tl.where(inside, upper * hat, zero)
        g = upper
        if weight is not None:
            g = g * tl.load(weight + t * AFFINE + affine, mask=inside, other=0.0)
        total += tl.where(ok, g, zero)
        product += tl.where(ok, g * hat, zero)
        count += tl.where(ok, zero + 1, zero)
    n = tl.maximum(tl.sum(count), 1.0)
    a, b = tl.sum(total) / n, tl.sum(product) / n
    tl.store(kept + 2, a)
    tl.store(kept + 3, b)
    if KIND == 0:
        tl.store(dw + t * AFFINE + s, tl.sum(plain_product))
        tl.store(db + t * AFFINE + s, tl.sum(plain))
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        inside = e < SIZE
        ok = inside
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        hat = (tl.load(x + map_at + at, mask=inside, other=0.0) - mean) * r
        g = tl.load(dy + map_at + at, mask=inside, other=0.0)
        if RELU:
            g = tl.where(tl.load(y + map_at + at, mask=inside, other=0.0) <= 0.0, zero, g)
        if weight is not None:
            g = g * tl.load(weight + t * AFFINE + affine, mask=inside, other=0.0)
        tl.store(dx + map_at + at, tl.where(ok, r * (g - a - hat * b), zero), mask=inside)


@jit
def _norm_tangent(
    x, y, x_dot, y_dot, weight, weight_dot, bias_dot, valid, kept, N, C, HW, GROUPS, SIZE, AFFINE,
    KIND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    map_at = t * N * C * HW
    kept += (t * tl.num_programs(0) + s) * 6
    mean, r = tl.load(kept), tl.load(kept + 1)
    zero = tl.zeros([BLOCK], x.dtype.element_ty)
    total, product, count = zero, zero, zero
    if x_dot is not None:
        for start in range(0, SIZE, BLOCK):
            e = start + tl.arange(0, BLOCK)
            at, _affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
            ok = e < SIZE
            if valid is not None:
                ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
            v = tl.load(x_dot + map_at + at, mask=ok, other=0.0)
            hat = (tl.load(x + map_at + at, mask=ok, other=0.0) - mean) * r
            total += v
            product += tl.where(ok, v * hat, zero)
            count += tl.where(ok, zero + 1, zero)
    n = tl.maximum(tl.sum(count), 1.0)
    m, c = tl.sum(total) / n, tl.sum(product) / n
    tl.store(kept + 4, m)
    tl.store(kept + 5, c)
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, _example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        inside = e < SIZE
        hat = (tl.load(x + map_at + at, mask=inside, other=0.0) - mean) * r
        out = zero
        if x_dot is not None:
            out = r * (tl.load(x_dot + map_at + at, mask=inside, other=0.0) - m - hat * c)
            if weight is not None:
                out *= tl.load(weight + t * AFFINE + affine, mask=inside, other=0.0)
        if weight_dot is not None:
            out += hat * tl.load(weight_dot + t * AFFINE + affine, mask=inside, other=0.0)
        if bias_dot is not None:
            out += tl.load(bias_dot + t * AFFINE + affine, mask=inside, other=0.0)
        if RELU:
            out = tl.where(tl.load(y + map_at + at, mask=inside, other=0.0) <= 0.0, zero, out)
        tl.store(y_dot + map_at + at, out, mask=inside)


@jit
def _terms(
    x, y, x_dot, dy, dy_dot, weight, weight_dot, at, affine, inside, mean, r, m, c, zero, RELU: tl.constexpr
):  # fmt: skip
    """x̂, its derivative, dy and dẏ behind the ReLU, and g = γ dy with its derivative."""
    hat = (tl.load(x + at, mask=inside, other=0.0) - mean) * r
    hat_dot = zero
    if x_dot is not None:
        hat_dot = r * (tl.load(x_dot + at, mask=inside, other=0.0) - m - hat * c)
    upper = tl.load(dy + at, mask=inside, other=0.0)
    upper_dot = tl.load(dy_dot + at, mask=inside, other=0.0)
    if RELU:
        off = tl.load(y + at, mask=inside, other=0.0) <= 0.0
        upper, upper_dot = tl.where(off, zero, upper), tl.where(off, zero, upper_dot)
    g, g_dot = upper, upper_dot
    if weight is not None:
        gamma = tl.load(weight + affine, mask=inside, other=0.0)
        g, g_dot = g * gamma, g_dot * gamma
    if weight_dot is not None:
        g_dot += upper * tl.load(weight_dot + affine, mask=inside, other=0.0)
    return hat, hat_dot, upper, upper_dot, g, g_dot


@jit
def _norm_backward_tangent(
    x, y, x_dot, dy, dy_dot, dx_dot, weight, weight_dot, valid, kept, dw, db, N, C, HW, GROUPS, SIZE, AFFINE,
    KIND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    map_at = t * N * C * HW
    row = t * AFFINE
    kept += (t * tl.num_programs(0) + s) * 6
    mean, r, a, b = tl.load(kept), tl.load(kept + 1), tl.load(kept + 2), tl.load(kept + 3)
    m, c = tl.load(kept + 4), tl.load(kept + 5)
    zero = tl.zeros([BLOCK], x.dtype.element_ty)
    total, product, count, plain, plain_product = zero, zero, zero, zero, zero
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        inside = e < SIZE
        ok = inside
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        hat, hat_dot, upper, upper_dot, g, g_dot = _terms(
            x, y, x_dot, dy, dy_dot, weight, weight_dot, map_at + at, row + affine, inside, mean, r, m, c, zero, RELU
        )
        plain += upper_dot
        plain_product += tl.where(inside, upper_dot * hat + upper * hat_dot, zero)
        total += tl.where(ok, g_dot, zero)
        product += tl.where(ok, g_dot * hat + g * hat_dot, zero)
        count += tl.where(ok, zero + 1, zero)
    n = tl.maximum(tl.sum(count), 1.0)
    a_dot, b_dot = tl.sum(total) / n, tl.sum(product) / n
    if KIND == 0:
        tl.store(dw + row + s, tl.sum(plain_product))
        tl.store(db + row + s, tl.sum(plain))
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        at, affine, example = _place(e, s, SIZE, HW, C, GROUPS, KIND)
        inside = e < SIZE
        ok = inside
        if valid is not None:
            ok = ok & tl.load(valid + t * N + example, mask=ok, other=0).to(tl.int1)
        hat, hat_dot, _upper, _upper_dot, g, g_dot = _terms(
            x, y, x_dot, dy, dy_dot, weight, weight_dot, map_at + at, row + affine, inside, mean, r, m, c, zero, RELU
        )
        out = r * (g_dot - a_dot - hat_dot * b - hat * b_dot) - r * c * r * (g - a - hat * b)
        tl.store(dx_dot + map_at + at, tl.where(ok, out, zero), mask=inside)


@jit
def _affine_sums(
    x, y, x_dot, dy, dy_dot, kept, dw, db, N, C, HW, GROUPS, ROWS, COLUMNS,
    KIND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a weight and a bias that all examples share; with dẏ (and ẋ) their derivatives.

    A program takes WIDTH neighbouring weights: one channel of a group norm, many elements of a layer norm.
    """
    t = tl.program_id(1).to(tl.int64)
    map_at = t * N * C * HW
    column = (tl.program_id(0) * WIDTH + tl.arange(0, WIDTH))[None, :]
    total = tl.zeros([BLOCK, WIDTH], x.dtype.element_ty)
    product = total
    for start in range(0, ROWS, BLOCK):
        e = (start + tl.arange(0, BLOCK))[:, None]
        ok = (e < ROWS) & (column < COLUMNS)
        if KIND == 1:
            example = e // HW
            at = example * (C * HW) + column * HW + e % HW
            s = example * GROUPS + column // (C // GROUPS)
        else:
            at = e * COLUMNS + column
            s = e + column * 0
        row = kept + (t * N * GROUPS + s) * 6
        mean, r = tl.load(row, mask=ok, other=0.0), tl.load(row + 1, mask=ok, other=0.0)
        hat = (tl.load(x + map_at + at, mask=ok, other=0.0) - mean) * r
        upper = tl.load(dy + map_at + at, mask=ok, other=0.0)
        if RELU:
            off = tl.load(y + map_at + at, mask=ok, other=0.0) <= 0.0
            upper = tl.where(off, 0.0, upper)
        if dy_dot is None:
            total += upper
            product += upper * hat
        else:
            upper_dot = tl.load(dy_dot + map_at + at, mask=ok, other=0.0)
            if RELU:
                upper_dot = tl.where(off, 0.0, upper_dot)
            total += upper_dot
            product += upper_dot * hat
            if x_dot is not None:
                m, c = tl.load(row + 4, mask=ok, other=0.0), tl.load(row + 5, mask=ok, other=0.0)
                product += upper * r * (tl.load(x_dot + map_at + at, mask=ok, other=0.0) - m - hat * c)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    tl.store(dw + t * COLUMNS + column, tl.sum(product, 0), mask=column < COLUMNS)
    tl.store(db + t * COLUMNS + column, tl.sum(total, 0), mask=column < COLUMNS)


@jit
def _curve(x, slope, KIND: tl.constexpr):
    """f(x), f'(x) and f''(x); the kinds are opcodes."""
    zero = x * 0.0
    one = zero + 1.0
    if KIND == 6:  # ReLU
        f, d1, d2 = tl.where(x <= 0.0, zero, x), tl.where(x <= 0.0, zero, one), zero
    elif KIND == 7:  # GELU by erf
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        f, d1, d2 = x * cdf, cdf + x * pdf, pdf * (2.0 - x * x)
    elif KIND == 17:  # GELU by tanh
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        e = tl.exp(-2.0 * tl.abs(u))
        h = tl.where(u < 0.0, -(1.0 - e), 1.0 - e) / (1.0 + e)
        s = 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - h², without its cancellation
        u1, u2 = 0.7978845608028654 * (1.0 + 0.134145 * x * x), 0.7978845608028654 * 0.26829 * x
        f = 0.5 * x * (1.0 + h)
        d1 = 0.5 * (1.0 + h + x * s * u1)
        d2 = s * u1 + 0.5 * x * (s * u2 - 2.0 * h * s * u1 * u1)
    elif KIND == 8:  # tanh
        e = tl.exp(-2.0 * tl.abs(x))
        f = tl.where(x < 0.0, -(1.0 - e), 1.0 - e) / (1.0 + e)
        d1 = 4.0 * e / ((1.0 + e) * (1.0 + e))
        d2 = -2.0 * f * d1
    elif KIND == 11:  # leaky ReLU
        f, d1, d2 = tl.where(x <= 0.0, x * slope, x), tl.where(x <= 0.0, one * slope, one), zero
    else:
        e = tl.exp(-tl.abs(x))
        s = tl.where(x < 0.0, e, one) / (1.0 + e)
        d = s * (1.0 - s)
        if KIND == 9:  # sigmoid
            f, d1, d2 = s, d, d * (1.0 - 2.0 * s)
        else:  # SiLU
            f, d1, d2 = x * s, s + x * d, d * (2.0 + x * (1.0 - 2.0 * s))
    return f, d1, d2


@jit
def _activate(x, g, x_dot, dy, out, slope, NUMEL, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """f(x); with g its product with f'(x); with ẋ and dy also f''(x) ẋ dy."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = e < NUMEL
    f, d1, d2 = _curve(tl.load(x + e, mask=ok, other=0.0), tl.load(slope), KIND)
    if g is not None:
        f = d1 * tl.load(g + e, mask=ok, other=0.0)
        if x_dot is not None:
            f += d2 * tl.load(x_dot + e, mask=ok, other=0.0) * tl.load(dy + e, mask=ok, other=0.0)
    tl.store(out + e, f, mask=ok)
