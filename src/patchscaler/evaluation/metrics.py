"""How outputs are judged. Images are uint8 arrays (h, w, 3) in sRGB; both of a pair have the same size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from patchscaler.evaluation.colour import ciede2000, srgb_to_lab
from patchscaler.features import EfficientNetFeatures, feature_distance

Array = np.ndarray
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_HARMONICS_AROUND = 4


def luma(image: Array) -> Array:
    """BT.601 studio-swing luma (h, w) in [16, 235], float64, not rounded."""
    return 16 + image.astype(np.float64) @ _LUMA


def crop_border(image: Array, border: int) -> Array:
    """The image without `border` pixels on every side."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def psnr_y(image: Array, truth: Array) -> float:
    """PSNR of luma in dB, peak 255; infinite for equal images."""
    return _psnr(luma(image) - luma(truth))


def psnr_rgb(image: Array, truth: Array) -> float:
    """PSNR over the three channels in dB, peak 255; infinite for equal images."""
    return _psnr(image.astype(np.float64) - truth)


def ssim_y(image: Array, truth: Array) -> float:
    """SSIM of luma: 11x11 Gaussian window of sigma 1.5, whole windows only, peak 255 (Wang et al. 2004)."""
    x, y = luma(image), luma(truth)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance, variances = _gaussian(x * y) - product, _gaussian(x * x + y * y) - squares
    similarity = (2 * product + c1) * (2 * covariance + c2)
    return float((similarity / ((squares + c1) * (variances + c2))).mean())


class DeepFeatureDistance(nn.Module):
    """DFD, feature distance of EfficientNet-Lite2: 0 for equal images, lower is better; never a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.features = EfficientNetFeatures("lite2").folded()

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [0, 1] from their truth."""
        return feature_distance(self.features(images.float()), self.features(truth.float()))


def detail_energy(image: Array, truth: Array, size: int = 128) -> float:
    """Energy of luma detail (0.25 to 0.5 cycles a pixel) over the truth's in dB: below 0 blur, above 0 noise.

    Averaged over the half of the patches of side `size` whose truth has most of it. Images have sides of
    `size` or more.
    """
    return float(_detail_ratios(image, truth, size)[1].mean())


