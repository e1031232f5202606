"""Losses as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def confidence_loss(confidence: Tensor, squared_error: Tensor, eta: float) -> Tensor:
    """Mean of C e^2 - eta log C, least at C = min(1, eta / e^2) (paper equation 3).

    Args:
        confidence: C in (0, 1), of any shape.
        squared_error: e^2 averaged over channels, of the same shape; detached, so that it only teaches C.
        eta: squared error at which confidence reaches 1.
    """
    return (confidence * squared_error - eta * confidence.clamp(min=1e-6).log()).mean()


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways between unit vectors (n, d), of which row i belongs to row i (arXiv 1807.03748)."""
    logits = queries @ keys.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def relativistic_loss(winners: Sequence[Tensor], losers: Sequence[Tensor]) -> Tensor:
    """Mean of softplus(loser - winner) over pairs of score maps (arXiv 1807.00734, section 4.1).

    With real images as winners it teaches a discriminator, with fakes as winners what makes them. The maps of one pair
    show the same place, so what they differ in is detail.
    """
    pairs = zip(winners, losers, strict=True)
    return torch.stack([F.softplus(loser - winner).mean() for winner, loser in pairs]).mean()


def detail_ratio(images: Tensor, truth: Tensor) -> Tensor:
    """Energy of what a 3x3 mean removes over the truth's, in dB: below 0 a blur, above 0 noise."""
    energy, reference = (
        (x - F.avg_pool2d(x, 3, stride=1, padding=1)).square().mean() for x in (images.detach(), truth)
    )
    return 10 * (energy / reference.clamp(min=1e-12)).log10()


def balance_gradients(x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """`x` twice; the gradient that comes back to the second is scaled to `strength` times the norm of the first's.

    Keeps an adversarial loss in proportion to the reconstruction losses on the same image (the adaptive weight of arXiv
    2012.09841, without a second backward pass). Both must be used.
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
        share = strength * first.norm() / second.norm().clamp(min=1e-12)
        return first + second * share, None
