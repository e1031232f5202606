"""One image upscaled by several plans: it is encoded and restored once, and no output is made twice."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from patchscaler.imaging.streaming import Canvas
from patchscaler.imaging.tensors import new_image, to_planes
from patchscaler.imaging.tiles import Tile
from patchscaler.pipeline import MIN_SIDE, SCALE, PatchScalerPipeline
from patchscaler.result import UpscaleResult
from patchscaler.runtime.clock import Clock
from patchscaler.runtime.memory import out_of_memory_in_one_line
from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality
from patchscaler.stages import Stages


class RestoredImage:
    """An image after the first two stages of the pipeline, ready to be upscaled by any plan.

    Args:
        pipeline: the model; not changed.
        image: a uint8 or uint16 array (h, w, 3) or a float tensor (3, h, w) in [0, 1]; sides of 8 or more.
        seed: fixes the noise.

    Attributes:
        latent: y_0 (1, c, H, W), padded to whole patches.
        confidence: C (1, 1, H, W) in (0, 1), float32, padded likewise.

    Raises:
        InputError: an image of another kind or too small.
        DeviceError: memory ran out in the smallest tile.
    """

    @out_of_memory_in_one_line()
    @torch.inference_mode()
    def __init__(self, pipeline: PatchScalerPipeline, image: Any, seed: int = 0) -> None:
        sampling, factor = pipeline.sampling, pipeline.autoencoder.factor
        self._image, self._device = image, pipeline.device
        self._stages, clock = Stages(pipeline, None, None), Clock(pipeline.device, None)
        planes = to_planes(image, MIN_SIDE)
        self._canvas = canvas = Canvas(planes, sampling.patch_size, sampling.stride, factor // SCALE, seed)
        area = canvas.height * canvas.width
        with clock.stage("encode", area) as tick:
            self._stages.encode(canvas, tick)
        with clock.stage("restore", area) as tick:
            self._stages.restore(canvas, tick, with_condition=True)
        self._timings = clock.read()
        whole = Tile(0, canvas.height, 0, canvas.width)
        self.latent: Tensor = canvas.latents(whole, pipeline.autoencoder.latent_channels)
        self.confidence = canvas.confidence
        self._made: dict[tuple[Path, ...], tuple[Any, dict[str, float]]] = {}

    def upscale(self, plan: Plan) -> UpscaleResult:
        """What `pipeline(image, plan=plan, seed=seed)` gives.

        Encoding and restoring count in the times of every plan. A plan that sends each patch down the path where an
        earlier one sent it gets the same image object, and its times.
        """
        canvas = self._canvas
        group = assign(
            patch_quality(self.confidence, canvas.patch_size, canvas.stride).cpu(), plan.thresholds
        )
        paths = tuple(plan.paths[number] for number in group.tolist())
        if paths not in self._made:
            self._made[paths] = self._make(paths)
        image, timings = self._made[paths]
        height, width = (-(-side // canvas.lr_per_latent) for side in canvas.size)
        shape = canvas.rows, canvas.cols
        return UpscaleResult(
            image=image,
            confidence=self.confidence[0, 0, :height, :width].cpu().numpy(),
            groups=group.to(torch.int8).view(shape).numpy(),
            steps=torch.tensor([path.steps for path in paths], dtype=torch.int16).view(shape).numpy(),
            timings=self._timings | timings,
            seed=canvas.seed,
        )

    @out_of_memory_in_one_line()
    @torch.inference_mode()
    def _make(self, paths: tuple[Path, ...]) -> tuple[Any, dict[str, float]]:
        """The image whose patches take these paths, and the seconds of the last two stages."""
        canvas, clock = copy.copy(self._canvas), Clock(self._device, None)
        canvas.patches = canvas.patches.clone()
        start = torch.tensor([path.timestep for path in paths])
        steps = torch.tensor([path.steps for path in paths])
        with clock.stage("sample", int(steps.sum())) as tick:
            self._stages.sample([canvas], start, steps, tick, texture=True)
        image = new_image(self._image, *(SCALE * side for side in canvas.size))
        with clock.stage("decode", canvas.height * canvas.width) as tick:
            self._stages.decode(canvas, image, tick)
        return image, clock.read()
