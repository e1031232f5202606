"""Between the images users have and the tensors networks take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchscaler.errors import InputError


def to_tensor(image: Any, min_side: int) -> Tensor:
    """An RGB PIL image, a uint8 array (h, w, 3) or a float tensor (3, h, w) as a float tensor (3, h, w) in [0, 1].

    Raises:
        InputError: an image of another kind, or with a side under `min_side`.
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise InputError(f"the image has mode {image.mode}: convert it to RGB first")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"an array must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
        pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1).float() / 255
    elif isinstance(image, Tensor):
        if not image.is_floating_point() or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"a tensor must be floating (3, h, w), not {image.dtype} {tuple(image.shape)}")
        if image.isnan().any():
            raise InputError("the tensor has NaN in it")
        pixels = image.float().clamp(0, 1)
    else:
        raise InputError(
            f"an image is a PIL image, a uint8 array or a float tensor, not {type(image).__name__}"
        )
    if min(pixels.shape[1:]) < min_side:
        raise InputError(
            f"the image is {pixels.shape[2]}x{pixels.shape[1]}: both sides must be {min_side} or more"
        )
    return pixels


def from_tensor(pixels: Tensor, like: Any) -> Any:
    """A tensor (3, H, W), nominally in [0, 1], as the kind of image that `like` is; 8 bits unless a tensor."""
    if isinstance(like, Tensor):
        return pixels.to(like.dtype).clamp(0, 1).to(like.device)
    levels = (
        (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    )
    return Image.fromarray(levels) if isinstance(like, Image.Image) else levels


def pad_reflected(pixels: Tensor, size: int, stride: int) -> Tensor:
    """Extend (3, h, w) to the right and below by reflection, until windows of `size` at step `stride` cover it."""
    for dim in (1, 2):
        side = pixels.shape[dim]
        total = size + -(-max(side - size, 0) // stride) * stride
        ramp = torch.arange(total, device=pixels.device) % (2 * side - 2)
        pixels = pixels.index_select(dim, torch.where(ramp < side, ramp, 2 * side - 2 - ramp))
    return pixels
