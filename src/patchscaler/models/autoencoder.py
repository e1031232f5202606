"""The compact autoencoder: factor 8, all convolutions at a quarter and an eighth of the resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from patchscaler.models.blocks import PixelShuffle, PixelUnshuffle, PointwiseConv, ResBlock, zeroed

_VALUES = 8
"""Maps of a block's width that are alive at once, the workspace of convolutions included; measured."""

_IMAGES = 5
"""Images of the tile at full size that are alive at once; they count where a network is narrow; measured."""


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) in [-1, 1] to raw latents (B, c, H/8, W/8)."""

    def __init__(self, latent_channels: int, widths: tuple[int, int], blocks: tuple[int, int]) -> None:
        quarter, eighth = widths
        super().__init__(
            PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            *(ResBlock(quarter) for _ in range(blocks[0])),
            nn.Conv2d(quarter, eighth, 2, stride=2),
            *(ResBlock(eighth) for _ in range(blocks[1])),
            nn.Conv2d(eighth, latent_channels, 3, padding=1),
        )


class Decoder(nn.Module):
    """Raw latents (B, c, H/8, W/8), with or without the LR image (B, 3, H/4, W/4), to images (B, 3, H, W).

    At scale 4 the LR image lies exactly on the quarter-resolution grid. Its branch starts at zero, so the decoder
    can be trained without it first.
    """

    def __init__(self, latent_channels: int, widths: tuple[int, int], blocks: tuple[int, int]) -> None:
        super().__init__()
        quarter, eighth = widths
        self.eighth = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *(ResBlock(eighth) for _ in range(blocks[1])),
            PointwiseConv(eighth, 4 * quarter),
            PixelShuffle(2),
        )
        self.lr_skip = nn.Sequential(
            nn.Conv2d(3, quarter // 2, 3, padding=1),
            nn.SiLU(),
            zeroed(nn.Conv2d(quarter // 2, quarter, 3, padding=1)),
        )
        self.quarter = nn.Sequential(
            *(ResBlock(quarter) for _ in range(blocks[0])),
            nn.Conv2d(quarter, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def forward(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """Decode; `lr` in [-1, 1]."""
        x = self.eighth(latent)
        if lr is not None:
            x = x + self.lr_skip(lr)
        return self.quarter(x)


class Autoencoder(ModelMixin, ConfigMixin):
    """Encoder E and decoder D of the `compact` preset; latents have mean 0 and deviation 1 per channel.

    Args:
        latent_channels: channels c of the latent.
        encoder_widths, decoder_widths: channels at 1/4 and 1/8 of the resolution.
        encoder_blocks, decoder_blocks: residual blocks at 1/4 and 1/8 of the resolution.

    Attributes:
        encode_halo: latents around a tile that its latents depend on, bicubic upsampling included.
        decode_halo: latents around a tile that its image depends on.
        values_per_latent: numbers alive at once for each latent of a tile, at most.
    """

    factor = 8
    decodes_with_lr = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        encoder_widths: tuple[int, int] = (128, 192),
        encoder_blocks: tuple[int, int] = (2, 4),
        decoder_widths: tuple[int, int] = (128, 256),
        decoder_blocks: tuple[int, int] = (4, 4),
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encode_halo = _reach(encoder_blocks, at_quarter=2)
        self.decode_halo = _reach(decoder_blocks, at_quarter=0)
        widest = max(max(4 * quarter, eighth) for quarter, eighth in (encoder_widths, decoder_widths))
        self.values_per_latent = max(_VALUES * widest, _IMAGES * 3 * self.factor**2)
        self.encoder = Encoder(latent_channels, encoder_widths, encoder_blocks)
        self.decoder = Decoder(latent_channels, decoder_widths, decoder_blocks)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], H and W multiples of 8, to normalised latents (B, c, H/8, W/8)."""
        mean, std = self._statistics()
        return (self.encoder(images * 2 - 1) - mean) / std

    def decode(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """Normalised latents (B, c, H/8, W/8) to images (B, 3, H, W), nominally in [0, 1], not clamped.

        Args:
            latent: what `encode` returns, or an estimate of it.
            lr: the LR image (B, 3, H/4, W/4) in [0, 1]; keeps what the latent bottleneck loses.
        """
        mean, std = self._statistics()
        return self.decoder(latent * std + mean, None if lr is None else lr * 2 - 1) * 0.5 + 0.5

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.latent_mean.view(1, -1, 1, 1), self.latent_std.view(1, -1, 1, 1)


def _reach(blocks: tuple[int, int], at_quarter: int) -> int:
    """Latents that blocks at 1/4 and 1/8 of the resolution, and two more convolutions, see to each side."""
    return -(-(1 + 2 * blocks[0] + at_quarter) // 2) + 2 * blocks[1] + 1


def upsample(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling of (B, 3, h, w) in [0, 1] by an integer factor, clamped to [0, 1]."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic").clamp(0, 1)
