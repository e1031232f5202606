"""The upscaling pipeline: image in, image four times as large out (arXiv 2405.17158)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchscaler import storage
from patchscaler.errors import InputError, ModelError
from patchscaler.imaging.tensors import from_tensor, pad_reflected, to_tensor
from patchscaler.models.autoencoder import Autoencoder, upsample
from patchscaler.models.kl_autoencoder import KLAutoencoder
from patchscaler.models.patch_dit import PatchDiT
from patchscaler.models.restoration import RestorationModule, Restored
from patchscaler.models.texture_classifier import TextureClassifier
from patchscaler.models.texture_encoder import TextureEncoder
from patchscaler.result import Progress, ProgressCallback, Stage, UpscaleResult
from patchscaler.runtime.device import resolve_device, resolve_dtype
from patchscaler.sampling.engine import PatchSet, sample_patches
from patchscaler.sampling.grouping import Path as ShortcutPath
from patchscaler.sampling.grouping import Plan, assign, patch_quality
from patchscaler.sampling.noise import patch_noise
from patchscaler.sampling.patches import fold, grid, unfold
from patchscaler.sampling.schedule import Shortcut
from patchscaler.texture_memory import ReferenceTextureMemory

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


@dataclass
class _Work:
    """One image on its way through the pipeline."""

    lr: Tensor
    size: tuple[int, int]
    latent: Tensor | None = None
    restored: Restored | None = None


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
    ) -> PatchScalerPipeline:
        """Load a model.

        Args:
            source: a folder that `save_pretrained` wrote, a hub id, or None for the bundled weights.
            device: where to run; None takes the first GPU, else the CPU.
            dtype: precision; None takes fp16 on a GPU and fp32 on the CPU.

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

    @torch.inference_mode()
    def __call__(
        self,
        images: Any,
        *,
        plan: str | Plan = "balanced",
        seed: int = 0,
        texture: bool = True,
        progress: ProgressCallback | None = None,
        deterministic: bool = False,
    ) -> Any:
        """Upscale an image, or a list of images of any sizes, by 4.

        Args:
            images: PIL images, uint8 arrays (h, w, 3) or float tensors (3, h, w) in [0, 1]; sides of 8 or more.
            plan: a name in `plans`, or a plan.
            seed: fixes the noise; a patch's noise depends on it and on the patch's position only.
            texture: retrieve texture prompts; without, every patch gets the learned null prompt.
            progress: told how far each stage is.
            deterministic: give each patch the same result to the bit in any company.

        Returns:
            `UpscaleResult`, or a list of them for a list.

        Raises:
            InputError: an image of another kind or too small, or no such plan.
        """
        if not isinstance(images, Sequence):
            return self([images], plan=plan, seed=seed, texture=texture, progress=progress,
                        deterministic=deterministic)[0]  # fmt: skip
        chosen = self._plan(plan)
        if not images:
            return []
        clock = _Clock(self.device, progress)
        batch_size = 256 if self.device.type == "cuda" else 32

        # 1. Pad each image to whole patches and encode its bicubic upsampling: z_LR.
        works = [self._work(image) for image in images]
        with clock.stage("encode", len(works)) as tick:
            for work in works:
                work.latent = self.encode(upsample(work.lr, SCALE))
                tick(1)

        # 2. Restore: coarse latent y_0 and confidence C.
        with clock.stage("restore", len(works)) as tick:
            for work in works:
                assert work.latent is not None
                work.restored = self.restoration(work.latent, work.lr)
                tick(1)

        # 3. Sort all patches of all images into groups by confidence; each group has its path (T, N).
        parts = [self._patches(work.restored, work.lr, seed, chosen) for work in works if work.restored]
        patches = _concatenate([part for part, _ in parts])

        # 4. Noise y_0 to T and take N steps back, all patches in one packed loop.
        with clock.stage("sample", int(patches.steps.sum())) as tick:
            sampled = sample_patches(
                self.patch_dit,
                self.make_prompt if texture else self._null_prompt,
                patches,
                shortcut=self.sampling.shortcut,
                batch_size=batch_size,
                fixed_shape=deterministic,
                on_step=tick.to,
            )

        # 5. Put the patches together and decode.
        results = []
        with clock.stage("decode", len(works)) as tick:
            for work, part, groups in zip(
                works, sampled.split([len(p.start) for p, _ in parts]), [g for _, g in parts], strict=True
            ):
                rows, cols = groups.shape
                image = self.decode(fold(part, rows, cols, self.sampling.stride), work.lr)
                results.append((image, groups))
                tick(1)

        # 6. Crop to the image's size and give back what was passed in.
        steps_of = torch.tensor([path.steps for path in chosen.paths], dtype=torch.int16)
        return [
            UpscaleResult(
                image=from_tensor(image[0, :, : work.size[0] * SCALE, : work.size[1] * SCALE], like),
                confidence=self._crop(work),
                groups=groups.to(torch.int8).numpy(),
                steps=steps_of[groups].numpy(),
                timings=clock.seconds,
                seed=seed,
            )
            for like, work, (image, groups) in zip(images, works, results, strict=True)
        ]

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, H/f, W/f) of images (B, 3, H, W) in [0, 1]."""
        return self.autoencoder.encode(images.to(self.device, self.dtype))

    def restore(self, lr: Tensor) -> Restored:
        """y_0, C and features of LR images (B, 3, h, w) in [0, 1] whose sides are whole patches."""
        lr = lr.to(self.device, self.dtype)
        return self.restoration(self.encode(upsample(lr, SCALE)), lr)

    def decode(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) of latents, with the LR images (B, 3, H/4, W/4) or without; not clamped."""
        if lr is not None:
            lr = lr.to(self.device, self.dtype)
        return self.autoencoder.decode(latent.to(self.device, self.dtype), lr)

    def make_prompt(self, latent: Tensor) -> Tensor:
        """Texture prompt tokens (n, L, w) of coarse patches y_0 (n, c, p, p)."""
        memory = self.texture_memory
        if memory is None or len(memory) == 0:
            return self._null_prompt(latent)
        key = self.texture_classifier(latent).key
        found = memory.search(key, min(self.sampling.prompt_count, len(memory)))
        return self.texture_encoder(found.patches, found.similarity)

    def _null_prompt(self, latent: Tensor) -> Tensor:
        return self.texture_encoder.null_prompt(len(latent))

    def _plan(self, plan: str | Plan) -> Plan:
        if isinstance(plan, Plan):
            return plan
        if plan not in self.plans:
            raise InputError(f"no quality {plan!r}; this model has {', '.join(self.plans)}")
        return self.plans[plan]

    def _work(self, image: Any) -> _Work:
        lr = to_tensor(image, MIN_SIDE).to(self.device, self.dtype)
        lr_per_latent = self.autoencoder.factor // SCALE
        padded = pad_reflected(
            lr, self.sampling.patch_size * lr_per_latent, self.sampling.stride * lr_per_latent
        )
        return _Work(padded[None].contiguous(memory_format=torch.channels_last), (lr.shape[1], lr.shape[2]))

    def _patches(self, restored: Restored, lr: Tensor, seed: int, plan: Plan) -> tuple[PatchSet, Tensor]:
        """The patches of one image and their groups (rows, cols), on the host."""
        size, stride = self.sampling.patch_size, self.sampling.stride
        rows, cols = grid(restored.latent.shape[2], restored.latent.shape[3], size, stride)
        groups = assign(patch_quality(restored.confidence, size, stride), plan.thresholds).cpu()
        index = torch.arange(rows * cols, device=self.device)
        latent = unfold(restored.latent, size, stride)
        starts = torch.tensor([path.timestep for path in plan.paths])
        steps = torch.tensor([path.steps for path in plan.paths])
        patches = PatchSet(
            latent=latent,
            condition=unfold(self.patch_dit.stem(restored, lr), size, stride),
            noise=patch_noise(seed, index // cols, index % cols, latent.shape[1:]),
            start=starts[groups].to(self.device),
            steps=steps[groups],
        )
        return patches, groups.view(rows, cols)

    def _crop(self, work: _Work) -> Any:
        assert work.restored is not None
        height, width = (-(-side * SCALE // self.autoencoder.factor) for side in work.size)
        return work.restored.confidence[0, 0, :height, :width].float().cpu().numpy()

    def with_memory(self, memory: ReferenceTextureMemory | None) -> PatchScalerPipeline:
        """The same networks with another texture memory.

        Raises:
            ModelError: the memory holds latents of another autoencoder.
        """
        if memory is not None:
            storage.check_latent_space(memory, self.autoencoder)
            memory = memory.to(self.device, self.dtype)
        other = PatchScalerPipeline(
            **self.networks,  # type: ignore[arg-type]
            sampling=replace(self.sampling),
            texture_memory=memory,
            plans=self.plans,
            card=self.card,
        )
        other.folder = self.folder
        return other


def _untuned() -> Plan:
    """What a model does before it was calibrated: restoration alone."""
    return Plan((), (ShortcutPath(1.0, 0),))


def _concatenate(parts: list[PatchSet]) -> PatchSet:
    return PatchSet(
        **{name: torch.cat([getattr(p, name) for p in parts]) for name in PatchSet.__annotations__}
    )


class _Tick:
    """Counts the units of one stage."""

    def __init__(self, stage: Stage, total: int, report: ProgressCallback | None) -> None:
        self.stage: Stage = stage
        self.total, self.report, self.done = total, report, 0
        self.to(0)

    def __call__(self, units: int) -> None:
        self.to(self.done + units)

    def to(self, done: int) -> None:
        """Set and report what is done."""
        self.done = done
        if self.report is not None:
            self.report(Progress(self.stage, done, self.total))


class _Clock:
    """Seconds per stage, with the device's queue drained at the end of each."""

    def __init__(self, device: torch.device, report: ProgressCallback | None) -> None:
        self.device, self.report = device, report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, stage: Stage, total: int) -> Iterator[_Tick]:
        """Time one stage."""
        begin = time.perf_counter()
        yield _Tick(stage, total, self.report)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = round(time.perf_counter() - begin, 4)
