"""The discriminator of adversarial fine-tuning, and how loud it may be."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PixelDiscriminator(nn.Module):
    """Scores overlapping regions of an image at several scales (PatchGAN, arXiv 1611.07004; scales, 1711.11585).

    Spectral norm on the inner convolutions (arXiv 1802.05957) and no other normalisation, so that a score depends on
    its own region alone.

    Args:
        width: channels of the first layer, doubled twice.
        scales: how many times the image is judged, each time at half the size.
    """

    def __init__(self, width: int = 64, scales: int = 2) -> None:
        super().__init__()
        self.judges = nn.ModuleList(_judge(width) for _ in range(scales))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Scores (B, 1, h, w) of images (B, 3, H, W) in [0, 1], one map a scale; real is high."""
        scores = []
        for judge in self.judges:
            scores.append(judge(images * 2 - 1))
            images = F.avg_pool2d(images, 2)
        return scores


class Thermostat(nn.Module):
    """Strength of the adversarial gradient, regulated by the detail it brings about.

    Left alone, an adversary takes a network over within a hundred steps, or is not heard at all, and where the one ends
    and the other begins changes as both learn. What is wanted is known: as much detail as the truth has.

    Args:
        target: detail of the output over the truth's, in dB, at which the strength stays as it is.
        first: strength to start from.
        most, least: its bounds.
        pace: change of its logarithm per step and dB of lacking detail.
    """

    level: Tensor

    def __init__(
        self, target: float, first: float = 0.02, most: float = 0.1, least: float = 1e-3, pace: float = 2e-4
    ) -> None:
        super().__init__()
        self.target, self.pace = target, pace
        self.least, self.most = math.log(least), math.log(most)
        self.register_buffer("level", torch.tensor(math.log(first)))

    def forward(self) -> Tensor:
        """The strength, a number."""
        return self.level.exp()

    @torch.no_grad()
    def feel(self, detail: Tensor, heard: Tensor) -> None:
        """Regulate after a batch of this detail in dB; where `heard` is 0 the strength had no part in it."""
        lacking = (self.target - detail).clamp(-6, 6) * heard
        self.level.add_(self.pace * lacking).clamp_(self.least, self.most)


def _judge(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(4 * width, 4 * width, 3, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4 * width, 1, 3, padding=1),
    )
