"""Transparency: colour that makes sense behind it, and edges that stay where they are.

Alpha goes through the networks as a grey picture of its own, without sampling, so its edges are as sharp as those
of the picture and nothing is invented. What comes out is held within the range of the neighbouring input pixels:
what is opaque stays opaque, what is clear stays clear, and no edge rings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyvips


def extend_colour(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour continued under fully transparent pixels from the nearest visible ones, averaged over 2x2 blocks.

    Files hold anything there, often black; an upscaler that saw it would draw it into the edge as a fringe.

    Args:
        pixels: (h, w, c), not premultiplied.
        alpha: (h, w), same type.

    Returns:
        As `pixels`, changed only where `alpha` is 0.
    """
    if alpha.all() or not alpha.any():
        return pixels
    weight = alpha.astype(np.float32)[..., None]
    filled = _fill(pixels.astype(np.float32), weight)
    return np.where(alpha[..., None] > 0, pixels, filled.round().astype(pixels.dtype))


def alpha_as_grey(alpha: np.ndarray) -> np.ndarray:
    """Alpha (h, w) as the picture (h, w, 3) that the networks see."""
    return np.repeat(alpha[..., None], 3, axis=2)


def alpha_from_grey(upscaled: pyvips.Image, alpha: np.ndarray) -> pyvips.Image:
    """What the networks made of `alpha_as_grey(alpha)` as one band of the same depth, held as described above."""
    band = upscaled.bandmean().rint().cast("ushort" if alpha.dtype == np.uint16 else "uchar")
    return hold_between_neighbours(band, alpha)


def hold_between_neighbours(upscaled: pyvips.Image, alpha: np.ndarray) -> pyvips.Image:
    """Alpha as upscaled, one band, clipped to the range of the 3x3 input pixels around each place."""
    import pyvips

    small = pyvips.Image.new_from_array(alpha)
    scale = upscaled.width // small.width
    framed = small.embed(1, 1, small.width + 2, small.height + 2, extend="copy")
    lowest, highest = (
        framed.rank(3, 3, index).crop(1, 1, small.width, small.height).zoom(scale, scale) for index in (0, 8)
    )
    held = (upscaled < lowest).ifthenelse(lowest, upscaled)
    return (held > highest).ifthenelse(highest, held)


def _fill(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted colours (h, w, c), those of weight 0 taken from a picture of half the size, and so on."""
    if weight.all() or max(weight.shape[:2]) == 1:
        return pixels
    total = _sum_blocks(weight)
    mean = _sum_blocks(pixels * weight) / np.maximum(total, 1e-6)
    coarse = _fill(mean, total / 4)
    height, width = weight.shape[:2]
    under = coarse.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
    return np.where(weight > 0, pixels, under)


def _sum_blocks(maps: np.ndarray) -> np.ndarray:
    """Sums over 2x2 blocks of (h, w, c); a missing last row or column counts as 0."""
    height, width, channels = maps.shape
    even = np.pad(maps, ((0, height % 2), (0, width % 2), (0, 0)))
    return even.reshape(-(-height // 2), 2, -(-width // 2), 2, channels).sum(axis=(1, 3))
