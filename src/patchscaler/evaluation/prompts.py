"""What a pipeline retrieves from its texture memory, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.imaging.contact_sheet import Cell, contact_sheet, outlined
from patchscaler.imaging.streaming import Canvas
from patchscaler.imaging.tensors import levels, to_planes
from patchscaler.pipeline import MIN_SIDE, SCALE, PatchScalerPipeline
from patchscaler.runtime.clock import Clock
from patchscaler.sampling.grouping import patch_quality
from patchscaler.stages import Stages
from patchscaler.texture_memory import Origin, ReferenceTextureMemory


def memory_sheet(pipeline: PatchScalerPipeline, *, limit: int) -> np.ndarray:
    """A contact sheet (H, W, 3) uint8 of the first entries of the memory, sorted by category."""
    memory = _memory(pipeline)
    shown = memory[:limit]
    pixels = decode_patches(pipeline, shown.patches(slice(None)))
    order = sorted(range(len(shown)), key=lambda number: shown.categories[number])
    cells = [Cell(pixels[number], caption(shown.origins[number])) for number in order]
    title = f"{len(memory)} entries of {len(set(memory.sources))} pictures"
    if len(shown) < len(memory):
        title += f"; the first {len(shown)} of them"
    return contact_sheet(cells, columns=12, side=128, lines=2, title=title)


def retrieval_sheet(pipeline: PatchScalerPipeline, pixels: np.ndarray, *, patches: int) -> np.ndarray:
    """For the hardest patches of a photo (h, w, 3) uint8: LR, y_0 decoded, and the entries that prompt it."""
    memory = _memory(pipeline)
    count = min(pipeline.sampling.prompt_count, len(memory))
    latent, quality, columns = coarse_patches(pipeline, pixels)
    hardest = quality.argsort()[:patches]
    with torch.inference_mode():
        found = memory.search(pipeline.keys(latent[hardest]), count)
    coarse = decode_patches(pipeline, latent[hardest])
    retrieved = decode_patches(pipeline, found.patches.flatten(0, 1))
    step = pipeline.sampling.stride * pipeline.autoencoder.factor // SCALE
    side = pipeline.sampling.patch_size * pipeline.autoencoder.factor // SCALE
    places = [(int(index) % columns * step, int(index) // columns * step) for index in hardest]
    cells = []
    for row, (left, top) in enumerate(places):
        confidence = float(quality[hardest[row]])
        cells.append(Cell(pixels[top : top + side, left : left + side], (f"{row + 1}: input", "")))
        cells.append(Cell(coarse[row], ("restored (query)", f"confidence {confidence:.2f}")))
        for place in range(count):
            origin = memory.origins[int(found.entries[row, place])]
            similarity = float(found.similarity[row, place])
            first, second = caption(origin)
            cells.append(Cell(retrieved[row * count + place], (f"{similarity:.2f}  {first}", second)))
    rows = contact_sheet(cells, columns=2 + count, side=128, lines=2)
    return _beside(outlined(pixels, places, side, max(256, len(rows) - 16)), rows)


@torch.inference_mode()
def coarse_patches(pipeline: PatchScalerPipeline, pixels: np.ndarray) -> tuple[Tensor, Tensor, int]:
    """y_0 (n, c, p, p) and mean confidence (n,) of the patches of an image of any size, and how many are in a row."""
    canvas = Canvas(
        to_planes(pixels, MIN_SIDE),
        pipeline.sampling.patch_size,
        pipeline.sampling.stride,
        pipeline.autoencoder.factor // SCALE,
    )
    stages, clock = Stages(pipeline, None, None), Clock(pipeline.device, None)
    with clock.stage("encode", canvas.height * canvas.width) as tick:
        stages.encode(canvas, tick)
    with clock.stage("restore", canvas.rows * canvas.cols * canvas.stride**2) as tick:
        stages.restore(canvas, tick, with_condition=False)
    quality = patch_quality(canvas.confidence, canvas.patch_size, canvas.stride).cpu()
    return canvas.patches.to(pipeline.device, pipeline.dtype), quality, canvas.cols


@torch.inference_mode()
def decode_patches(pipeline: PatchScalerPipeline, latent: Tensor) -> list[np.ndarray]:
    """Pictures (h, w, 3) uint8 of latent patches (n, c, p, p), each decoded alone."""
    return [levels(image, np.uint8) for part in latent.split(32) for image in pipeline.decode(part)]


def _memory(pipeline: PatchScalerPipeline) -> ReferenceTextureMemory:
    if pipeline.texture_memory is None or not len(pipeline.texture_memory):
        raise InputError("this model has no texture memory to show")
    return pipeline.texture_memory


def caption(origin: Origin) -> tuple[str, str]:
    """The end of the source's name, which tells most, with the category if there is one; the licence."""
    name = origin.source.rpartition("/")[2]
    return (f"{origin.category}: {name}" if origin.category else name), origin.licence


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets (H, W, 3) under each other."""
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([_widened(sheet, len(sheet), width) for sheet in sheets])


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A picture with a margin of 8 and a sheet, next to each other."""
    height = max(len(left) + 16, len(right))
    panel = _widened(right[:1, :1], height, left.shape[1] + 8)
    panel[8 : 8 + len(left), 8:] = left
    return np.concatenate([panel, _widened(right, height, right.shape[1])], axis=1)


def _widened(sheet: np.ndarray, height: int, width: int) -> np.ndarray:
    """A sheet with more of its margin below and to the right."""
    wide = np.empty((height, width, 3), dtype=np.uint8)
    wide[:] = sheet[0, 0]
    wide[: len(sheet), : sheet.shape[1]] = sheet
    return wide
