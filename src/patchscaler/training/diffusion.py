"""The diffusion stage: Patch-DiT and its texture prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.models.restoration import Restored
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.schedule import mid_state
from patchscaler.training.draws import normal_like, uniform
from patchscaler.training.stage import Logs, Stage, encoders


class DiffusionStage(Stage):
    """Patch-DiT and texture encoder: x_0 prediction on shortcut paths, several noise draws per patch.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        draws: noise draws per patch.
        shortest: smallest T; T is uniform between it and 1.
        at_start: share of the draws at t = T, the only state that one-step paths meet.
        drop_prompt: share of the patches that get the null prompt.
    """

    origins: Tensor

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        draws: int = 3,
        shortest: float = 0.3,
        at_start: float = 0.5,
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
        """Mean squared error of the predicted x_0.

        Logged apart is the error at t = T, where a state holds nothing of x_0: below that of y_0 there is what the
        denoiser can do, anywhere else the state on the bridge gives part of the answer away.
        """
        lr, restored, target = self.restored(batch, generator)
        y, x = self.cut(restored.latent), self.cut(target)
        condition, prompt = self.condition(restored, lr, y, batch.sources, generator)
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
        error = (estimate.float() - x.float()).square().mean(dim=(1, 2, 3))
        before = (y.float() - x.float()).square().mean(dim=(1, 2, 3))
        first = (timestep == start).float()
        first = first / first.sum().clamp(min=1)
        logs = {"l2": error.mean(), "before": before.mean()}
        logs |= {"l2_at_start": (error * first).sum(), "before_at_start": (before * first).sum()}
        return error.mean(), logs

    def condition(
        self, restored: Restored, lr: Tensor, y: Tensor, sources: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the denoiser is told of the patches at every step: condition tokens and prompt cache."""
        condition = self.denoiser.condition_tokens(self.cut(self.denoiser.stem(restored, lr)))
        return condition, self.denoiser.prompt_cache(self.prompt(y, sources, generator))

    def prompt(self, y: Tensor, sources: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts of the patches; entries cut from a patch's own source image cannot be found."""
        memory = self.pipeline.texture_memory
        null = self.texture_encoder.null_prompt(len(y))
        if memory is None:
            return null
        own = sources.repeat_interleave(len(y) // len(sources))[:, None] == self.origins
        with torch.no_grad():
            key = self.classifier(y).key
            found = memory.search(key, self.pipeline.sampling.prompt_count, exclude=own)
        tokens = self.texture_encoder(found.patches, found.similarity)
        dropped = uniform(len(y), generator).view(-1, 1, 1) < self.drop_prompt
        return torch.where(dropped, null.to(tokens.dtype), tokens)
