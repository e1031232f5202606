"""The four stages of the pipeline, each run by tiles or packs that fit in memory.

A whole image is the case of one tile. Networks with a bounded receptive field see a halo around each tile, so the
tiles join without a trace; an autoencoder that sees the whole image at once is given the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchscaler.errors import ModelError
from patchscaler.imaging.streaming import Canvas
from patchscaler.imaging.tensors import put
from patchscaler.imaging.tiles import Tile, run_tiles
from patchscaler.models.autoencoder import upsample
from patchscaler.models.restoration import Restored
from patchscaler.runtime.clock import Tick
from patchscaler.runtime.memory import halve_on_out_of_memory, spare_memory
from patchscaler.sampling.engine import PatchSet, PromptFunction, sample_patches
from patchscaler.sampling.noise import patch_noise

if TYPE_CHECKING:
    from patchscaler.pipeline import PatchScalerPipeline

_SHARE = 0.5
"""Part of the spare memory that a tile may fill; the rest is for what waits and for estimates that are off."""


class Stages:
    """Runs the networks of a pipeline over images of any size.

    Args:
        pipeline: whose networks to run.
        tile: side of the tiles in latents; None takes the largest that fit.
        memory_limit: bytes that the process may hold on the device (on the CPU: in all).
    """

    def __init__(self, pipeline: PatchScalerPipeline, tile: int | None, memory_limit: int | None) -> None:
        self.pipeline, self.tile, self.memory_limit = pipeline, tile, memory_limit
        self.stride, self.size = pipeline.sampling.stride, pipeline.sampling.patch_size

    def encode(self, canvas: Canvas, tick: Tick) -> None:
        """z_LR of the bicubic upsampling, into `canvas.latent`."""
        channels = self.pipeline.autoencoder.latent_channels
        side = self._side(canvas, self.pipeline.autoencoder.values_per_latent, self._encode_halo)
        place = canvas.place(side, self.pipeline.device, self.pipeline.dtype)
        canvas.latent = _empty(canvas, channels, *place)

        def run(tile: Tile) -> None:
            outer = tile.grown(self._encode_halo, canvas.height, canvas.width)
            latent = self._finite(
                lambda model: (model.encode(upsample(_lr(canvas, outer, model), model.scale)),)
            )[0]
            canvas.latent[tile.where] = latent[tile.within(outer).where].to(*place)
            tick(tile.area)

        run_tiles(canvas.height, canvas.width, side, self._step(side), run)

    def restore(self, canvas: Canvas, tick: Tick, *, with_condition: bool) -> None:
        """y_0 and C, into `canvas.patches` and `canvas.confidence`; with the condition map if any patch needs it."""
        restoration, dit = self.pipeline.restoration, self.pipeline.patch_dit
        halo = restoration.halo + dit.stem.halo
        halo = -(-halo // restoration.grid) * restoration.grid
        overlap = self.size - self.stride
        side = self._side(canvas, restoration.values_per_latent, halo + overlap)
        place = canvas.place(side, self.pipeline.device, self.pipeline.dtype)
        canvas.confidence = _empty(canvas, 1, place[0], torch.float32)

        def compute(model: PatchScalerPipeline, outer: Tile) -> tuple[Tensor, Tensor]:
            lr = _lr(canvas, outer, model)
            restored: Restored = model.restoration(
                canvas.latent[outer.where].to(model.device, model.dtype), lr
            )
            condition = model.patch_dit.stem(restored, lr) if with_condition else restored.latent
            return restored.confidence, condition

        def run(tile: Tile) -> None:
            needed = tile._replace(bottom=tile.bottom + overlap, right=tile.right + overlap)
            outer = needed.grown(halo, canvas.height, canvas.width)
            confidence, condition = self._finite(lambda model: compute(model, outer))
            inside = needed.within(outer).where
            canvas.store_patches(tile, condition[inside], place)
            canvas.confidence[needed.where] = confidence[inside].to(canvas.confidence)
            tick(tile.area)

        run_tiles(canvas.rows * self.stride, canvas.cols * self.stride, side, self._step(side), run)
        del canvas.latent

    def sample(
        self,
        canvases: Sequence[Canvas],
        starts: Tensor,
        steps: Tensor,
        tick: Tick,
        *,
        texture: bool,
        deterministic: bool,
    ) -> None:
        """Take the patches of all images down their paths: x_0 replaces y_0 in `canvas.patches`.

        Args:
            canvases: the images.
            starts: T of every patch of every image (n,).
            steps: N of each (n,).
            tick: counts patch evaluations.
            texture: retrieve texture prompts.
            deterministic: compute every batch in one shape.
        """
        device, channels = self.pipeline.device, self.pipeline.autoencoder.latent_channels
        batch_size = 256 if device.type == "cuda" else 32
        pack_size = 4 * batch_size
        order = steps.argsort(descending=True, stable=True)[: int((steps > 0).sum())]
        if not len(order):
            return

        def compute(model: PatchScalerPipeline, index: Tensor) -> Tensor:
            done = tick.done
            prompt: PromptFunction = model.make_prompt if texture else model.null_prompt
            return sample_patches(
                model.patch_dit,
                prompt,
                _gather(canvases, index, starts, steps, channels, model),
                shortcut=model.sampling.shortcut,
                batch_size=batch_size,
                pack_size=pack_size,
                fixed_shape=deterministic,
                on_step=lambda count: tick.to(min(done + count, tick.total)),
            )

        def run(index: Tensor) -> Tensor:
            sampled = compute(self.pipeline, index)
            finite = sampled.isfinite().flatten(1).all(dim=1).cpu()
            if not finite.all():
                again = compute(self.pipeline.in_float32, index[~finite])
                sampled[~finite.to(device)] = _checked(again).to(sampled.dtype)
            return sampled

        for pack in order.split(pack_size):
            pack = pack.sort().values
            _scatter(canvases, pack, halve_on_out_of_memory(run, pack), channels)

    def decode(self, canvas: Canvas, image: Any, tick: Tick) -> None:
        """Decode x_0 into `image`, an array or tensor of the output's size, by rows of tiles."""
        autoencoder = self.pipeline.autoencoder
        halo = autoencoder.decode_halo or 0
        side = self._side(canvas, autoencoder.values_per_latent, halo)
        height, width = (self.pipeline.scale * length for length in canvas.size)

        def run(tile: Tile) -> None:
            outer = tile.grown(halo, canvas.height, canvas.width)
            latent = canvas.latents(outer, autoencoder.latent_channels)
            pixels = self._finite(lambda model: (model.decode(latent, _lr(canvas, outer, model)),))[0]
            target = tile.times(autoencoder.factor).grown(0, height, width)
            if target.area:  # a tile may lie in the padding
                put(image, target, pixels[0][target.within(outer.times(autoencoder.factor)).where])
            tick(tile.area)

        run_tiles(canvas.height, canvas.width, side, self._step(side), run)

    @property
    def _encode_halo(self) -> int:
        return self.pipeline.autoencoder.encode_halo or 0

    def _side(self, canvas: Canvas, values_per_latent: int, halo: int) -> int:
        """Side of the tiles: all of a map that fits, else a multiple of the stride."""
        whole = -(-max(canvas.height, canvas.width) // self.stride) * self.stride
        if self.pipeline.autoencoder.decode_halo is None:
            return whole
        if self.tile is not None:
            return min(whole, max(1, self.tile // self.stride) * self.stride)
        spare = _SHARE * spare_memory(self.pipeline.device, self.memory_limit)
        latents = spare / (values_per_latent * self.pipeline.dtype.itemsize)
        if canvas.height * canvas.width <= latents:
            return whole
        return min(whole, max(1, int(latents**0.5 - 2 * halo) // self.stride) * self.stride)

    def _step(self, side: int) -> int:
        """The smallest tile to fall back to; there is none under an autoencoder that sees the whole image."""
        return side if self.pipeline.autoencoder.decode_halo is None else self.stride

    def _finite(self, compute: Callable[[PatchScalerPipeline], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` makes with the pipeline, or in float32 where half precision overflowed."""
        results = compute(self.pipeline)
        if all(bool(result.isfinite().all()) for result in results):
            return results
        return tuple(_checked(result) for result in compute(self.pipeline.in_float32))


def _lr(canvas: Canvas, tile: Tile, model: PatchScalerPipeline) -> Tensor:
    return canvas.lr(tile, model.device, model.dtype)


def _empty(canvas: Canvas, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty((1, channels, canvas.height, canvas.width), device=device, dtype=dtype)


def _checked(result: Tensor) -> Tensor:
    if not result.isfinite().all():
        raise ModelError(
            "the networks give values that are not finite, even in float32: the weights are broken"
        )
    return result


def _parts(canvases: Sequence[Canvas], index: Tensor) -> list[tuple[Canvas, Tensor]]:
    """Which patches of which images the rising numbers `index`, counted through all images, are."""
    parts, first = [], 0
    for canvas in canvases:
        count = len(canvas.patches)
        local = index[(index >= first) & (index < first + count)] - first
        if len(local):
            parts.append((canvas, local))
        first += count
    return parts


def _gather(
    canvases: Sequence[Canvas],
    index: Tensor,
    starts: Tensor,
    steps: Tensor,
    channels: int,
    model: PatchScalerPipeline,
) -> PatchSet:
    """The patches numbered `index`, ready to be sampled on the device."""
    device, parts = model.device, _parts(canvases, index)
    condition = torch.cat(
        [canvas.patches[local.to(canvas.patches.device)].to(device) for canvas, local in parts]
    )
    condition = condition.to(model.dtype)
    latent = condition[:, :channels]
    noise = [
        patch_noise(
            canvas.seed,
            (local // canvas.cols).to(device),
            (local % canvas.cols).to(device),
            latent.shape[1:],
        )
        for canvas, local in parts
    ]
    return PatchSet(latent, condition, torch.cat(noise), starts[index].to(device), steps[index])


def _scatter(canvases: Sequence[Canvas], index: Tensor, sampled: Tensor, channels: int) -> None:
    """Store the sampled patches numbered `index` in place of y_0."""
    parts = _parts(canvases, index)
    for (canvas, local), values in zip(parts, sampled.split([len(local) for _, local in parts]), strict=True):
        local = local.to(canvas.patches.device)
        canvas.patches[local, :channels] = values.to(canvas.patches)
