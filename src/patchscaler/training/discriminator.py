"""The discriminator of adversarial fine-tuning."""

from __future__ import annotations

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
