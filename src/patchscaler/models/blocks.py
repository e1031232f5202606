"""Building blocks shared by the networks.

Every convolutional block has a bounded receptive field and normalises over channels at each position only,
so the result at a pixel depends neither on the size of the image nor on the tile it is computed in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W) at each position; free of copies in channels-last memory."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W) over C."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution; on a GPU a matrix product, which adds the bias itself and saves a pass over the result."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), without a copy in channels-last memory."""
        if not _infers_in_half(self.weight):
            return super().forward(input)
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PixelShuffle(nn.PixelShuffle):
    """Pixel shuffle in one copy that keeps channels-last memory; torch's own leaves it on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C r^2, H, W) to (B, C, r H, r W)."""
        r = self.upscale_factor
        blocks = input.unflatten(1, (-1, r, r)).permute(0, 4, 2, 5, 3, 1)
        return blocks.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class PixelUnshuffle(nn.PixelUnshuffle):
    """The inverse of `PixelShuffle`, in one copy to channels-last memory, too."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, r H, r W) to (B, C r^2, H, W)."""
        r = self.downscale_factor
        blocks = input.unflatten(3, (-1, r)).unflatten(2, (-1, r)).permute(0, 2, 4, 1, 3, 5)
        return blocks.flatten(3).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


class GatedBlock(nn.Module):
    """Gated depthwise convolution and gated feed-forward, after NAFNet (arXiv 2204.04676).

    NAFNet's channel attention pools over the whole image and is left out: it would tie every pixel to the crop.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.expand = PointwiseConv(channels, 2 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.project = zeroed(PointwiseConv(channels, channels))
        self.norm2 = ChannelNorm(channels)
        self.feed = PointwiseConv(channels, 2 * channels)
        self.out = zeroed(PointwiseConv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.project(_gate(self.depthwise(self.expand(self.norm1(x)))))
        return x + self.out(_gate(self.feed(self.norm2(x))))


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other, with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=_EPS)
        self.key_norm = nn.RMSNorm(width // heads, eps=_EPS)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, width) to the same shape."""
        query, key, value = self.to_query_key_value(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.project(_attend(query, key, value, self.query_norm, self.key_norm))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to others, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(context_width, 2 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=_EPS)
        self.key_norm = nn.RMSNorm(width // heads, eps=_EPS)
        self.project = nn.Linear(width, width)

    def key_value(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, normalised, and values (n, heads, L, width / heads) of context tokens (n, L, context_width)."""
        key, value = self.to_key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.key_norm(key).to(value.dtype).transpose(1, 2), value.transpose(1, 2)

    def forward(self, x: Tensor, key_value: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from tokens (n, T, width) to what `key_value` returned."""
        query = self.to_query(x).unflatten(-1, (self.heads, -1))
        key, value = (part.transpose(1, 2) for part in key_value)
        return self.project(_attend(query, key, value, self.query_norm, None))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, query_norm: nn.RMSNorm, key_norm: nn.RMSNorm | None
) -> Tensor:
    """Mixed values (n, T, heads * d) of queries (n, T, heads, d), keys and values (n, L, heads, d)."""
    few = max(query.shape[1], key.shape[1]) <= 128 and query.shape[3] in (16, 32, 64, 128)
    if few and torch.compiler.is_compiling() and _infers_in_half(query_norm.weight):
        from patchscaler.models.fused_attention import attend  # needs Triton, which compiles the rest

        key_scale = None if key_norm is None else key_norm.weight
        return attend(query, key, value, query_norm.weight, key_scale, _EPS)
    query = query_norm(query).to(value.dtype).transpose(1, 2)
    key = (key if key_norm is None else key_norm(key).to(value.dtype)).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value.transpose(1, 2)).transpose(1, 2).flatten(2)


class Standardise(nn.Module):
    """Brings each channel of tokens to mean 0 and deviation 1: over the batch in training, then by running statistics.

    A layer norm lets one channel, the same in all tokens, drown the others; here none can be larger than the rest, and
    what all tokens share goes. In use it is one product and one sum for each channel, whatever the batch.

    Args:
        width: channels.
        pace: share of each new batch in the running statistics.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, pace: float = 0.01) -> None:
        super().__init__()
        self.pace = pace
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, width) to the same shape."""
        mean, variance = self.mean, self.variance
        if self.training:
            variance, mean = torch.var_mean(x.float(), dim=(0, 1), correction=0)
            with torch.no_grad():
                self.mean.lerp_(mean, self.pace)
                self.variance.lerp_(variance, self.pace)
        scale = (variance.float() + _EPS).rsqrt()
        return torch.addcmul((-mean * scale).to(x.dtype), x, scale.to(x.dtype))


class FeedForward(nn.Sequential):
    """Two-layer perceptron on tokens (n, T, width)."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__(
            nn.Linear(width, expansion * width), nn.GELU("tanh"), nn.Linear(expansion * width, width)
        )

    def forward(self, input: Tensor) -> Tensor:
        """(n, T, width) to the same shape; where no gradient is wanted the first product applies the GELU itself."""
        widen, activation, narrow = self
        if not (isinstance(widen, nn.Linear) and _infers_in_half(widen.weight)):
            return narrow(activation(widen(input)))
        rows, weight = input.flatten(0, -2), widen.weight.t()
        hidden = torch._addmm_activation(widen.bias, rows, weight, use_gelu=True)
        return narrow(hidden).unflatten(0, input.shape[:-1])


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Zero a layer's parameters, so that the branch it ends contributes nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Sines and cosines (..., width) of values (...) in [0, 1], frequencies spaced from 1 to 1,000."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=values.device))
    angles = values.float()[..., None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _infers_in_half(weight: Tensor) -> bool:
    """Whether a layer runs on a GPU in half precision without gradients; training keeps its weights in float32."""
    return weight.is_cuda and weight.dtype.itemsize == 2 and not torch.is_grad_enabled()


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * b
