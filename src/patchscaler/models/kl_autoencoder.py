"""Any diffusers `AutoencoderKL` (the Stable Diffusion VAE, say) behind the interface of `Autoencoder`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn


class KLAutoencoder(nn.Module):
    """Adapter of the `paper` preset: mean of the posterior, scaled by the VAE's own scaling factor.

    Such a VAE normalises over the whole image and attends globally: results depend on the size of the image, and
    it takes no LR image in its decoder.
    """

    decodes_with_lr = False
    encode_halo = decode_halo = None
    values_per_latent = 0

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.latent_channels: int = vae.config["latent_channels"]
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.scaling: float = vae.config["scaling_factor"]
        self.shift: float = vae.config.get("shift_factor") or 0.0

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> KLAutoencoder:
        """Load the VAE from a folder or a hub id, as `AutoencoderKL.from_pretrained` does."""
        return cls(AutoencoderKL.from_pretrained(source, **options))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the VAE as diffusers does."""
        self.vae.save_pretrained(Path(folder))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to scaled latents (B, c, H/f, W/f)."""
        return (self.vae.encode(images * 2 - 1, return_dict=False)[0].mode() - self.shift) * self.scaling

    def decode(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """Scaled latents to images (B, 3, H, W), nominally in [0, 1]; `lr` is not used."""
        scaled = cast("torch.FloatTensor", latent / self.scaling + self.shift)
        return self.vae.decode(scaled, return_dict=False)[0] * 0.5 + 0.5

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return self.vae.dtype
