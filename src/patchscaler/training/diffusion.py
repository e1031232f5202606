"""Stages of Patch-DiT and its texture prompt: diffusion, then tuning at the paths it is sampled with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.features import EfficientNetFeatures, feature_distance
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.patches import fold
from patchscaler.sampling.schedule import mid_state, solver_step, start_state
from patchscaler.training.stage import Logs, Stage, compact, encoders, normal_like, uniform


class DiffusionStage(Stage):
    """Patch-DiT and texture encoder: x_0 prediction on shortcut paths, several noise draws per patch.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        draws: noise draws per patch.
        shortest: smallest T; T is uniform between it and 1.
        at_start: share of the draws at t = T, the only state that one-step paths meet.
        drop_prompt: share of the patches that get the null prompt.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        draws: int = 3,
        shortest: float = 0.3,
        at_start: float = 0.25,
        drop_prompt: float = 0.15,
    ) -> None:
        super().__init__(pipeline, tiles, degradation)
        self.autoencoder = pipeline.autoencoder
        self.restoration = pipeline.restoration
        self.denoiser = pipeline.patch_dit
        self.classifier = pipeline.texture_classifier
        self.texture_encoder = pipeline.texture_encoder
        self.draws, self.shortest, self.at_start, self.drop_prompt = draws, shortest, at_start, drop_prompt
        self.freeze_all_but(self.denoiser, self.texture_encoder)
        known = {name: number for number, name in enumerate(tiles.source_names)}
        entries = pipeline.texture_memory.sources if pipeline.texture_memory else ()
        origins = torch.tensor([known.get(name, -1) for name in entries])
        self.register_buffer("origins", origins, persistent=False)

    def compiled(self) -> list[nn.Module]:
        """Everything."""
        return [
            *encoders(self.pipeline),
            self.restoration,
            self.classifier,
            self.texture_encoder,
            self.denoiser.stem,
            self.denoiser,
        ]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Mean squared error of the predicted x_0."""
        lr, restored, target = self.restored(batch, generator)
        y, x = self.cut(restored.latent), self.cut(target)
        condition = self.denoiser.condition_tokens(self.cut(self.denoiser.stem(restored, lr)))
        prompt = self.denoiser.prompt_cache(self.prompt(y, batch, generator))
        y, x, condition = (
            values.repeat(self.draws, *[1] * (values.ndim - 1)) for values in (y, x, condition)
        )
        prompt = prompt.repeat(1, 1, self.draws, 1, 1, 1)

        start = self.shortest + (1 - self.shortest) * uniform(len(y), generator)
        share = 1 - uniform(len(y), generator)
        timestep = start * torch.where(uniform(len(y), generator) < self.at_start, 1.0, share)
        eps = normal_like(y, generator).float()
        state = mid_state(x.float(), y.float(), eps, timestep, start, self.pipeline.sampling.shortcut)
        estimate = self.denoiser(state.to(y.dtype), y, condition, prompt, timestep, start)
        error = (estimate.float() - x.float()).square().mean()
        return error, {"l2": error, "before": (y.float() - x.float()).square().mean()}

    def prompt(self, y: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Prompts of the patches; entries cut from a patch's own source image cannot be found."""
        memory = self.pipeline.texture_memory
        null = self.texture_encoder.null_prompt(len(y))
        if memory is None:
            return null
        own = batch.sources.repeat_interleave(len(y) // len(batch.sources))[:, None] == self.origins
        with torch.no_grad():
            key = self.classifier(y).key
            found = memory.search(key, self.pipeline.sampling.prompt_count, exclude=own)
        tokens = self.texture_encoder(found.patches, found.similarity)
        dropped = uniform(len(y), generator).view(-1, 1, 1) < self.drop_prompt
        return torch.where(dropped, null.to(tokens.dtype), tokens)


class FinetuneStage(DiffusionStage):
    """Patch-DiT at the paths it is sampled with: roll out to a random step, learn from the image of that estimate.

    The steps before the chosen one run without gradient. Patches of one image take different paths, so that the
    losses on the decoded image see the seams between them.

    Args:
        pipeline, tiles, degradation, drop_prompt: as in `DiffusionStage`.
        paths: pairs (T, N); each patch draws one.
        latent, perceptual: weights beside the L1 of the decoded image.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        paths: tuple[tuple[float, int], ...] = ((0.43, 1), (0.66, 2), (0.9, 4)),
        latent: float = 0.1,
        perceptual: float = 0.1,
        drop_prompt: float = 0.15,
    ) -> None:
        super().__init__(pipeline, tiles, degradation, drop_prompt=drop_prompt)
        self.features = EfficientNetFeatures("lite0")
        self.register_buffer("paths", torch.tensor(paths), persistent=False)
        self.longest = max(int(steps) for _, steps in paths)
        self.latent, self.perceptual = latent, perceptual
        self.decoder = compact(pipeline).decoder

    def compiled(self) -> list[nn.Module]:
        """Everything."""
        return [*super().compiled(), self.decoder, self.features]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Image, latent and perceptual loss of an estimate in mid-path."""
        lr, restored, target = self.restored(batch, generator)
        y, x = self.cut(restored.latent), self.cut(target)
        condition = self.denoiser.condition_tokens(self.cut(self.denoiser.stem(restored, lr)))
        prompt = self.denoiser.prompt_cache(self.prompt(y, batch, generator))
        estimate = self._roll_out(y, condition, prompt, generator)

        rows, cols = (side // self.pipeline.sampling.patch_size for side in restored.latent.shape[2:])
        joined = fold(estimate, rows, cols, self.pipeline.sampling.patch_size)
        decoded = self.autoencoder.decode(joined, lr).float()
        pixel = F.l1_loss(decoded, batch.images)
        latent = F.l1_loss(estimate.float(), x.float())
        perceived = feature_distance(self.features(decoded), self.features(batch.images)).mean()
        mse = (decoded.detach().clamp(0, 1) - batch.images).square().mean(dim=(1, 2, 3))
        logs = {
            "l1": pixel,
            "latent": latent,
            "perceptual": perceived,
            "psnr": -10 * mse.clamp(min=1e-7).log10().mean(),
        }
        return pixel + self.latent * latent + self.perceptual * perceived, logs

    def _roll_out(self, y: Tensor, condition: Tensor, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """The estimate of x_0 at a random step of a random path, with gradient through that step alone."""
        drawn = (uniform(len(y), generator) * len(self.paths)).long()
        start, steps = self.paths[drawn].unbind(1)
        before = (uniform(len(y), generator) * steps).floor()
        state = start_state(y.float(), normal_like(y, generator).float(), start)
        shortcut = self.pipeline.sampling.shortcut
        with torch.no_grad():
            for step in range(self.longest - 1):
                moving = step < before
                remaining = (steps - step).clamp(min=1)
                timestep, following = start * remaining / steps, start * (remaining - 1) / steps
                x = self.denoiser(state.to(y.dtype), y, condition, prompt, timestep, start)
                ahead = solver_step(state, x.float(), y.float(), timestep, following, start, shortcut)
                state = torch.where(moving.view(-1, 1, 1, 1), ahead, state)
        timestep = start * (steps - before) / steps
        return self.denoiser(state.to(y.dtype), y, condition, prompt, timestep, start)
