"""Colour that follows the input: what is coarser than a few pixels of the LR image is taken from there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_WINDOW = 9
"""Side of the box, in LR pixels, that is run over the difference twice."""

REACH = _WINDOW
"""LR pixels around a place that its correction depends on: two half windows, and one for the interpolation."""


def follow_low_frequencies(image: Tensor, lr: Tensor) -> Tensor:
    """Give an enlarged image the low frequencies of the image it was made from, and leave the rest.

    Networks drift: a diffusion model with few steps may darken a whole picture by a level or two, or tint it. The
    difference between the LR image and the mean of the output over each LR pixel is smoothed and added back.

    Args:
        image: the enlarged image (B, 3, s h, s w), nominally in [0, 1].
        lr: the LR image (B, 3, h, w) in [0, 1].

    Returns:
        The image in [0, 1], in its own type.
    """
    image = image.clamp(0, 1)
    scale = image.shape[-1] // lr.shape[-1]
    drift = lr.float() - F.avg_pool2d(image, scale).float()
    for _ in range(2):
        drift = F.avg_pool2d(drift, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)
    correction = F.interpolate(drift, scale_factor=float(scale), mode="bilinear")
    return (image + correction.to(image.dtype)).clamp(0, 1)
