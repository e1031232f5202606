"""Patch-DiT: a diffusion transformer over the tokens of one patch (paper section 3.4)."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from patchscaler.models.blocks import (
    CrossAttention,
    FeedForward,
    PixelUnshuffle,
    PointwiseConv,
    ResBlock,
    SelfAttention,
    Standardise,
    sinusoidal_embedding,
    zeroed,
)
from patchscaler.models.restoration import Restored
from patchscaler.sampling.patches import tokenize, untokenize

_GATE = 0.2
"""Of a branch, at first."""


class ConditionStem(nn.Module):
    """Convolutions over the whole conditioning map, run once before it is cut into patches.

    Patches are denoised independently; through this map each of them still knows its surroundings, at no cost in
    tokens.

    Attributes:
        halo: latents around a tile that its part of the map depends on.
    """

    def __init__(
        self, latent_channels: int, lr_fold: int, feature_channels: int, width: int, out: int
    ) -> None:
        super().__init__()
        self.fold = PixelUnshuffle(lr_fold)
        self.halo = 5
        self.body = nn.Sequential(
            nn.Conv2d(latent_channels + 1 + 3 * lr_fold**2 + feature_channels, width, 3, padding=1),
            ResBlock(width),
            ResBlock(width),
            PointwiseConv(width, out),
        )

    def forward(self, restored: Restored, lr: Tensor) -> Tensor:
        """Condition map (B, c + out, H, W): y_0 itself, then the stem's features."""
        folded = self.fold(lr * 2 - 1)
        inputs = (restored.latent, restored.confidence, folded, restored.features)
        features = self.body(torch.cat([x.to(restored.latent.dtype) for x in inputs], dim=1))
        return torch.cat((restored.latent, features.to(restored.latent.dtype)), dim=1)


class PatchDiT(ModelMixin, ConfigMixin):
    """Predicts x_0 of a patch from (x_t, y_0, t, T, texture prompt), as a correction of y_0.

    The parts that do not change from step to step, `condition_tokens` and `prompt_cache`, are computed once per
    patch and handed to every call.

    Args:
        latent_channels: channels c of the latent.
        lr_fold: side of the block of LR pixels that one latent covers.
        feature_channels: channels of the restoration module's features.
        patch_size: side p of a patch in latents.
        token_size: side of the square of latents that becomes one token.
        width: width of the transformer.
        heads: attention heads.
        depth: transformer blocks.
        prompt_every: every so many blocks one attends to the prompt.
        prompt_width: width of the prompt tokens.
        stem_width: width of the condition stem.
        stem_channels: channels that the stem adds to y_0.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        lr_fold: int = 2,
        feature_channels: int = 144,
        patch_size: int = 16,
        token_size: int = 2,
        width: int = 320,
        heads: int = 5,
        depth: int = 6,
        prompt_every: int = 3,
        prompt_width: int = 320,
        stem_width: int = 96,
        stem_channels: int = 64,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.token_size = token_size
        self.side = patch_size // token_size
        area = token_size**2
        self.stem = ConditionStem(latent_channels, lr_fold, feature_channels, stem_width, stem_channels)
        self.embed_condition = nn.Linear((latent_channels + stem_channels) * area, width)
        self.embed = nn.Linear(latent_channels * area, width)
        self.position = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        self.standard = Standardise(width)
        self.time = nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))
        self.blocks = nn.ModuleList(
            _Block(width, heads, prompt_width if index % prompt_every == 0 else None)
            for index in range(depth)
        )
        self.out_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = zeroed(nn.Linear(width, latent_channels * area))

    def condition_tokens(self, condition: Tensor) -> Tensor:
        """Tokens (n, T, width) of patches (n, c + stem_channels, p, p) cut from the condition map."""
        return self.embed_condition(tokenize(condition, self.token_size)) + self.position

    def prompt_cache(self, prompt: Tensor) -> Tensor:
        """Keys and values (cross blocks, 2, n, heads, L, head width) of prompt tokens (n, L, prompt_width)."""
        caches = [
            b.cross.attention.key_value(prompt) for b in self.blocks if isinstance(b.cross, PromptBranch)
        ]
        return torch.stack([torch.stack(cache) for cache in caches])

    def forward(
        self, x: Tensor, y: Tensor, condition: Tensor, prompt: Tensor, timestep: Tensor, start: Tensor
    ) -> Tensor:
        """Predict x_0 (n, c, p, p).

        Args:
            x: noisy patches x_t (n, c, p, p).
            y: coarse patches y_0 (n, c, p, p).
            condition: what `condition_tokens` returned for these patches.
            prompt: what `prompt_cache` returned for these patches.
            timestep: t (n,) in [0, 1].
            start: T (n,), the timestep at which each patch's path began.
        """
        times = sinusoidal_embedding(torch.stack((timestep, start), dim=1), 256).flatten(1)
        time = self.time(times.to(condition.dtype))
        modulation = self.modulation(time).unflatten(-1, (6, -1))
        tokens = self.standard(self.embed(tokenize(x, self.token_size)) + condition)
        crossed = 0
        for block in self.blocks:
            cache = None
            if block.cross is not None:
                cache, crossed = (prompt[crossed, 0], prompt[crossed, 1]), crossed + 1
            tokens = block(tokens, modulation, cache)
        out = self.out(self.out_norm(tokens))
        return y + untokenize(out, self.latent_channels, self.token_size)


class PromptBranch(nn.Module):
    """What attention to the prompt adds to the tokens of a patch."""

    def __init__(self, width: int, heads: int, prompt_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = CrossAttention(width, heads, prompt_width)
        self.standard = Standardise(width)
        self.gate = nn.Parameter(torch.full((width,), _GATE))

    def forward(self, x: Tensor, prompt: tuple[Tensor, Tensor]) -> Tensor:
        """(n, T, width) to the same shape."""
        return self.gate.tanh() * self.standard(self.attention(self.norm(x), prompt))


class _Block(nn.Module):
    """Transformer block; the time modulation is shared by all blocks but for a table of offsets (arXiv 2310.00426).

    What a branch adds is standardised over the training batch, and its gate is bounded: else its weights make one
    channel, the same in all tokens, grow by thousands, and since tokens are normalised before they are read, all else
    is lost.
    """

    def __init__(self, width: int, heads: int, prompt_width: int | None) -> None:
        super().__init__()
        offsets = torch.randn(6, width) / width**0.5
        offsets[[2, 5]] = _GATE
        self.offsets = nn.Parameter(offsets)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.mixed = Standardise(width)
        self.cross = None if prompt_width is None else PromptBranch(width, heads, prompt_width)
        self.feed = FeedForward(width)
        self.fed = Standardise(width)

    def forward(self, x: Tensor, modulation: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
        modulation = (modulation + self.offsets).tanh()
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation[:, :, None].unbind(1)
        norm = self.norm
        x = x + gate1 * self.mixed(self.attention(norm(x) * (1 + scale1) + shift1))
        if self.cross is not None and prompt is not None:
            x = x + self.cross(x, prompt)
        return x + gate2 * self.fed(self.feed(norm(x) * (1 + scale2) + shift2))
