"""Random numbers from a generator, on its device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers (count,) in [0, 1)."""
    return torch.rand(count, generator=generator, device=generator.device)


def normal_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape and type of `values`."""
    return torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype)
