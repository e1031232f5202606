"""Real-ESRGAN x4plus' generator from its published description (arXiv 1809.00219, 2107.10833): 16.7 M parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseBlock(nn.Module):
    """Five densely connected 3x3 convolutions."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(features + index * growth, growth if index < 4 else features, 3, padding=1)
            for index in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, H, W) to the same shape."""
        maps = [x]
        for conv in self.convs[:-1]:
            maps.append(F.leaky_relu(conv(torch.cat(maps, dim=1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(maps, dim=1))


class RRDB(nn.Sequential):
    """Three dense blocks around a residual."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, input: Tensor) -> Tensor:
        """(B, features, H, W) to the same shape."""
        return input + 0.2 * super().forward(input)


class RRDBNet(nn.Module):
    """x4 generator of 23 residual-in-residual dense blocks; upsampling by nearest neighbour and convolution."""

    def __init__(self, blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.after = nn.Conv2d(features, features, 3, padding=1)
        self.up1 = nn.Conv2d(features, features, 3, padding=1)
        self.up2 = nn.Conv2d(features, features, 3, padding=1)
        self.high = nn.Conv2d(features, features, 3, padding=1)
        self.last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, 4h, 4w)."""
        x = self.first(x)
        x = x + self.after(self.body(x))
        x = F.leaky_relu(self.up1(F.interpolate(x, scale_factor=2)), 0.2)
        x = F.leaky_relu(self.up2(F.interpolate(x, scale_factor=2)), 0.2)
        return self.last(F.leaky_relu(self.high(x), 0.2))
