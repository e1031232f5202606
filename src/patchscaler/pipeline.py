"""The upscaling pipeline: image in, image four times as large out (arXiv 2405.17158)."""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from patchscaler import storage
from patchscaler.errors import InputError, ModelError
from patchscaler.imaging.low_frequencies import follow_low_frequencies
from patchscaler.imaging.streaming import Canvas
from patchscaler.imaging.tensors import new_image, to_planes
from patchscaler.models.autoencoder import Autoencoder, upsample
from patchscaler.models.patch_dit import PatchDiT
from patchscaler.models.restoration import RestorationModule, Restored
from patchscaler.models.texture_classifier import TextureClassifier
from patchscaler.models.texture_encoder import TextureEncoder
from patchscaler.result import ProgressCallback, UpscaleResult
from patchscaler.runtime.clock import Clock
from patchscaler.runtime.device import resolve_device, resolve_dtype
from patchscaler.runtime.memory import out_of_memory_in_one_line
from patchscaler.runtime.runner import Runner
from patchscaler.sampling.grouping import Path as ShortcutPath
from patchscaler.sampling.grouping import Plan, assign, patch_quality, spend
from patchscaler.sampling.schedule import Shortcut
from patchscaler.stages import Stages
from patchscaler.texture_memory import ReferenceTextureMemory

if TYPE_CHECKING:
    from patchscaler.models.kl_autoencoder import KLAutoencoder

SCALE = 4
MIN_SIDE = 8


@dataclass(frozen=True)
class SamplingConfig:
    """How patches are cut, prompted and sampled.

    Attributes:
        patch_size: side p of a patch in latents.
        stride: step from patch to patch in latents.
        shortcut: law of the states in mid-path, as trained.
        prompt_count: texture patches K retrieved for each patch.
    """

    patch_size: int = 16
    stride: int = 16
    shortcut: Shortcut = "bridge"
    prompt_count: int = 3


