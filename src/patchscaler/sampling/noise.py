"""Counter-based noise: the noise of a patch is a function of (seed, row, column) and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN, _COUNTER = -0x61C88647, -0x7A143595
_FIRST, _SECOND = 0x7FEB352D, -0x7B935975
"""Words as signed numbers: Triton holds what is computed from an index in int32, and products stay within int64."""


def patch_noise(seed: Tensor, rows: Tensor, cols: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape), float32, the same on every device up to rounding.

    Args:
        seed: int64 (n,), from `to_word`.
        rows: int64 (n,), which row of their image the patches are in.
        cols: int64 (n,), which column.
        shape: shape of one patch, with an even number of values.
    """
    key = seed & _MASK
    for word in (seed >> 32 & _MASK, rows, cols):
        key = _mix(key ^ _mix(word + _GOLDEN))
    half = math.prod(shape) // 2
    counter = torch.arange(2 * half, device=rows.device)
    bits = _mix(key[:, None] ^ _mix(counter + _COUNTER))
    uniform = ((bits >> 8).float() + 0.5) / 2**24
    radius = (-2 * uniform[:, :half].log()).sqrt()
    angle = 2 * math.pi * uniform[:, half:]
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1).view(-1, *shape)


def to_word(seed: int) -> int:
    """The last 64 bits of any integer, as a number that int64 holds."""
    return (seed + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words held in int64 (`lowbias32` of Chris Wellons' hash prospector, public domain)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * _FIRST) & _MASK
    x = ((x ^ (x >> 15)) * _SECOND) & _MASK
    return x ^ (x >> 16)
