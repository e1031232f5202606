"""Cutting maps into patches and tokens, and putting them together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches of side `size` at step `stride` that cover a map exactly."""
    return (height - size) // stride + 1, (width - size) // stride + 1


def unfold(maps: Tensor, size: int, stride: int) -> Tensor:
    """Cut (B, C, H, W) into patches (B * rows * cols, C, size, size), row by row.

    H - size and W - size must be multiples of `stride`; the pipeline pads images so that they are.
    """
    windows = maps.unfold(2, size, stride).unfold(3, size, stride)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def fold(patches: Tensor, rows: int, cols: int, stride: int) -> Tensor:
    """Put patches (B * rows * cols, C, p, p) back into maps (B, C, H, W): the inverse of `unfold`.

    Where patches overlap they are averaged with weights that fall towards their edges.
    """
    channels, size = patches.shape[1], patches.shape[2]
    patches = patches.unflatten(0, (-1, rows, cols))
    if stride == size:
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    ramp = torch.arange(1, size + 1, device=patches.device, dtype=torch.float32)
    ramp = torch.minimum(ramp, ramp.flip(0))
    weight = ramp[:, None] * ramp
    area = ((rows - 1) * stride + size, (cols - 1) * stride + size)
    columns = (patches.float() * weight).permute(0, 3, 4, 5, 1, 2).flatten(4).flatten(1, 3)
    total = F.fold(columns, area, size, stride=stride)
    weights = weight.flatten()[None, :, None].expand(1, -1, rows * cols)
    return (total / F.fold(weights, area, size, stride=stride)).to(patches.dtype).reshape(-1, channels, *area)


def tokenize(patches: Tensor, size: int) -> Tensor:
    """Patches (n, C, p, p) to tokens (n, (p / size)^2, C * size^2)."""
    return F.pixel_unshuffle(patches, size).flatten(2).transpose(1, 2)


def untokenize(tokens: Tensor, channels: int, size: int) -> Tensor:
    """The inverse of `tokenize` for square patches of `channels` channels."""
    count, length, _ = tokens.shape
    side = round(length**0.5)
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(count, channels * size**2, side, side), size)