class PatchScalerPipeline:
    """All networks with the texture memory; calls change nothing in it, so threads may share one.

    Args:
        autoencoder: the frozen encoder and decoder.
        restoration: GRM.
        patch_dit: the denoiser.
        texture_classifier: gives patches their keys.
        texture_encoder: makes prompt tokens.
        sampling: how patches are cut, prompted and sampled.
        texture_memory: sharp texture to retrieve from; None prompts no patch.
        plans: named qualities; `balanced` is what a call uses.
        card: what is known about the weights, plain JSON values.

    Attributes:
        folder: where the weights were read from, if they were.
        runner: runs the networks; shared with pipelines of the same networks.
    """

    scale = SCALE

    def __init__(
        self,
        *,
        autoencoder: Autoencoder | KLAutoencoder,
        restoration: RestorationModule,
        patch_dit: PatchDiT,
        texture_classifier: TextureClassifier,
        texture_encoder: TextureEncoder,
        sampling: SamplingConfig,
        texture_memory: ReferenceTextureMemory | None = None,
        plans: Mapping[str, Plan] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.autoencoder = autoencoder
        self.restoration = restoration
        self.patch_dit = patch_dit
        self.texture_classifier = texture_classifier
        self.texture_encoder = texture_encoder
        self.sampling = sampling
        self.texture_memory = texture_memory
        self.plans = dict(plans or {name: _untuned() for name in ("fast", "balanced", "best")})
        self.card = dict(card or {})
        self.folder: Path | None = None
        for network in self.networks.values():
            network.eval().requires_grad_(False)
        self.runner = Runner(self.device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {name: getattr(self, name) for name in storage.NETWORKS}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        memory: str | os.PathLike[str] | None = None,
    ) -> PatchScalerPipeline:
        """Load a model.

        Args:
            source: a folder that `save_pretrained` wrote, a hub id, or None for the bundled weights.
            device: where to run; None takes the first GPU, else the CPU.
            dtype: precision; None takes fp16 on a GPU and fp32 on the CPU.
            compile: compile the networks with torch.compile when they are first called; see `Runner`.
            memory: file of a texture memory to use instead of the model's own.

        Raises:
            ModelError: nothing there, or what is there is broken or of another kind.
            DeviceError: no such device.
        """
        place = resolve_device(device)
        folder = storage.locate(source)
        parts = storage.load(folder)
        try:
            parts["sampling"] = SamplingConfig(**parts["sampling"])
        except TypeError as error:
            raise ModelError(f"{folder / 'config.json'} has other sampling settings: {error}") from error
        pipeline = cls(**parts)
        pipeline.folder = folder
        if memory is not None:
            pipeline = pipeline.with_memory(ReferenceTextureMemory.load(memory))
        pipeline.runner.compile = compile
        return pipeline.to(place, resolve_dtype(dtype, place))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model: config.json, one folder per network (fp16 safetensors), the texture memory."""
        config = {
            "sampling": asdict(self.sampling),
            "plans": {name: plan.to_dict() for name, plan in self.plans.items()},
            "card": self.card,
        }
        storage.save(Path(folder), config, self.networks, self.texture_memory)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> PatchScalerPipeline:
        """Move everything to a device and, if given, a precision; returns self."""
        dtype = dtype or self.dtype
        for network in self.networks.values():
            # diffusers' own `to` warns of every cast; these networks have no parts that must stay in float32.
            nn.Module.to(network, device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.texture_memory is not None:
            self.texture_memory = self.texture_memory.to(device, dtype)
        self.runner.reset(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.restoration.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        return next(self.restoration.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """Version of the weights and the first 8 hexadecimal digits of their SHA-256."""
        version = self.card.get("version", "unversioned")
        if self.folder is None:
            return f"{version}+unsaved"
        digest = hashlib.sha256()
        for file in sorted(self.folder.rglob("*.safetensors")):
            digest.update(file.read_bytes())
        return f"{version}+{digest.hexdigest()[:8]}"

    @out_of_memory_in_one_line()
    @torch.inference_mode()
    def __call__(
        self,
        images: Any,
        *,
        plan: str | Plan | Sequence[str | Plan] = "balanced",
        seed: int | Sequence[int] = 0,
        texture: bool = True,
        progress: ProgressCallback | None = None,
        deterministic: bool = False,
        out: Sequence[Any] | Any = None,
        tile: int | None = None,
        memory_limit: int | None = None,
        budget: float | None = None,
        time_budget: float | None = None,
        fidelity: float = 0.0,
    ) -> Any:
        """Upscale an image, or a list of images of any sizes, by 4.

        Args:
            images: PIL images, uint8 or uint16 arrays (h, w, 3) or float tensors (3, h, w) in [0, 1]; sides of 8
                or more.
            plan: a name in `plans`, or a plan; or a list with one of them for each image.
            seed: fixes the noise; a patch's noise depends on it and on the patch's position only. Or a list
                with one for each image.
            texture: retrieve texture prompts; without, every patch gets the learned null prompt.
            progress: told how far each stage is.
            deterministic: give each patch the same result to the bit in any company.
            out: what to decode into instead of new images: arrays (4h, 4w, 3) of uint8 or uint16, or anything
                that takes `out[rows, columns] = pixels` with slices and has such a `dtype`; one per image.
            tile: side of the tiles that an image is processed in, output pixels; None takes the largest that
                fit in memory, a whole image if it can. Results differ by rounding alone.
            memory_limit: bytes that this process may hold on the device (on the CPU: in all).
            budget: mean steps a patch of each image may take at most: they are spent on its hardest patches first,
                on the paths of `best`, or of `plan` if that is a plan of your own. 0 restores only.
            time_budget: seconds that the call should take: the budget that fits is found by a trial. Restoring
                is always done, whatever it takes.
            fidelity: how much of y_0 to keep in what is sampled, from 0, most detail, to 1, which restores only and
                invents nothing.

        Returns:
            `UpscaleResult`, or a list of them for a list.

        Raises:
            InputError: an image of another kind or too small, no such plan, more or fewer plans or seeds than
                images, a budget below 0, or a fidelity outside 0 to 1.
            DeviceError: memory ran out in the smallest tile.
        """
        if not isinstance(images, Sequence):
            options: dict[str, Any] = {
                "plan": plan, "seed": seed, "texture": texture, "progress": progress,
                "deterministic": deterministic, "tile": tile, "memory_limit": memory_limit,
                "budget": budget, "time_budget": time_budget, "fidelity": fidelity,
            }  # fmt: skip
            return self([images], out=None if out is None else [out], **options)[0]
        begin = time.perf_counter()
        chosen = [self._plan(one) for one in _for_each(plan, len(images))]
        if budget is not None or time_budget is not None:
            named = [isinstance(one, str) for one in _for_each(plan, len(images))]
            chosen = [self.plans["best"] if name else own for name, own in zip(named, chosen, strict=True)]
        if not min(budget or 0, time_budget or 0) >= 0:
            raise InputError("a budget cannot be negative")
        if not 0 <= fidelity <= 1:
            raise InputError(f"a fidelity is a number from 0 to 1, not {fidelity:g}")
        sampling = budget != 0 and fidelity < 1
        if not images:
            return []
        clock = Clock(self.device, progress)
        side = None if tile is None else -(-tile // self.autoencoder.factor)
        stages = Stages(self, side, memory_limit, deterministic=deterministic, fidelity=fidelity)

        # 1. Encode the bicubic upsampling of each image, padded to whole patches: z_LR.
        seeds = _for_each(seed, len(images))
        canvases = [self._canvas(image, own) for image, own in zip(images, seeds, strict=True)]
        area = sum(canvas.height * canvas.width for canvas in canvases)
        with clock.stage("encode", area) as tick:
            for canvas in canvases:
                stages.encode(canvas, tick)

        # 2. Restore: coarse latent y_0, confidence C, and what the denoiser knows of each patch.
        with clock.stage("restore", sum(c.rows * c.cols * c.stride**2 for c in canvases)) as tick:
            for canvas, own in zip(canvases, chosen, strict=True):
                stages.restore(canvas, tick, with_condition=sampling and own.samples)

        # 3. Sort all patches of all images into groups by confidence; each group has its path (T, N).
        if time_budget is not None and sampling and any(own.samples for own in chosen):
            most = stages.affordable(canvases, begin + time_budget, texture=texture)
            budget = most if budget is None else min(budget, most)
        groups = [self._groups(canvas, own, budget) for canvas, own in zip(canvases, chosen, strict=True)]
        paths = [own.paths if budget is None else own.ladder() for own in chosen]
        sorted_by = list(zip(groups, paths, strict=True))
        starts = [torch.tensor([path.timestep for path in own])[group] for group, own in sorted_by]
        steps = [torch.tensor([path.steps * sampling for path in own])[group] for group, own in sorted_by]

        # 4. Noise y_0 to T and take N steps back, all patches in packed loops.
        start, count = (torch.cat([part.flatten() for part in parts]) for parts in (starts, steps))
        with clock.stage("sample", int(count.sum())) as tick:
            stages.sample(canvases, start, count, tick, texture=texture)

        # 5. Put the patches together and decode.
        results = out or [
            new_image(like, *(SCALE * side for side in canvas.size))
            for like, canvas in zip(images, canvases, strict=True)
        ]
        with clock.stage("decode", area) as tick:
            for canvas, result in zip(canvases, results, strict=True):
                stages.decode(canvas, result, tick)

        # 6. Give back the kind of image that was passed in, with the record of how it was made.
        timings = clock.read()
        return [
            UpscaleResult(
                image=Image.fromarray(result) if out is None and isinstance(like, Image.Image) else result,
                confidence=self._confidence(canvas),
                groups=group.to(torch.int8).numpy(),
                steps=taken.to(torch.int16).numpy(),
                timings=timings,
                seed=canvas.seed,
            )
            for like, canvas, group, taken, result in zip(
                images, canvases, groups, steps, results, strict=True
            )
        ]

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, H/f, W/f) of images (B, 3, H, W) in [0, 1]."""
        return self.autoencoder.encode(images.to(self.device, self.dtype))

    def restore(self, lr: Tensor) -> Restored:
        """y_0, C and features of LR images (B, 3, h, w) in [0, 1] whose sides are whole patches."""
        lr = lr.to(self.device, self.dtype)
        return self.restoration(self.encode(upsample(lr, SCALE)), lr)

    def decode(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) of latents: in the colours of the LR images (B, 3, H/4, W/4), or without, not clamped."""
        latent = latent.to(self.device, self.dtype)
        if lr is None:
            return self.autoencoder.decode(latent)
        lr = lr.to(self.device, self.dtype)
        return follow_low_frequencies(self.autoencoder.decode(latent, lr), lr)

    def keys(self, patches: Tensor) -> Tensor:
        """Unit-length keys (n, d) of latent patches (n, c, p, p), for the texture memory."""
        return self.texture_classifier(patches.to(self.device, self.dtype)).key

    def make_prompt(self, latent: Tensor) -> Tensor:
        """Texture prompt tokens (n, L, w) of coarse patches y_0 (n, c, p, p)."""
        memory = self.texture_memory
        if memory is None or len(memory) == 0:
            return self.null_prompt(latent)
        found = memory.search(self.keys(latent), min(self.sampling.prompt_count, len(memory)))
        return self.texture_encoder(found.patches, found.similarity)

    def null_prompt(self, latent: Tensor) -> Tensor:
        """The learned prompt tokens (n, 1, w) that stand for no texture, for as many patches."""
        return self.texture_encoder.null_prompt(len(latent))

    def _plan(self, plan: str | Plan) -> Plan:
        if isinstance(plan, Plan):
            return plan
        if plan not in self.plans:
            raise InputError(f"no quality {plan!r}; this model has {', '.join(self.plans)}")
        return self.plans[plan]

    def _canvas(self, image: Any, seed: int) -> Canvas:
        planes = to_planes(image, MIN_SIDE)
        return Canvas(
            planes, self.sampling.patch_size, self.sampling.stride, self.autoencoder.factor // SCALE, seed
        )

    def _groups(self, canvas: Canvas, plan: Plan, budget: float | None) -> Tensor:
        """The group of each patch of one image (rows, cols), on the host; with a budget the rung of its ladder."""
        quality = patch_quality(canvas.confidence, canvas.patch_size, canvas.stride).cpu()
        group = assign(quality, plan.thresholds) if budget is None else spend(quality, plan, budget)
        return group.view(canvas.rows, canvas.cols)

    def _confidence(self, canvas: Canvas) -> Any:
        height, width = (-(-side // canvas.lr_per_latent) for side in canvas.size)
        return canvas.confidence[0, 0, :height, :width].cpu().numpy()

    @cached_property
    def in_float32(self) -> PatchScalerPipeline:
        """The same weights in float32 on the same device, for the parts where half precision overflows."""
        networks = copy.deepcopy(self.networks)
        memory = self.texture_memory
        return PatchScalerPipeline(
            **networks,  # type: ignore[arg-type]
            sampling=self.sampling,
            texture_memory=memory,
            plans=self.plans,
        ).to(self.device, torch.float32)

    def with_memory(self, memory: ReferenceTextureMemory | None) -> PatchScalerPipeline:
        """The same networks with another texture memory; keys of another classifier are made again.

        Raises:
            ModelError: the memory holds latents of another autoencoder.
        """
        if memory is not None:
            memory = memory.to(self.device, self.dtype)
            memory = storage.fit_memory(memory, self.autoencoder, self.texture_classifier)
        other = PatchScalerPipeline(
            **self.networks,  # type: ignore[arg-type]
            sampling=replace(self.sampling),
            texture_memory=memory,
            plans=self.plans,
            card=self.card,
        )
        other.folder, other.runner = self.folder, self.runner
        return other


def _for_each(value: Any, count: int) -> list[Any]:
    """A list of `count` values: those of a list, or the same for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise InputError(f"{len(values)} plans or seeds for {count} images; give one, or one for each image")
    return values


def _untuned() -> Plan:
    """What a model does before it was calibrated: restoration alone."""
    return Plan((), (ShortcutPath(1.0, 0),))
