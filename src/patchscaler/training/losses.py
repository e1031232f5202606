"""Losses as pure functions."""

from __future__ import annotations

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


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator on its scores of real and of fake images."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def clip_gradient(x: Tensor, reference: Tensor, share: float) -> Tensor:
    """`x`, whose gradient is scaled down on the way back to at most `share` of the norm of `reference`.

    Keeps an adversarial gradient below the reconstruction's at the layer where they meet.
    """
    return _ClippedGradient.apply(x, share * reference)  # type: ignore[return-value]


class _ClippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(limit)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (limit,) = ctx.saved_tensors  # type: ignore[attr-defined]
        norm = grads[0].float().norm()
        return grads[0] * (limit.norm() / norm.clamp(min=1e-12)).clamp(max=1).to(grads[0].dtype), None
