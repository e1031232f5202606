"""Similarity-aware texture encoder: retrieved patches and their similarities become prompt tokens (section 3.4)."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from patchscaler.models.blocks import FeedForward, SelfAttention, sinusoidal_embedding, zeroed
from patchscaler.sampling.patches import tokenize


class TextureEncoder(ModelMixin, ConfigMixin):
    """Tokens of the K retrieved patches, modulated by the similarity of the patch they come from.

    Args:
        latent_channels: channels c of the latent.
        patch_size: side p of a patch in latents.
        token_size: side of the square of latents that becomes one token.
        width: width inside.
        heads: attention heads.
        depth: transformer blocks.
        prompt_width: width of the tokens given out.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        patch_size: int = 16,
        token_size: int = 4,
        width: int = 192,
        heads: int = 3,
        depth: int = 2,
        prompt_width: int = 320,
    ) -> None:
        super().__init__()
        self.token_size = token_size
        self.embed = nn.Linear(latent_channels * token_size**2, width)
        self.position = nn.Parameter(torch.randn((patch_size // token_size) ** 2, width) * 0.02)
        self.similarity = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), zeroed(nn.Linear(width, 2 * width))
        )
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, prompt_width))
        self.null = nn.Parameter(torch.randn(prompt_width) * 0.02)

    def forward(self, patches: Tensor, similarity: Tensor | None) -> Tensor:
        """Prompt tokens (n, K * tokens + 1, prompt_width); the last is the null prompt, to pass over what was found.

        Args:
            patches: retrieved latent patches (n, K, c, p, p).
            similarity: inner products of keys (n, K) in [-1, 1]; None leaves the tokens as they are.
        """
        count, k = patches.shape[:2]
        tokens = self.embed(tokenize(patches.flatten(0, 1), self.token_size)) + self.position
        if similarity is not None:
            level = sinusoidal_embedding((similarity.flatten() + 1) / 2, tokens.shape[-1]).to(tokens.dtype)
            scale, shift = self.similarity(level)[:, None].chunk(2, dim=-1)
            tokens = tokens * (1 + scale) + shift
        tokens = tokens.unflatten(0, (count, k)).flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return torch.cat((self.out(tokens), self.null_prompt(count).to(tokens.dtype)), dim=1)

    def null_prompt(self, count: int) -> Tensor:
        """The learned prompt (count, 1, prompt_width) that stands for no texture."""
        return self.null.expand(count, 1, -1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed = FeedForward(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))
