"""Batched image degradations: every sample has its own parameters, no function loops over samples or waits.

Images are float32 (B, 3, H, W) in [0, 1]; a parameter is a tensor (B,) on the same device unless stated.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AREA, BILINEAR, BICUBIC, LANCZOS = range(4)
KERNEL_SIZE = 21

_LUMA_TABLE = (  # ITU-T T.81, annex K.1, tables K.1 and K.2: quantisation steps at quality 50
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_RGB_TO_YCC = (  # JFIF 1.02 (BT.601, full swing), chroma centred on zero
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def quantise(images: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to the levels of 8 bits, k / 255."""
    return (images.clamp(0, 1) * 255).round_() / 255


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1) so that it broadcasts against `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def resize_matrix(
    in_length: Tensor,
    out_length: Tensor,
    method: Tensor,
    antialias: Tensor,
    in_size: int,
    out_size: int,
    start: Tensor | int = 0,
) -> Tensor:
    """Interpolation weights (B, out_size, in_size) taking `in_length` entries, from `start`, to `out_length`.

    All lengths are integers given per sample; rows from `out_length` on repeat the last valid one and
    columns outside the interval are zero, so samples of different lengths share one canvas. With
    `antialias` the filter widens with the shrink factor, as in Pillow and `interpolate(antialias=True)`;
    AREA always does, being an exact average of the covered pixels.
    """
    steps = torch.arange(out_size, device=in_length.device)
    columns = torch.arange(in_size, device=in_length.device)
    scale = (in_length / out_length)[:, None]
    centre = (torch.minimum(steps, out_length[:, None] - 1) + 0.5) * scale
    first = start if isinstance(start, int) else start[:, None]
    place = (columns - first).view(-1, 1, in_size)  # of every column in the interval, (B or 1, 1, in_size)
    distance = (place + 0.5 - centre[..., None]).abs()
    wide = scale.clamp(min=1)[..., None]
    x = distance / torch.where(antialias[:, None, None], wide, 1.0)
    area = ((wide + 1) / 2 - distance).clamp(0, 1)
    bilinear = (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -0.5, inside and outside one pixel
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    bicubic = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    lanczos = torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    method = method[:, None, None]
    weights = torch.where(method == BICUBIC, bicubic, torch.where(method == LANCZOS, lanczos, bilinear))
    weights = torch.where(method == AREA, area, weights)
    weights = weights * ((place >= 0) & (place < in_length[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply (B, 3, H, W) by per-sample matrices `rows` (B, h, H) and `columns` (B, w, W): (B, 3, h, w)."""
    narrow = torch.bmm(images.flatten(1, 2), columns.mT).unflatten(1, images.shape[1:3])
    return rows[:, None] @ narrow


def gaussian_kernel(sigma: Tensor, angle: Tensor, exponent: Tensor, plateau: Tensor) -> Tensor:
    """Blur kernels (B, 21, 21) of axes `sigma` (B, 2) in pixels, turned by `angle` in radians.

    With u the squared Mahalanobis distance the profile is exp(-u^exponent / 2), Gaussian at 1, or, where
    `plateau` (bool) holds, 1 / (1 + u^exponent). A sigma far below a pixel gives the identity.
    """
    grid = torch.arange(KERNEL_SIZE, device=sigma.device) - KERNEL_SIZE // 2
    y, x = grid[:, None], grid[None, :]
    cos, sin = per_sample(angle.cos(), sigma[..., None]), per_sample(angle.sin(), sigma[..., None])
    sigma_u, sigma_v = sigma[:, 0, None, None], sigma[:, 1, None, None]
    u = ((cos * x + sin * y) / sigma_u) ** 2 + ((cos * y - sin * x) / sigma_v) ** 2
    u = u ** exponent[:, None, None]
    kernel = torch.where(plateau[:, None, None], 1 / (1 + u), torch.exp(-0.5 * u))
    return kernel / kernel.sum((1, 2), keepdim=True)


def sinc_kernel(cutoff: Tensor, radius: Tensor) -> Tensor:
    """Ringing low-pass (B, 21, 21), circular, of `cutoff` in radians a pixel, cut to |x|, |y| <= `radius`."""
    grid = torch.arange(KERNEL_SIZE, device=cutoff.device) - KERNEL_SIZE // 2
    distance = torch.sqrt(grid[:, None] ** 2 + grid[None, :] ** 2).clamp(min=1e-3)
    cutoff = cutoff[:, None, None]
    kernel = cutoff * torch.special.bessel_j1(cutoff * distance) / (2 * math.pi * distance)
    inside = torch.maximum(grid[:, None].abs(), grid[None, :].abs()) <= radius[:, None, None]
    kernel = kernel * inside
    return kernel / kernel.sum((1, 2), keepdim=True)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every sample with its own kernel (B, 21, 21), edges replicated, in the Fourier domain."""
    h, w = images.shape[-2:]
    pad = KERNEL_SIZE // 2
    size = [-(-(side + 2 * pad) // 36) * 36 for side in (h, w)]  # small prime factors: fast transforms
    padded = F.pad(images, (pad, size[1] - w - pad, pad, size[0] - h - pad), mode="replicate")
    transfer = torch.fft.rfft2(kernels, s=size)[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer, s=size)
    return blurred[..., 2 * pad : 2 * pad + h, 2 * pad : 2 * pad + w]


def noise(images: Tensor, sigma: Tensor, gain: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Add sensor noise of variance sigma^2 + gain * intensity (Gaussian read-out and photon count); clamps.

    The photon count's Poisson law is taken as its normal limit. Where `grey` (bool) holds, all channels
    get the same noise.
    """
    white = torch.randn(images.shape, generator=generator, device=images.device)
    white = torch.where(per_sample(grey, white), white[:, :1], white)
    clean = images.clamp(0, 1)
    variance = torch.addcmul(per_sample(sigma**2, clean), per_sample(gain, clean), clean)
    return torch.addcmul(clean, white, variance.sqrt_()).clamp_(0, 1)


def jpeg(images: Tensor, quality: Tensor, subsample: Tensor) -> Tensor:
    """Baseline JPEG and back at `quality` 1..100 (the scale of libjpeg), chroma 4:2:0 where `subsample`.

    Returns levels of 8 bits. Entropy coding is lossless and therefore left out.
    """
    h, w = images.shape[-2:]
    constants = _jpeg_constants(images.device)
    levels = F.pad((images.clamp(0, 1) * 255).round_(), (0, -w % 16, 0, -h % 16), mode="replicate")
    # Y - 128, Cb, Cr, in whole levels as a codec keeps them
    ycc = torch.einsum("yc,bchw->byhw", constants.to_ycc, levels - 128).round_()
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    tables = ((constants.tables * factor + 50) / 100).floor().clamp(1, 255)
    coded = _code_blocks(ycc, tables, constants.dct)
    halved = _code_blocks(F.avg_pool2d(ycc[:, 1:], 2), tables[:, 1:], constants.dct)
    halved = F.interpolate(halved, scale_factor=2, mode="bilinear")
    chroma = torch.where(per_sample(subsample, coded), halved, coded[:, 1:])
    rgb = torch.einsum("cy,byhw->bchw", constants.to_rgb, torch.cat((coded[:, :1], chroma), 1).round_())
    return (rgb[..., :h, :w] + 128).round_().clamp_(0, 255) / 255


class _JpegConstants(NamedTuple):
    """Matrices on one device: colour (3, 3) both ways, quantisation (3, 64) of Y, Cb, Cr, DCT (64, 64)."""

    to_ycc: Tensor
    to_rgb: Tensor
    tables: Tensor
    dct: Tensor


@lru_cache
def _jpeg_constants(device: torch.device) -> _JpegConstants:
    n = torch.arange(8, dtype=torch.float64)
    basis = 0.5 * torch.cos((2 * n + 1) * n[:, None] * math.pi / 16)
    basis[0] /= math.sqrt(2)
    tables = torch.tensor((_LUMA_TABLE, _CHROMA_TABLE, _CHROMA_TABLE)).flatten(1)
    constants = (torch.tensor(_RGB_TO_YCC), torch.tensor(_YCC_TO_RGB), tables, torch.kron(basis, basis))
    return _JpegConstants(*(constant.to(device, torch.float32) for constant in constants))


def _code_blocks(planes: Tensor, tables: Tensor, dct: Tensor) -> Tensor:
    """Quantise the 8x8 cosine coefficients of (B, C, H, W) with steps (B, C, 64) and transform back."""
    grid = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, H/8, W/8, 8, 8)
    blocks = grid.reshape(*planes.shape[:2], -1, 64)
    steps = tables[:, :, None]
    coefficients = ((blocks @ dct.T) / steps).round_() * steps
    return (coefficients @ dct).view(grid.shape).transpose(3, 4).reshape(planes.shape)
