"""Where prompts change the result most, for better and for worse: patches chosen by measure, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from patchscaler.evaluation.metrics import DeepFeatureDistance
from patchscaler.evaluation.prompts import caption, decode_patches, stacked
from patchscaler.features import feature_distance
from patchscaler.imaging.contact_sheet import Cell, contact_sheet
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.patches import unfold


@dataclass(frozen=True)
class PromptedPatch:
    """A patch, without and with its prompt.

    Attributes:
        image: its name.
        corner: left and top of the patch in it, in pixels.
        pixels: of y_0, without and with prompts, and the truth: (h, w, 3) uint8 each.
        distance: deep feature distance of the first three from the truth.
        latent: y_0 (c, p, p), which searches.
    """

    image: str
    corner: tuple[int, int]
    pixels: tuple[np.ndarray, ...]
    distance: tuple[float, float, float]
    latent: Tensor

    @property
    def gain(self) -> float:
        """How much nearer to the truth the prompt brings it."""
        return self.distance[1] - self.distance[2]


@dataclass
class Extremes:
    """The patches that prompts bring nearest to the truth, and those that they lead furthest away; `count` of each."""

    count: int
    better: list[PromptedPatch] = field(default_factory=list)
    worse: list[PromptedPatch] = field(default_factory=list)

    def add_image(
        self,
        pipeline: PatchScalerPipeline,
        judge: DeepFeatureDistance,
        name: str,
        images: Sequence[np.ndarray],
        latent: Tensor,
    ) -> None:
        """Judge each patch of an image alone; equal ones are nothing to see.

        Args:
            pipeline: whose patches these are.
            judge: measures the distance from the truth.
            name: of the image.
            images: y_0 decoded, without and with prompts, and the truth: (H, W, 3) uint8 each.
            latent: y_0 of the patches (n, c, p, p).
        """
        size, stride = (
            side * pipeline.autoencoder.factor
            for side in (pipeline.sampling.patch_size, pipeline.sampling.stride)
        )
        maps = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        cut = unfold(maps, size, stride).unflatten(0, (len(images), -1))
        taps = [judge.features(part.to(latent.device) / 255) for part in cut]
        distance = torch.stack([feature_distance(part, taps[-1]) for part in taps[:-1]], dim=1).tolist()
        columns = (maps.shape[3] - size) // stride + 1
        for number, found in enumerate(distance):
            corner = (number % columns * stride, number // columns * stride)
            pixels = tuple(part[number].permute(1, 2, 0).numpy() for part in cut)
            self.add(PromptedPatch(name, corner, pixels, tuple(found), latent[number]))

    def add(self, patch: PromptedPatch) -> None:
        """Keep a patch if it is among them."""
        if patch.gain > 0:
            self.better = sorted((*self.better, patch), key=lambda each: -each.gain)[: self.count]
        if patch.gain < 0:
            self.worse = sorted((*self.worse, patch), key=lambda each: each.gain)[: self.count]

    def sheet(self, pipeline: PatchScalerPipeline) -> np.ndarray:
        """A row (H, W, 3) uint8 of each: y_0, without, with, the truth, and the entries that it found."""
        return stacked(
            [
                _rows(pipeline, self.better, "nearer to the truth with a prompt"),
                _rows(pipeline, self.worse, "further from it"),
            ]
        )


@torch.inference_mode()
def _rows(pipeline: PatchScalerPipeline, patches: list[PromptedPatch], title: str) -> np.ndarray:
    memory = pipeline.texture_memory
    assert memory is not None
    count = min(pipeline.sampling.prompt_count, len(memory))
    names = ("restored", "no prompt", f"top {count}")
    cells = []
    for patch in patches:
        found = memory.search(pipeline.keys(patch.latent[None]), count)
        for name, pixels, distance in zip(names, patch.pixels[:3], patch.distance, strict=True):
            cells.append(Cell(pixels, (name, f"DFD {distance:.3f}")))
        cells.append(Cell(patch.pixels[3], ("truth, at {}, {}".format(*patch.corner), patch.image)))
        entries = zip(
            decode_patches(pipeline, found.patches[0]), found.entries[0], found.similarity[0], strict=True
        )
        for pixels, entry, similarity in entries:
            first, second = caption(memory.origins[int(entry)])
            cells.append(Cell(pixels, (f"{float(similarity):.2f}  {first}", second)))
    return contact_sheet(
        cells, columns=4 + count, side=128, lines=2, title=f"{title}: {len(patches)} patches"
    )
