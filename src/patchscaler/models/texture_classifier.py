"""Texture classifier: the key of a latent patch in the texture memory (paper section 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from patchscaler.models.blocks import ResBlock


class Texture(NamedTuple):
    """Unit-length keys (n, key_width) and category logits (n, len(categories))."""

    key: Tensor
    logits: Tensor


class TextureClassifier(ModelMixin, ConfigMixin):
    """Small convolutional network on one latent patch, pooled by mean and deviation.

    Args:
        latent_channels: channels c of the latent.
        widths: channels at full and at half the patch's resolution.
        key_width: length of a key.
        categories: names of the texture categories it tells apart.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        widths: tuple[int, int] = (96, 160),
        key_width: int = 128,
        categories: tuple[str, ...] = ("texture",),
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(latent_channels, widths[0], 3, padding=1),
            ResBlock(widths[0]),
            nn.Conv2d(widths[0], widths[1], 2, stride=2),
            ResBlock(widths[1]),
            nn.SiLU(),
        )
        self.to_key = nn.Linear(2 * widths[1], key_width)
        self.to_logits = nn.Linear(2 * widths[1], len(categories))

    def forward(self, patches: Tensor) -> Texture:
        """Keys and category logits of latent patches (n, c, p, p)."""
        features = self.body(patches).flatten(2).float()
        spread = (features.var(dim=2, correction=0) + 1e-4).sqrt()
        pooled = torch.cat((features.mean(dim=2), spread), dim=1).to(self.to_key.weight.dtype)
        return Texture(F.normalize(self.to_key(pooled).float(), dim=1), self.to_logits(pooled))