def detail_errors(image: Array, truth: Array, size: int = 128) -> Array:
    """What `detail_energy` is the mean of, patch by patch (n,) and without its sign: dB lacked or too much.

    0 in the half of the patches whose truth has least detail.
    """
    richest, ratios = _detail_ratios(image, truth, size)
    errors = np.zeros((truth.shape[0] // size) * (truth.shape[1] // size))
    errors[richest] = np.abs(ratios)
    return errors


def seam_power(image: Array, reference: Array, pitch: int = 128) -> float:
    """How much more the grid of patches shows than in a reference that has no patches; 1 is no more.

    In the profiles of mean absolute luma gradient along both axes: power at the pitch and its harmonics over
    that of the neighbouring frequencies, divided by the reference's. Every fourth harmonic is left out: these
    belong to the finer grids of upsampling and of the input's JPEG blocks, too. It is nan unless both sides
    exceed 2 * pitch.
    """
    if min(image.shape[:2]) <= 2 * pitch:
        return float("nan")
    return _grid_power(luma(image), pitch) / _grid_power(luma(reference), pitch)


def extended(image: Array, shift: int) -> Array:
    """The image continued by reflection for `shift` pixels at the top and on the left: its grid of patches moves."""
    return np.pad(image, ((shift, 0), (shift, 0), (0, 0)), mode="reflect")


def shifted_difference(plain: Array, shifted: Array, offset: int) -> float:
    """Mean absolute difference, in levels, of an image and one that has `offset` more pixels at the top and left."""
    return float(np.abs(shifted[offset:, offset:].astype(np.float64) - plain).mean())


def colour_shift(image: Array, truth: Array, block: int = 16) -> float:
    """Mean CIEDE2000 difference between the means of blocks of side `block`."""
    low, reference = (srgb_to_lab(_block_means(x, block) / 255) for x in (image, truth))
    return float(ciede2000(low, reference).mean())


def spearman(x: Array, y: Array) -> float:
    """Rank correlation of two vectors, ties at their average rank; nan if one is constant."""
    a, b = (_ranks(np.asarray(values)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else float("nan")


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(ours: Array, other: Array, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of ours - other over images, and its interval by resampling the images."""
    gains = np.asarray(ours, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(gains), size=(resamples, len(gains)))
    with np.errstate(invalid="ignore"):  # infinite gains have no interval
        low, high = np.quantile(gains[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(gains.mean()), float(low), float(high))


def _psnr(difference: Array) -> float:
    error = float(np.square(difference).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _gaussian(x: Array) -> Array:
    """Filter (h, w) to (h - 10, w - 10)."""
    kernel = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        x = sliding_window_view(x, 11, axis=axis) @ kernel
    return x


def _blocks(x: Array, size: int) -> Array:
    """Whole blocks (n, size, size, ...) of (h, w, ...), row by row."""
    rows, cols = x.shape[0] // size, x.shape[1] // size
    x = x[: rows * size, : cols * size].reshape(rows, size, cols, size, *x.shape[2:])
    return x.swapaxes(1, 2).reshape(rows * cols, size, size, *x.shape[4:])


def _block_means(image: Array, size: int) -> Array:
    """Mean colour (rows, cols, 3) of the whole blocks of a uint8 image; exact sums, columns of pixels first."""
    rows, cols = image.shape[0] // size, image.shape[1] // size
    pixels = image[: rows * size, : cols * size].reshape(rows, size, cols * size * 3)
    columns = pixels.sum(axis=1, dtype=np.uint32).reshape(rows, cols, size, 3)
    return columns.sum(axis=2) / size**2


def _detail(y: Array, size: int) -> Array:
    """Energy (n,) of each patch between 0.25 and 0.5 cycles a pixel."""
    patches = _blocks(y, size)
    window = np.hanning(size)
    patches = (patches - patches.mean(axis=(1, 2), keepdims=True)) * window[:, None] * window
    down, across = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    radius = np.hypot(down, across)
    mirrored = np.where((across == 0) | (across == 0.5), 1, 2)  # a real patch has half its spectrum twice
    weight = ((radius >= 0.25) & (radius <= 0.5)) * mirrored
    spectrum = np.fft.rfft2(patches)
    return np.tensordot(spectrum.real**2 + spectrum.imag**2, weight, 2)


def _detail_ratios(image: Array, truth: Array, size: int) -> tuple[Array, Array]:
    """The half of all patches whose truth has most detail, and by how many dB the image has more of it there."""
    energy, reference = _detail(luma(image), size), _detail(luma(truth), size)
    richest = np.argsort(-reference, kind="stable")[: max(1, len(reference) // 2)]
    tiny = 1e-9
    return richest, 10 * np.log10((energy[richest] + tiny) / (reference[richest] + tiny))


def _grid_power(y: Array, pitch: int) -> float:
    """Mean over both directions and the harmonics of their power over the power around them."""
    ratios = []
    for axis in (0, 1):
        profile = np.abs(np.diff(y, axis=axis)).mean(axis=1 - axis)
        periods = len(profile) // pitch
        power = np.square(np.abs(np.fft.rfft(profile[: periods * pitch] - profile.mean())))
        harmonic = np.arange(1, pitch // 2) * periods
        around = (power[harmonic - 1] + power[harmonic + 1]) / 2
        window = np.ones(2 * _HARMONICS_AROUND + 1)
        around = np.convolve(around, window, "same") / np.convolve(np.ones(len(around)), window, "same")
        ratios.append((power[harmonic] / around)[np.arange(1, pitch // 2) % 4 != 0])
    return float(np.mean(ratios))


def _ranks(x: Array) -> Array:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
