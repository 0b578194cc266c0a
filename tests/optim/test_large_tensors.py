"""More than 2^31 and 2^32 elements: the index arithmetic, and the native kernels on memory that is never filled."""

from __future__ import annotations

import mmap
import sys
from typing import Any

import pytest
import torch
from optim_cases import BACKENDS
from torch import Tensor

from metafast.ops import CHUNK, Layout, make_layout
from metafast.ops._rounding import mix32, rounding_key, store

BIG = 2**32 + 3 * CHUNK + 5


def test_layout_of_big_tensors() -> None:
    layout = make_layout([2**31 + 5, 7, 2**33 + CHUNK + 1])
    items, chunks = layout.items.tolist(), layout.chunks
    assert [row[2] for row in items] == [2**31 + 5, 7, 2**33 + CHUNK + 1]
    ends = [offset + numel for _, offset, numel in items]
    assert all(offset % 64 == 0 for _, offset, _ in items)
    assert items[1][1] >= ends[0]
    assert items[2][1] >= ends[1]
    assert layout.arena_size >= ends[2] > 2**33
    assert chunks.dtype is torch.int64
    counts = [-(-row[2] // CHUNK) for row in items]
    assert chunks.shape == (sum(counts), 3)
    for item, (first, count) in enumerate(zip([0, counts[0], counts[0] + counts[1]], counts, strict=True)):
        rows = chunks[first : first + count]
        assert (rows[:, 0] == item).all()
        assert torch.equal(rows[:, 1], torch.arange(count) * CHUNK)
        assert torch.equal(rows[:, 2], rows[:, 1] + sum(row[2] for row in items[:item]))
    part = layout.subset([2])
    assert part.items.tolist() == [items[2]]
    assert int(part.chunks[-1, 1]) == (counts[2] - 1) * CHUNK > 2**33


def sparse_memory(numel: int, dtype: torch.dtype) -> Tensor:
    """Address space without memory behind it: pages come into being where a kernel touches them, full of zeros."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, numel * dtype.itemsize, flags=flags), dtype=dtype)


def last_chunk(layout: Layout) -> tuple[Tensor, Tensor]:
    """A plan of the last chunk alone, and its scratch."""
    chunks = layout.chunks[-1:].clone()
    chunks[0, 2] = 0  # elements before it in this call
    return chunks, layout.partials[:1].clone()


@pytest.mark.skipif(sys.platform != "linux", reason="needs address space without memory, as Linux gives it")
@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native CPU library")
@pytest.mark.parametrize("stochastic", [False, True])
def test_native_kernel_beyond_32_bits(stochastic: bool) -> None:
    """AdamW on the last chunk of a tensor of more than 2^32 elements, held to the same chunk on its own."""
    layout = make_layout([BIG])
    chunks, partials = last_chunk(layout)
    start = int(chunks[0, 1])
    count = BIG - start
    assert start > 2**32
    assert count == 5
    dtype = torch.bfloat16
    try:
        param, grad, m, v = (sparse_memory(BIG + 64, dtype) for _ in range(4))
    except (OSError, ValueError) as error:
        pytest.skip(f"this machine does not lend 35 GB of address space: {error}")
    values = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25])
    param[start : start + count] = values.to(dtype)
    grad[start : start + count] = 1.0
    seed = 7 if stochastic else -1

    def step(
        params: Tensor, grads: Tensor, m: Tensor, v: Tensor, partials: Tensor, items: Tensor, chunks: Tensor
    ) -> Any:
        counters, stats = torch.zeros(1), torch.zeros(1, 4, dtype=torch.float64)
        torch.ops.metafast.adam(
            [params], [grads], m, v, None, None, counters, stats, partials, items, chunks,
            torch.ones(1, dtype=torch.float64), None, None, None,
            0.01, 0.9, 0.999, 1e-8, 0.1, True, False, seed,
        )  # fmt: skip
        return stats

    stats = step(param[:BIG], grad[:BIG], m, v, partials, layout.items, chunks)
    small = make_layout([count])
    p, g = values.to(dtype), torch.ones(count, dtype=dtype)
    states = [torch.zeros(64, dtype=dtype) for _ in range(2)]
    if not stochastic:
        expected = step(p, g, *states, small.partials, small.items, small.chunks)
        assert torch.equal(param[start : start + count], p)
        assert torch.equal(m[start : start + count], states[0][:count])
        assert torch.equal(v[start : start + count], states[1][:count])
    else:
        # The bits come from the whole 64-bit position of an element.
        full, moments = values.clone().double(), torch.zeros(2, 64)
        expected = step(f := values.clone(), torch.ones(count), *moments, small.partials, small.items, small.chunks)
        position = torch.arange(start, start + count)
        key = rounding_key(seed, 0, 1)
        word = mix32((((position & 0xFFFFFFFF) ^ key) + (position >> 32) * 0x9E3779B9) & 0xFFFFFFFF)
        store(p, f, word, 0)
        assert torch.equal(param[start : start + count], p)
        store(states[0][:count], moments[0][:count], word, 1)
        assert torch.equal(m[start : start + count], states[0][:count])
        assert full.numel() == count
    torch.testing.assert_close(stats, expected, rtol=1e-6, atol=0)
    neighbours = param[start - 64 : start]
    assert not neighbours.any()  # nothing before the chunk was written
    low = (start - 2**32, start % 2**31)
    assert all(
        not param[at : at + count].any() and not m[at : at + count].any() for at in low
    )  # nor at a wrapped index


def test_bits_differ_above_2_to_32() -> None:
    """The high half of an element's position takes part in its bits."""
    key = rounding_key(1, 2, 3)

    def words(first: int) -> Tensor:
        position = torch.arange(first, first + 1000)
        return mix32((((position & 0xFFFFFFFF) ^ key) + (position >> 32) * 0x9E3779B9) & 0xFFFFFFFF)

    assert (words(0) != words(2**32)).float().mean() > 0.99
