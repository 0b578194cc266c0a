"""MAML in JAX, in the forms that are fastest on a CPU, compiled ahead of time.

`build_vmap` takes all tasks at once, `build_scan` one after the other, which keeps a task in cache. Convolutions are
matrix products over patches (im2col): with XLA's own convolutions the second-order gradient of Omniglot's Conv4 took
twelve times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .maml_problem import MetaGradient, Problem


def build_vmap(problem: Problem) -> MetaGradient:
    """All tasks at once."""
    return _build(problem, scan=False)


def build_scan(problem: Problem) -> MetaGradient:
    """One task after the other."""
    return _build(problem, scan=True)


def _build(problem: Problem, scan: bool) -> MetaGradient:
    import jax
    from jax import numpy as jnp

    if problem.support_x.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)

    def loss(params: Any, x: Any, y: Any) -> Any:
        out = _forward(params, x, problem.layers)
        if problem.loss == "mse":
            return jnp.mean((out - y) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], axis=1))

    def task_loss(params: Any, task: Any) -> Any:
        sx, sy, qx, qy = task
        for _ in range(problem.steps):
            grads = jax.grad(loss)(params, sx, sy)
            if problem.order == 1:
                grads = jax.lax.stop_gradient(grads)
            params = jax.tree.map(lambda p, g: p - problem.lr * g, params, grads)
        return loss(params, qx, qy)

    def meta_gradient(params: Any, batch: Any) -> Any:
        if not scan:
            per_task = jax.vmap(jax.grad(task_loss), in_axes=(None, 0))(params, batch)
            return jax.tree.map(lambda g: g.mean(0), per_task)

        def step(total: Any, task: Any) -> Any:
            return jax.tree.map(jnp.add, total, jax.grad(task_loss)(params, task)), None

        total, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), batch)
        return jax.tree.map(lambda g: g / problem.tasks, total)

    def array(t: Tensor) -> Any:
        t = t.detach()
        if t.dim() == 5:
            t = t.permute(0, 1, 3, 4, 2).contiguous()  # [T, N, H, W, C]: channels last is JAX's fastest form here
        return jnp.asarray(t.numpy().astype(np.int32) if t.dtype == torch.int64 else t.numpy())

    params = [(_to_jax(m.weight, array), array(m.bias)) for m in problem.model if isinstance(m, _WITH_WEIGHTS)]
    batch = tuple(map(array, (problem.support_x, problem.support_y, problem.query_x, problem.query_y)))
    compiled = jax.jit(meta_gradient).lower(params, batch).compile()

    def run() -> list[Tensor]:
        grads = jax.block_until_ready(compiled(params, batch))
        return [torch.from_numpy(_to_torch(np.asarray(g))) for pair in grads for g in pair]

    return run


_WITH_WEIGHTS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def _to_jax(weight: Tensor, array: Any) -> Any:
    if weight.dim() == 4:
        return array(weight.detach().permute(2, 3, 1, 0).contiguous())  # HWIO
    return array(weight.detach().t().contiguous() if weight.dim() == 2 else weight)


def _to_torch(g: np.ndarray) -> np.ndarray:
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(g.ndim)
    return np.array(g if order is None else g.transpose(order))


def _forward(params: Any, x: Any, layers: Any) -> Any:
    import jax

    weights = iter(params)
    for kind, *sizes in layers:
        if kind == "conv":
            w, b = next(weights)
            x = _conv(x, w, sizes[2]) + b
        elif kind == "norm":
            w, b = next(weights)
            mean = x.mean((0, 1, 2))
            centred = x - mean
            x = centred * (w * jax.lax.rsqrt((centred**2).mean((0, 1, 2)) + 1e-5)) + b
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "pool":
            x = _pool(x)
        elif kind == "mean":
            x = x.mean((1, 2))
        elif kind == "flatten":
            # torch's order of a flattened map is channels first
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1) if x.ndim == 4 else x
        else:
            w, b = next(weights)
            x = x @ w + b
    return x


def _pool(x: Any) -> Any:
    """2x2 max-pooling by selection: the second derivative of JAX's `max` over windows came out 10 % off, in float64."""
    from jax import numpy as jnp

    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top, bottom = x[:, 0:rows:2, :columns], x[:, 1:rows:2, :columns]
    x = jnp.where(top >= bottom, top, bottom)
    left, right = x[:, :, 0::2], x[:, :, 1::2]
    return jnp.where(left >= right, left, right)


def _conv(x: Any, w: Any, stride: int) -> Any:
    from jax import numpy as jnp

    n, height, width, _ = x.shape
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(3)
        for j in range(3)
    ]
    patches = jnp.concatenate(taps, axis=-1).reshape(n * rows * columns, -1)
    return (patches @ w.reshape(-1, w.shape[-1])).reshape(n, rows, columns, -1)
