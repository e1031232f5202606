"""Between the images users have and the tensors networks take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.imaging.tiles import Tile

_PAGE_LOCKED = 2**26
"""Bytes of the largest copy from a GPU through page-locked memory."""


def to_planes(image: Any, min_side: int) -> Tensor:
    """An RGB PIL image, an array (h, w, 3) or a float tensor (3, h, w) as planes (3, h, w), values untouched.

    Returns:
        uint8 or uint16 for arrays of these types, uint8 for PIL images, else the tensor itself.

    Raises:
        InputError: an image of another kind, or with a side under `min_side`.
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise InputError(f"the image has mode {image.mode}: convert it to RGB first")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"an array must be uint8 or uint16 (h, w, 3), not {image.dtype} {image.shape}")
        contiguous = np.ascontiguousarray(image)
        planes = torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy()).permute(
            2, 0, 1
        )
    elif isinstance(image, Tensor):
        if not image.is_floating_point() or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"a tensor must be floating (3, h, w), not {image.dtype} {tuple(image.shape)}")
        if image.isnan().any():
            raise InputError("the tensor has NaN in it")
        planes = image
    else:
        raise InputError(
            f"an image is a PIL image, a uint8 array or a float tensor, not {type(image).__name__}"
        )
    if min(planes.shape[1:]) < min_side:
        raise InputError(
            f"the image is {planes.shape[2]}x{planes.shape[1]}: both sides must be {min_side} or more"
        )
    return planes


def to_tensor(image: Any, min_side: int) -> Tensor:
    """An image of a kind that `to_planes` takes as a float tensor (3, h, w) in [0, 1]; raises as it does."""
    return scaled(to_planes(image, min_side))


def scaled(planes: Tensor) -> Tensor:
    """Planes as float32 in [0, 1]."""
    if planes.is_floating_point():
        return planes.float().clamp(0, 1)
    return planes.float() / torch.iinfo(planes.dtype).max


def window(planes: Tensor, tile: Tile) -> Tensor:
    """Part of (3, h, w) planes as float32 in [0, 1], continued to the right and below by reflection."""
    for dim, start, stop in ((1, tile.top, tile.bottom), (2, tile.left, tile.right)):
        side = planes.shape[dim]
        if stop <= side:
            planes = planes.narrow(dim, start, stop - start)
            continue
        ramp = torch.arange(start, stop) % (2 * side - 2)
        source = torch.where(ramp < side, ramp, 2 * side - 2 - ramp)
        first = int(source.min())
        part = planes.narrow(dim, first, int(source.max()) + 1 - first)
        planes = scaled(part).index_select(dim, (source - first).to(planes.device, non_blocking=True))
    return scaled(planes)


def padded_side(side: int, size: int, stride: int) -> int:
    """The shortest side from `side` on that windows of `size` at step `stride` cover exactly."""
    return size + -(-max(side - size, 0) // stride) * stride


def new_image(like: Any, height: int, width: int) -> Any:
    """An unset image to `put` tiles into: an array (height, width, 3), or a tensor if `like` is one."""
    if isinstance(like, Tensor):
        return torch.empty(3, height, width, dtype=like.dtype, device=like.device)
    return np.empty((height, width, 3), like.dtype if isinstance(like, np.ndarray) else np.uint8)


def put(image: Any, tile: Tile, pixels: Tensor) -> None:
    """Store pixels (3, h, w), nominally in [0, 1], into what `new_image` made; rounded unless it is a tensor."""
    _, rows, cols = tile.where
    if isinstance(image, Tensor):
        image[tile.where] = pixels.to(image.dtype).clamp(0, 1).to(image.device)
    else:
        image[rows, cols] = levels(pixels, image.dtype)


def from_tensor(pixels: Tensor, like: Any) -> Any:
    """A tensor (3, H, W), nominally in [0, 1], as the kind of image that `like` is; rounded unless a tensor."""
    height, width = pixels.shape[1:]
    image = new_image(like, height, width)
    put(image, Tile(0, height, 0, width), pixels)
    return Image.fromarray(image) if isinstance(like, Image.Image) else image


def levels(pixels: Tensor, dtype: Any) -> np.ndarray:
    """A tensor (3, h, w), nominally in [0, 1], as an array (h, w, 3) of uint8 or uint16."""
    top = np.iinfo(dtype).max
    rounded = (pixels.float().clamp(0, 1) * top).round().permute(1, 2, 0).contiguous()
    if dtype == np.uint8:
        return _to_host(rounded.to(torch.uint8))
    return _to_host(rounded.to(torch.int32)).astype(dtype)


def _to_host(values: Tensor) -> np.ndarray:
    """Values of a device, whose queue stands still meanwhile: into memory that a GPU reaches by itself, page-locked.

    torch keeps such memory for the next time, so what is large goes the usual way.
    """
    if values.device.type != "cuda" or values.nbytes > _PAGE_LOCKED:
        return values.cpu().numpy()
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values).numpy()


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 pixels as uint8."""
    return pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
