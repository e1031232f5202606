"""Where ours is nearer to the truth than a peer and where it is not: crops chosen by measure, not by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from patchscaler.evaluation.metrics import Array, DeepFeatureDistance, luma, psnr_y
from patchscaler.features import feature_distance
from patchscaler.imaging.tensors import to_tensor

SIZE = 192
FLAT = 10.0


class Views(NamedTuple):
    """An image, or a crop of it, as everybody has it: (h, w, 3) uint8 each.

    `difficulty` is a whole multiple of `lr` in width, and may have a legend below.
    """

    lr: Array
    bicubic: Array
    peer: Array
    ours: Array
    truth: Array
    difficulty: Array


@dataclass(frozen=True)
class Crop:
    """A square of an image and how far two outputs are from the truth in it, measured on the crop alone.

    Attributes:
        stem: the image.
        top, left, size: the place in HR pixels, multiples of the scale.
        contrast: standard deviation of the truth's luma, in levels of 255.
        dfd: deep feature distances of ours and of the peer.
        psnr_y: theirs in dB; infinite where equal to the truth.
    """

    stem: str
    top: int
    left: int
    size: int
    contrast: float
    dfd: tuple[float, float]
    psnr_y: tuple[float, float]

    @property
    def gain(self) -> float:
        """The peer's DFD minus ours: above 0 where ours is nearer."""
        return self.dfd[1] - self.dfd[0]

    @property
    def won(self) -> bool:
        """Ours is nearer by DFD and by PSNR-Y, and there is something to see: contrast of FLAT or more."""
        return self.gain > 0 and self.psnr_y[0] > self.psnr_y[1] and self.contrast >= FLAT

    @property
    def lost(self) -> bool:
        """The peer is nearer by DFD: enough against us, even if PSNR-Y disagrees or the place is flat."""
        return self.gain < 0


@dataclass
class Contest:
    """Ours against one peer, in crops that cover every image.

    Attributes:
        peer: its name.
        crops: all that were measured, in the order of the images, then by row and column.
        views: pictures of the crop of each image that ours wins by most, and of the one it loses by most.
    """

    peer: str
    crops: list[Crop] = field(default_factory=list)
    views: dict[Crop, Views] = field(default_factory=dict)

    def add(self, stem: str, views: Views, judge: DeepFeatureDistance, border: int = 0) -> None:
        """Measure an image's crops, without `border` HR pixels on every side."""
        height, width = views.truth.shape[:2]
        grid = places(height, width, border, height // len(views.lr))
        crops = [_measure(stem, views, judge, *place) for place in grid]
        self.crops += crops
        for crop in (_most_won(crops), _most_lost(crops)):
            if crop is not None:
                self.views[crop] = _cut(views, crop)

    def wins(self, count: int = 10) -> list[Crop]:
        """Crops that ours wins by most, at most one of an image, the largest gain first."""
        found = [crop for crops in self._by_image() if (crop := _most_won(crops))]
        return sorted(found, key=lambda crop: -crop.gain)[:count]

    def losses(self, count: int = 5) -> list[Crop]:
        """Crops that ours loses by most, at most one of an image, the largest loss first."""
        found = [crop for crops in self._by_image() if (crop := _most_lost(crops))]
        return sorted(found, key=lambda crop: crop.gain)[:count]

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; of pairs the first is ours."""
        crops = [asdict(crop) | {"dfd": [*crop.dfd], "psnr_y": [*crop.psnr_y]} for crop in self.crops]
        return {"peer": self.peer, "crops": crops}

    def _by_image(self) -> Iterable[list[Crop]]:
        images: dict[str, list[Crop]] = {}
        for crop in self.crops:
            images.setdefault(crop.stem, []).append(crop)
        return images.values()


def places(height: int, width: int, border: int, scale: int) -> list[tuple[int, int, int]]:
    """Top, left and side of crops: SIZE or what fits, spread evenly, as few a row as cover the image.

    All are multiples of the scale, as height and width are.
    """
    first = -(-border // scale)
    lasts = [(side - border) // scale for side in (height, width)]
    size = min(SIZE // scale, *(last - first for last in lasts))
    tops, lefts = (
        np.linspace(first, last - size, -(-(last - first) // size)).astype(int) * scale for last in lasts
    )
    return [(int(top), int(left), size * scale) for top in tops for left in lefts]


@torch.inference_mode()
def _measure(stem: str, views: Views, judge: DeepFeatureDistance, top: int, left: int, size: int) -> Crop:
    ours, peer, truth = (
        image[top : top + size, left : left + size] for image in (views.ours, views.peer, views.truth)
    )
    device = next(judge.parameters()).device
    taps = judge.features(torch.stack([to_tensor(image, 1) for image in (ours, peer, truth)]).to(device))
    first, second = feature_distance([tap[:2] for tap in taps], [tap[2:] for tap in taps]).tolist()
    psnr = (psnr_y(ours, truth), psnr_y(peer, truth))
    return Crop(stem, top, left, size, float(luma(truth).std()), (first, second), psnr)


def _most_won(crops: Iterable[Crop]) -> Crop | None:
    return max((crop for crop in crops if crop.won), key=lambda crop: crop.gain, default=None)


def _most_lost(crops: Iterable[Crop]) -> Crop | None:
    return min((crop for crop in crops if crop.lost), key=lambda crop: crop.gain, default=None)


def _cut(views: Views, crop: Crop) -> Views:
    def part(image: Array) -> Array:
        width = views.truth.shape[1]
        top, left, size = (value * image.shape[1] // width for value in (crop.top, crop.left, crop.size))
        return image[top : top + size, left : left + size].copy()

    return Views(*map(part, views))
