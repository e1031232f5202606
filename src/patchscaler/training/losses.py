"""Losses as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscaler.features import EfficientNetFeatures, feature_distance
from patchscaler.models.restoration import Restored
from patchscaler.sampling.patches import unfold

WEIGHT, ETA = 0.5, 0.1
"""Of the confidence term, beside the L1, and the squared latent error at which confidence reaches 1."""


def confidence_loss(confidence: Tensor, squared_error: Tensor, eta: float) -> Tensor:
    """Mean of C e^2 - eta log C, least at C = min(1, eta / e^2) (paper equation 3).

    Args:
        confidence: C in (0, 1), of any shape.
        squared_error: e^2 averaged over channels, of the same shape; detached, so that it only teaches C.
        eta: squared error at which confidence reaches 1.
    """
    return (confidence * squared_error - eta * confidence.clamp(min=1e-6).log()).mean()


def restoration_loss(
    restored: Restored, target: Tensor, weight: float = WEIGHT, eta: float = ETA
) -> tuple[Tensor, dict[str, Tensor]]:
    """|y - x|_1 + weight * (C |y - x|^2 - eta log C), and what to log (paper section 3.2).

    Args:
        restored: y_0 (B, c, H, W) and C (B, 1, H, W).
        target: x_HR (B, c, H, W).
        weight: lambda, weight of the confidence term.
        eta: squared latent error at which confidence reaches 1.
    """
    error = restored.latent.float() - target.float()
    squared = error.detach().square().mean(dim=1, keepdim=True)
    confidence = restored.confidence.float()
    loss = error.abs().mean() + weight * confidence_loss(confidence, squared, eta)
    logs = {"latent_l1": error.abs().mean(), "latent_l2": squared.mean(), "confidence": confidence.mean()}
    return loss, logs


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    taught: Tensor | None = None,
    kin: Tensor | None = None,
) -> Tensor:
    """InfoNCE both ways between unit vectors (n, d), of which row i belongs to row i (arXiv 1807.03748).

    Args:
        queries: vectors that look for their own row.
        keys: vectors that are found.
        temperature: of the softmax.
        taught: bool (n,), the rows that count; the others are neither queries nor keys. None takes all.
        kin: int (n,); rows of one number, if it is not negative, show one material. Half of what a row should find is
            its own, the other half its kin (arXiv 2004.11362). None: all of it is its own.
    """
    logits = queries @ keys.T / temperature
    own = torch.eye(len(logits), device=logits.device)
    counted = torch.ones_like(own[0], dtype=torch.bool) if taught is None else taught
    # Alone with itself, a row that does not count has no loss; the shape stays what it is.
    apart = ~(counted[:, None] & counted) & ~own.bool()
    logits = logits.masked_fill(apart, -1e4)
    wanted = own
    if kin is not None:
        related = ((kin[:, None] == kin) & (kin >= 0) & ~own.bool() & ~apart).float()
        count = related.sum(dim=1, keepdim=True)
        wanted = torch.where(count > 0, (own + related / count.clamp(min=1)) / 2, own)
    both = (F.cross_entropy(x, wanted, reduction="sum") for x in (logits, logits.T))
    return sum(both, logits.new_zeros(())) / counted.sum() / 2


def perceptual_loss(
    features: EfficientNetFeatures, images: Tensor, truth: Tensor, generator: torch.Generator
) -> Tensor:
    """Feature distances (B,) of images and truth (B, 3, H, W), all cut at the same random place 8 pixels smaller.

    The features are taken with strides of 2 to 8. If they always began at the same pixel, a decoder of the same strides
    would learn dots in their phase, which please the features and not the eye.
    """
    offset = torch.randint(8, (2,), generator=generator, device=images.device)

    def cut(x: Tensor) -> Tensor:
        for axis in (2, 3):
            place = torch.arange(x.shape[axis] - 8, device=x.device) + offset[axis - 2]
            x = x.index_select(axis, place)
        return x

    return feature_distance(features(cut(images)), features(cut(truth)))


def lattice_loss(images: Tensor, truth: Tensor, pitch: int = 8, window: int = 128) -> Tensor:
    """Mean absolute part of the error of images (B, 3, H, W) that repeats with a grid of `pitch` pixels.

    In each window of side `window`, or the whole image if it is smaller, the errors at one phase of the grid are
    averaged: photographs have nothing that depends on the phase. A decoder without noise of its own otherwise renders
    latents of fine grain as a regular pattern, which for a network is nearer to grain than a plane is.
    """
    error = images - truth
    height, width = (min(window, side) // pitch for side in error.shape[2:])
    grid = error.unflatten(3, (-1, width, pitch)).unflatten(
        2, (-1, height, pitch)
    )  # (B, 3, n, h, p, m, w, p)
    pattern = grid.mean(dim=(3, 6))
    return (pattern - pattern.mean(dim=(3, 5), keepdim=True)).abs().mean()


def relativistic_loss(winners: Sequence[Tensor], losers: Sequence[Tensor]) -> Tensor:
    """Mean of softplus(loser - winner) over pairs of score maps (arXiv 1807.00734, section 4.1).

    With real images as winners it teaches a discriminator, with fakes as winners what makes them. The maps of one pair
    show the same place, so what they differ in is detail.
    """
    pairs = zip(winners, losers, strict=True)
    return torch.stack([F.softplus(loser - winner).mean() for winner, loser in pairs]).mean()


def detail_ratio(images: Tensor, truth: Tensor, size: int = 128) -> Tensor:
    """Energy of luma detail (0.25 to 0.5 cycles a pixel) over the truth's in dB: below 0 a blur, above 0 noise.

    As `evaluation.metrics.detail_energy` on batches (B, 3, H, W): the mean over the half of all patches of side `size`
    whose truth has most of it.
    """
    energy, reference = _detail(images.detach(), size), _detail(truth, size)
    richest = reference.topk(max(1, len(reference) // 2)).indices
    return 10 * ((energy[richest] + 1e-9) / (reference[richest] + 1e-9)).log10().mean()


def _detail(images: Tensor, size: int) -> Tensor:
    luma = 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
    patches = unfold(luma.float(), size, size)[:, 0]
    window = torch.hann_window(size, periodic=False, device=images.device)
    spectrum = torch.fft.fft2((patches - patches.mean(dim=(1, 2), keepdim=True)) * window[:, None] * window)
    frequency = torch.fft.fftfreq(size, device=images.device)
    radius = torch.hypot(frequency[:, None], frequency)
    return (spectrum.abs().square() * ((radius >= 0.25) & (radius <= 0.5))).sum(dim=(1, 2))


def balance_gradients(x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Images `x` (B, C, H, W) twice, for reconstruction losses and for an adversarial one.

    Of the gradient that comes back to the second, what is left after a 9x9 mean is taken away is scaled to `strength`
    times the norm of the first's: the adversary can ask for detail, in proportion, and not for other colours.
    """
    return _Balanced.apply(x, strength)  # type: ignore[return-value]


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(strength)
        return x.clone(), x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        first, second = grads
        second = second - F.avg_pool2d(second, 9, stride=1, padding=4)
        share = strength * first.norm() / second.norm().clamp(min=1e-12)
        return first + second * share, None
