"""Stochastic rounding to bfloat16 with counter-based bits: the hash of `csrc/core/rounding.h`, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def mix32(x: Tensor) -> Tensor:
    """A 32-bit avalanche hash, on int64 tensors that hold unsigned 32-bit words."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix32(x: int) -> int:
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def rounding_key(seed: int, slot: int, step: int) -> int:
    """The key of one tensor at one step."""
    mixed = _mix32((seed & _MASK) ^ _mix32((seed >> 32) & _MASK))
    return _mix32((mixed + slot * 0x9E3779B9 + step * 0x85EBCA6B) & _MASK)


def rounding_word(key: int, numel: int, device: torch.device) -> Tensor:
    """One word of random bits for each element, int64 `[numel]`."""
    element = torch.arange(numel, device=device)
    return mix32((((element & _MASK) ^ key) + (element >> 32) * 0x9E3779B9) & _MASK)


def rounding_bits(word: Tensor, stream: int) -> Tensor:
    """The 16 bits that belong to a stream: 0 is the parameter, 1 to 4 are the states."""
    if stream == 1:
        return word & 0xFFFF
    if stream == 2:
        return word >> 16
    other = (word * 0x9E3779B1 + 0x7F4A7C15) & _MASK
    return other >> 16 if stream == 0 else (other >> (8 if stream == 3 else 4)) & 0xFFFF


def store(target: Tensor, value: Tensor, word: Tensor | None, stream: int) -> None:
    """Writes fp32 `value` into `target`, rounding stochastically where `word` is given and the target is bfloat16."""
    if word is None or target.dtype is not torch.bfloat16:
        target.copy_(value)
        return
    bits = value.to(torch.float32).contiguous().view(torch.int32).to(torch.int64) & _MASK
    rounded = (bits + rounding_bits(word, stream)) & 0xFFFF0000
    rounded = torch.where(value.isnan(), torch.full_like(rounded, 0x7FC00000), rounded)
    signed = torch.where(rounded >= 1 << 31, rounded - (1 << 32), rounded).to(torch.int32)
    target.copy_(signed.view(torch.float32))
