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


def contrastive_loss(
    queries: Tensor, keys: Tensor, temperature: float, taught: Tensor | None = None
) -> Tensor:
    """InfoNCE both ways between unit vectors (n, d), of which row i belongs to row i (arXiv 1807.03748).

    Args:
        queries: vectors that look for their own row.
        keys: vectors that are found.
        temperature: of the softmax.
        taught: bool (n,), the rows that count; the others are neither queries nor keys. None takes all.
    """
    logits = queries @ keys.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    count: Tensor | int = len(logits)
    if taught is not None:
        # Alone with itself, a row that does not count has no loss; the shape stays what it is.
        apart = ~(taught[:, None] & taught) & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        logits, count = logits.masked_fill(apart, -torch.inf), taught.sum()
    both = (F.cross_entropy(x, own, reduction="sum") for x in (logits, logits.T))
    return sum(both, logits.new_zeros(())) / count / 2


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of a discriminator on its score maps of real and of fake images (arXiv 1705.02894)."""
    each = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(each).mean()


def fix_gradient_norm(x: Tensor, norm: float) -> Tensor:
    """`x`, whose gradient is scaled on the way back to a given norm.

    Balances an adversarial loss with the L1 loss on the same image: the gradient of a mean of n absolute differences
    has the norm n ** -0.5, whatever the differences are (the adaptive weight of arXiv 2012.09841, in closed form).
    """
    return _FixedNorm.apply(x, norm)  # type: ignore[return-value]


class _FixedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: float) -> Tensor:
        ctx.norm = norm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        length = grads[0].float().norm().clamp(min=1e-12)
        return grads[0] * (ctx.norm / length).to(grads[0].dtype), None
