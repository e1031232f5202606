"""The four stages of the pipeline, each run by tiles or packs that fit in memory.

A whole image is the case of one tile. Networks with a bounded receptive field see a halo around each tile, so the
tiles join without a trace; an autoencoder that sees the whole image at once is given the whole image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchscaler.errors import ModelError
from patchscaler.imaging.low_frequencies import REACH, follow_low_frequencies
from patchscaler.imaging.streaming import Canvas
from patchscaler.imaging.tensors import put
from patchscaler.imaging.tiles import Tile, run_tiles
from patchscaler.models.autoencoder import upsample
from patchscaler.runtime.clock import Tick, seconds_of
from patchscaler.runtime.memory import halve_on_out_of_memory, spare_memory
from patchscaler.runtime.runner import Function, run_plainly
from patchscaler.sampling.engine import PatchSet, Run, sample_patches
from patchscaler.sampling.noise import to_word

if TYPE_CHECKING:
    from patchscaler.pipeline import PatchScalerPipeline

_SHARE = 0.5
"""Part of the spare memory that a tile may fill; the rest is for what waits and for estimates that are off."""

_GRAPH_AREA = 100_000
"""Latents of the largest tile that is worth a CUDA graph; larger ones keep the GPU busy as they are."""

_PACK = 1024


class Stages:
    """Runs the networks of a pipeline over images of any size.

    Args:
        pipeline: whose networks to run.
        tile: side of the tiles in latents; None takes the largest that fit.
        memory_limit: bytes that the process may hold on the device (on the CPU: in all).
        deterministic: equal bits whatever else is in the call, and whatever came before it.
        fidelity: share of y_0 in what is sampled.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tile: int | None,
        memory_limit: int | None,
        *,
        deterministic: bool = False,
        fidelity: float = 0.0,
    ) -> None:
        self.pipeline, self.tile = pipeline, tile
        self.deterministic, self.fidelity = deterministic, fidelity
        self.stride, self.size = pipeline.sampling.stride, pipeline.sampling.patch_size
        self.memory_limit, self.with_graphs = memory_limit, memory_limit is None
        if memory_limit is not None:
            pipeline.runner.clear()
        self.spare = spare_memory(pipeline.device, memory_limit)

    def encode(self, canvas: Canvas, tick: Tick) -> None:
        """z_LR of the bicubic upsampling, into `canvas.latent`."""
        channels = self.pipeline.autoencoder.latent_channels
        kept = channels * canvas.height * canvas.width
        side = self._side(canvas, self.pipeline.autoencoder.values_per_latent, self._encode_halo, kept)
        place = canvas.place(side, self.pipeline.device, self.pipeline.dtype)
        if place[0] == self.pipeline.device:
            canvas.planes = canvas.planes.to(self.pipeline.device, non_blocking=True)
        canvas.latent = _empty(canvas, channels, *place)

        def run(tile: Tile) -> None:
            canvas.latent[tile.where] = self._encode(self.pipeline, canvas, tile).to(*place)
            tick(tile.area)

        run_tiles(canvas.height, canvas.width, side, self._step(side), run)

    def restore(self, canvas: Canvas, tick: Tick, *, with_condition: bool) -> None:
        """y_0 and C, into `canvas.patches` and `canvas.confidence`; with the condition map if any patch needs it."""
        restoration, dit = self.pipeline.restoration, self.pipeline.patch_dit
        halo = restoration.halo + dit.stem.halo
        halo = -(-halo // restoration.grid) * restoration.grid
        overlap = self.size - self.stride
        channels = dit.config["latent_channels"] + with_condition * dit.config["stem_channels"]
        kept = channels * canvas.rows * canvas.cols * self.size**2
        side = self._side(canvas, restoration.values_per_latent, halo + overlap, kept)
        place = canvas.place(side, self.pipeline.device, self.pipeline.dtype)
        canvas.confidence = _empty(canvas, 1, place[0], torch.float32)
        name, part = ("condition", condition_part) if with_condition else ("restore", restore_part)

        def run(model: PatchScalerPipeline, tile: Tile) -> Tensor:
            needed = tile._replace(bottom=tile.bottom + overlap, right=tile.right + overlap)
            outer = needed.grown(halo, canvas.height, canvas.width)
            if model is self.pipeline:
                latent = canvas.latent[outer.where].to(model.device, model.dtype)
            else:
                latent = self._encode(model, canvas, outer)
            lr = _lr(canvas, outer, model)
            confidence, condition, finite = self._call(model, outer, name, part, latent, lr)
            inside = needed.within(outer).where
            canvas.store_patches(tile, condition[inside], place)
            canvas.confidence[needed.where] = confidence[inside].to(canvas.confidence)
            return finite

        self._run_tiles(canvas.rows * self.stride, canvas.cols * self.stride, side, run, tick)
        del canvas.latent

    def sample(
        self, canvases: Sequence[Canvas], starts: Tensor, steps: Tensor, tick: Tick, *, texture: bool
    ) -> None:
        """Take the patches of all images down their paths: x_0 replaces y_0 in `canvas.patches`.

        Args:
            canvases: the images.
            starts: T of every patch of every image (n,).
            steps: N of each (n,).
            tick: counts patch evaluations.
            texture: retrieve texture prompts.
        """
        channels = self.pipeline.autoencoder.latent_channels
        order = steps.argsort(descending=True, stable=True)[: int((steps > 0).sum())]
        if not len(order):
            return

        def overflowed(model: PatchScalerPipeline, index: Tensor) -> Tensor:
            """Sample patches; those of them that could not be."""
            finite = []
            for pack in index.split(_PACK):
                sample = partial(self._sample, model, canvases, starts, steps, texture, tick)
                sampled = halve_on_out_of_memory(sample, pack)
                finite.append(sampled.isfinite().flatten(1).all(dim=1))
                _scatter(canvases, pack, sampled, finite[-1], channels, self.fidelity)
            return index[~torch.cat(finite).cpu()]

        again = overflowed(self.pipeline, order)
        if len(again) and (
            self.pipeline.dtype == torch.float32 or len(overflowed(self.pipeline.in_float32, again))
        ):
            raise _broken()

    def decode(self, canvas: Canvas, image: Any, tick: Tick) -> None:
        """Decode x_0, in the colours of the LR image, into `image`: an array or tensor of the output's size."""
        autoencoder = self.pipeline.autoencoder
        halo = (autoencoder.decode_halo or 0) + -(-REACH // canvas.lr_per_latent)
        side = self._side(canvas, autoencoder.values_per_latent, halo)
        height, width = (self.pipeline.scale * length for length in canvas.size)

        def run(model: PatchScalerPipeline, tile: Tile) -> Tensor:
            outer = tile.grown(halo, canvas.height, canvas.width)
            pixels, finite = self._decode(model, canvas, outer)
            target = tile.times(autoencoder.factor).grown(0, height, width)
            if target.area:  # a tile may lie in the padding
                put(image, target, pixels[0][target.within(outer.times(autoencoder.factor)).where])
            return finite

        self._run_tiles(canvas.height, canvas.width, side, run, tick)

    def affordable(self, canvases: Sequence[Canvas], deadline: float, *, texture: bool) -> float:
        """Mean steps a patch that leave time for decoding, from a trial on these very images; 0 or more.

        A quarter of the largest image is decoded and a batch of patches takes a step, preparation included: what
        sampling costs is rather over- than underestimated.

        Args:
            canvases: the images, restored; those with a condition map are to be sampled.
            deadline: when all should be done, by `time.perf_counter`.
            texture: retrieve texture prompts.
        """
        model, device = self.pipeline, self.pipeline.device
        largest = max(canvases, key=lambda canvas: canvas.height * canvas.width)
        part = Tile(0, -(-largest.height // 2), 0, -(-largest.width // 2))
        area = sum(canvas.height * canvas.width for canvas in canvases)
        decoding = area / part.area * seconds_of(lambda: self._decode(model, largest, part), device)
        if time.perf_counter() + decoding >= deadline:
            return 0.0
        sampled = [c for c in canvases if c.patches.shape[1] > model.autoencoder.latent_channels]
        count = sum(len(canvas.patches) for canvas in sampled)
        starts, steps = torch.ones(count), torch.ones(count, dtype=torch.int64)
        trial = torch.arange(min(count, 256 if device.type == "cuda" else 8))
        idle = Tick("sample", 0, None)
        sampling = seconds_of(
            lambda: self._sample(model, sampled, starts, steps, texture, idle, trial), device
        )
        left = deadline - time.perf_counter() - decoding
        return max(0.0, left / (sampling / len(trial)) / count)

    @property
    def _encode_halo(self) -> int:
        return self.pipeline.autoencoder.encode_halo or 0

    def _encode(self, model: PatchScalerPipeline, canvas: Canvas, tile: Tile) -> Tensor:
        outer = tile.grown(self._encode_halo, canvas.height, canvas.width)
        (latent,) = self._call(model, outer, "encode", encode_part, _lr(canvas, outer, model))
        return latent[tile.within(outer).where]

    def _decode(self, model: PatchScalerPipeline, canvas: Canvas, outer: Tile) -> tuple[Tensor, ...]:
        latent = canvas.latents(outer, model.autoencoder.latent_channels).to(model.device, model.dtype)
        return self._call(model, outer, "decode", decode_part, latent, _lr(canvas, outer, model))

    def _sample(
        self,
        model: PatchScalerPipeline,
        canvases: Sequence[Canvas],
        starts: Tensor,
        steps: Tensor,
        texture: bool,
        tick: Tick,
        index: Tensor,
    ) -> Tensor:
        """x_0 of the patches `index`, numbered through all images."""
        done = tick.done
        return sample_patches(
            model.patch_dit,
            model.make_prompt if texture else model.null_prompt,
            _gather(canvases, index, starts, steps, model),
            shortcut=model.sampling.shortcut,
            sizes=batch_sizes(model.device, self.deterministic),
            pack_size=_PACK,
            run=self._runner(model, (texture, id(model.texture_memory))),
            on_step=lambda count: tick.to(min(done + count, tick.total)),
        )

    def _call(
        self,
        model: PatchScalerPipeline,
        tile: Tile,
        name: str,
        part: Function,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """A part of a model on a tile, as fast as may be."""
        run = self._runner(model, repeats=tile.area <= _GRAPH_AREA)
        return run(name, partial(part, model), *inputs)

    def _runner(self, model: PatchScalerPipeline, variant: Hashable = None, *, repeats: bool = True) -> Run:
        """How functions are run; those of one name that differ in more than their model differ in `variant`."""
        if self.deterministic or model is not self.pipeline:
            return run_plainly

        def run(name: str, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
            return model.runner((name, variant), function, *inputs, repeats=self.with_graphs and repeats)

        return run

    def _side(self, canvas: Canvas, values_per_latent: int, halo: int, kept: int = 0) -> int:
        """Side of the tiles: all of a map that fits, else a multiple of the stride; `kept` values wait on the host."""
        whole = -(-max(canvas.height, canvas.width) // self.stride) * self.stride
        if self.pipeline.autoencoder.decode_halo is None:
            return whole
        if self.tile is not None:
            return min(whole, max(1, self.tile // self.stride) * self.stride)
        spare = self.spare  # the device was asked once; what waits there is little
        if self.pipeline.device.type == "cpu":
            spare = max(0, spare_memory(self.pipeline.device, self.memory_limit) - 2 * kept)
        latents = _SHARE * spare / (values_per_latent * self.pipeline.dtype.itemsize)
        if canvas.height * canvas.width <= latents:
            return whole
        return min(whole, max(1, int(latents**0.5 - 2 * halo) // self.stride) * self.stride)

    def _step(self, side: int) -> int:
        """The smallest tile to fall back to; there is none under an autoencoder that sees the whole image."""
        return side if self.pipeline.autoencoder.decode_halo is None else self.stride

    def _run_tiles(
        self,
        height: int,
        width: int,
        side: int,
        run: Callable[[PatchScalerPipeline, Tile], Tensor],
        tick: Tick,
    ) -> None:
        """Run over the tiles of a map, and in float32 once more if half precision overflowed in any.

        `run` tells by a truth value on the device whether a tile is finite; all are read together at the end.
        """
        finite: list[Tensor] = []

        def counted(tile: Tile) -> None:
            finite.append(run(self.pipeline, tile))
            tick(tile.area)

        run_tiles(height, width, side, self._step(side), counted)
        if torch.stack(finite).all():
            return
        if self.pipeline.dtype == torch.float32:
            raise _broken()
        finite.clear()
        exact = self.pipeline.in_float32
        run_tiles(height, width, side, self._step(side), lambda tile: finite.append(run(exact, tile)))
        if not torch.stack(finite).all():
            raise _broken()


def batch_sizes(device: torch.device, one: bool) -> Sequence[int]:
    """Sizes of the denoiser's batches: any up to 32 on a CPU, a few up to 256 elsewhere; only the largest if `one`."""
    sizes = (16, 32, 64, 128, 256) if device.type == "cuda" else range(1, 33)
    return sizes[-1:] if one else sizes


def encode_part(model: PatchScalerPipeline, lr: Tensor) -> tuple[Tensor]:
    """z_LR (B, c, H, W) of LR images (B, 3, h, w) in [0, 1]."""
    return (model.autoencoder.encode(upsample(lr, model.scale)),)


def restore_part(model: PatchScalerPipeline, latent: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C and y_0 of z_LR and the LR images, and whether all is finite."""
    restored = model.restoration(latent, lr)
    return restored.confidence, restored.latent, _finite(restored.confidence, restored.latent)


def condition_part(model: PatchScalerPipeline, latent: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C and the condition map, whose first channels are y_0, of z_LR and the LR images, and whether all is finite."""
    restored = model.restoration(latent, lr)
    condition = model.patch_dit.stem(restored, lr)
    return restored.confidence, condition, _finite(restored.confidence, condition)


def decode_part(model: PatchScalerPipeline, latent: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 4h, 4w) in [0, 1] of latents and the LR images, and whether all was finite."""
    image = model.autoencoder.decode(latent, lr)
    return follow_low_frequencies(image, lr), _finite(image)


def _finite(*results: Tensor) -> Tensor:
    return torch.stack([result.isfinite().all() for result in results]).all()


def _lr(canvas: Canvas, tile: Tile, model: PatchScalerPipeline) -> Tensor:
    return canvas.lr(tile, model.device, model.dtype)


def _empty(canvas: Canvas, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty((1, channels, canvas.height, canvas.width), device=device, dtype=dtype)


def _broken() -> ModelError:
    return ModelError("the networks give values that are not finite, even in float32: the weights are broken")


def _parts(canvases: Sequence[Canvas], index: Tensor) -> Iterator[tuple[Canvas, Tensor, Tensor]]:
    """Which of the patches `index`, numbered through all images, are of which image, and their numbers in it."""
    first = 0
    for canvas in canvases:
        where = ((index >= first) & (index < first + len(canvas.patches))).nonzero().flatten()
        if len(where):
            yield canvas, where, index[where] - first
        first += len(canvas.patches)


def _gather(
    canvases: Sequence[Canvas], index: Tensor, starts: Tensor, steps: Tensor, model: PatchScalerPipeline
) -> PatchSet:
    """The patches numbered `index`, ready to be sampled on the device."""
    conditions, places, wheres = [], torch.empty(3, len(index), dtype=torch.int64), []
    for canvas, where, local in _parts(canvases, index):
        chosen = canvas.patches[local.to(canvas.patches.device, non_blocking=True)]
        conditions.append(chosen.to(model.device, model.dtype))
        places[0, where] = to_word(canvas.seed)
        places[1, where], places[2, where] = local // canvas.cols, local % canvas.cols
        wheres.append(where)
    condition = conditions[0]
    if len(conditions) > 1:
        back = torch.cat(wheres).argsort().to(model.device, non_blocking=True)
        condition = torch.cat(conditions)[back]
    seed, row, col = places.to(model.device, non_blocking=True)
    return PatchSet(
        condition, starts[index].to(model.device, non_blocking=True), steps[index], seed, row, col
    )


def _scatter(
    canvases: Sequence[Canvas],
    index: Tensor,
    sampled: Tensor,
    finite: Tensor,
    channels: int,
    fidelity: float,
) -> None:
    """Store those of the sampled patches numbered `index` that are finite in place of y_0, and with a share of it."""
    for canvas, where, local in _parts(canvases, index):
        where, place = where.to(sampled.device, non_blocking=True), canvas.patches.device
        local = local.to(place, non_blocking=True)
        good = finite[where][:, None, None, None].to(place)
        coarse = canvas.patches[local, :channels]
        values = torch.where(good, sampled[where].to(canvas.patches), coarse)
        canvas.patches[local, :channels] = torch.lerp(values, coarse, fidelity)
