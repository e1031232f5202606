"""Global Restoration Module (GRM): a coarse HR latent and how far to trust it (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from patchscaler.models.blocks import GatedBlock, PixelShuffle, PixelUnshuffle, PointwiseConv, zeroed


class Restored(NamedTuple):
    """Coarse latent y_0 (B, c, H, W), confidence C (B, 1, H, W) in (0, 1), features (B, widths[0], H, W)."""

    latent: Tensor
    confidence: Tensor
    features: Tensor


_VALUES = 13
"""Maps of a block's width that are alive at once, the workspace of convolutions included; measured."""


class RestorationModule(ModelMixin, ConfigMixin):
    """U-Net of gated blocks over the LR latent and the LR pixels folded to the latent grid.

    Args:
        latent_channels: channels c of the latent.
        lr_fold: side of the block of LR pixels that one latent covers (factor / 4).
        widths: channels at each level; the latent's sides must be multiples of 2 ** (levels - 1).
        blocks: gated blocks at each level, on the way down and again on the way up (once at the bottom).

    Attributes:
        grid: tiles must begin at multiples of it.
        halo: latents around a tile that its results depend on, a multiple of `grid`.
        values_per_latent: numbers alive at once for each latent of a tile, at most.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        lr_fold: int = 2,
        widths: tuple[int, ...] = (144, 208, 272),
        blocks: tuple[int, ...] = (3, 3, 4),
    ) -> None:
        super().__init__()
        self.fold = PixelUnshuffle(lr_fold)
        self.grid = 2 ** (len(widths) - 1)
        self.halo = -(-(_reach(blocks) + 3) // self.grid) * self.grid
        self.values_per_latent = _VALUES * widths[0]
        self.stem = nn.Conv2d(latent_channels + 3 * lr_fold**2, widths[0], 3, padding=1)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_stack(width, count) for width, count in zip(widths, blocks, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.grow = nn.ModuleList(
            nn.Sequential(PointwiseConv(coarse, 4 * fine), PixelShuffle(2)) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(
            _stack(width, count) for width, count in zip(widths[:-1], blocks, strict=False)
        )
        self.to_latent = zeroed(nn.Conv2d(widths[0], latent_channels, 3, padding=1))
        self.to_confidence = nn.Sequential(
            nn.Conv2d(widths[0], widths[0] // 4, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(widths[0] // 4, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor, lr: Tensor) -> Restored:
        """Restore.

        Args:
            latent: z_LR (B, c, H, W), the encoded bicubic upsampling of the LR image.
            lr: the LR image (B, 3, H * lr_fold, W * lr_fold) in [0, 1].
        """
        folded = self.fold(lr * 2 - 1)
        x = self.stem(torch.cat((latent, folded.to(latent.dtype)), dim=1))
        skips: list[Tensor] = []
        for blocks, shrink in zip(self.down, self.shrink, strict=False):
            x = blocks(x)
            skips.append(x)
            x = shrink(x)
        x = self.down[-1](x)
        for blocks, grow, skip in reversed(list(zip(self.up, self.grow, skips, strict=True))):
            x = blocks(grow(x) + skip)
        return Restored(latent + self.to_latent(x), self.to_confidence(x), x)


def _reach(blocks: Sequence[int]) -> int:
    """Positions of the finest level that all levels together see to each side."""
    reach = blocks[-1]
    for count in reversed(blocks[:-1]):
        reach = 2 * reach + 1 + 2 * count
    return reach


def _stack(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(GatedBlock(channels) for _ in range(count)))
