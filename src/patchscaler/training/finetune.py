"""Tuning of Patch-DiT at the paths it is sampled with, against a perceptual and an adversarial loss on the image."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.errors import InputError
from patchscaler.models.restoration import Restored
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.patches import fold
from patchscaler.sampling.schedule import solver_step, start_state
from patchscaler.training.adversary import Adversary
from patchscaler.training.diffusion import DiffusionStage
from patchscaler.training.draws import normal_like, uniform
from patchscaler.training.image_loss import ImageLoss, decode_kinds
from patchscaler.training.losses import restoration_loss
from patchscaler.training.stage import Logs, compact


class FinetuneStage(DiffusionStage):
    """Patch-DiT at its paths: roll out to a random step, decode that estimate of x_0, learn from the image.

    The steps before the chosen one run without gradient. Patches of one image take different paths, so that the
    losses on the decoded image see the seams between them. Decoder and restoration module may learn along. If the
    decoder does, some images are decoded from y_0, so that a patch that takes no step stays faithful, and some from
    x_HR, so that it keeps drawing true latents sharply.

    Args:
        pipeline, tiles, degradation, drop_prompt: as in `DiffusionStage`.
        paths: pairs (T, N); each patch draws one. With N = 0 it stays y_0, beside neighbours that do not.
        latent, perceptual, lattice: weights beside the L1 of the decoded image.
        judged: what an adversary judges: images that are "sampled", or "clean", decoded from x_HR; None: there is none.
        detail, strength, penalty, alone: its arguments.
        decoder: pace of the decoder, the denoiser's being 1; 0 leaves it as it is. If it learns, what counts as real
            is the image, else the decoded x_HR: the discriminator is to see what those who learn do wrong, not what a
            frozen decoder does.
        restoration: pace of the restoration module; if it learns, it is by the loss of its own stage. Of images it
            hears nothing: what it would learn from them is lost to the denoiser.
        faithful, clean, bare: shares of the images decoded from y_0, from x_HR, and from x_HR without the LR image, if
            the decoder learns.

    Raises:
        InputError: an adversary is to judge clean images, and there are none.
    """

    paths: Tensor

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        paths: tuple[tuple[float, int], ...] = ((0.43, 1), (0.66, 2), (0.9, 4)),
        latent: float = 0.1,
        perceptual: float = 0.1,
        lattice: float = 10.0,
        judged: Literal["sampled", "clean"] | None = "sampled",
        detail: float = -3.0,
        strength: tuple[float, float] = (0.02, 0.1),
        penalty: float = 10.0,
        alone: int = 500,
        decoder: float = 0.25,
        restoration: float = 0.0,
        faithful: float = 0.25,
        clean: float = 0.0,
        bare: float = 0.0,
        drop_prompt: float = 0.15,
    ) -> None:
        super().__init__(pipeline, tiles, degradation, drop_prompt=drop_prompt)
        self.image_loss = ImageLoss(perceptual, lattice, judged or "")
        self.register_buffer("paths", torch.tensor(paths), persistent=False)
        self.longest = max(int(steps) for _, steps in paths)
        self.latent = latent
        self.decoder = compact(pipeline).decoder
        self.paces = {"autoencoder.decoder.": decoder, "restoration.": restoration}
        self.decoder.requires_grad_(decoder > 0)
        self.restoration.requires_grad_(restoration > 0)
        self.shares = (bare, clean, faithful) if decoder else (0.0, 0.0, 0.0)
        if judged == "clean" and not self.shares[1]:
            raise InputError("an adversary of clean images needs some: give options clean and decoder")
        if judged:
            self.adversary = Adversary(detail, strength, penalty, alone)

    def compiled(self) -> list[nn.Module]:
        """Everything but the discriminator, whose spectral norm changes its own buffers."""
        return [*super().compiled(), self.decoder, self.image_loss.features]

    def pace(self, name: str) -> float:
        """Decoder and restoration module have their own: they serve every patch, also those that take no step."""
        return next((pace for part, pace in self.paces.items() if name.startswith(part)), 1.0)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Loss of the decoded images, whatever they are decoded from, and of the latents of those that are sampled.

        Logged besides is how far the denoiser moves patches, as a share of what y_0 is from x_0: near 0 it is silent.
        """
        lr, degraded, target = self.pair(batch, generator)
        restored = self.restoration(degraded, lr)
        bare, clean, plain = (round(share * len(lr)) for share in accumulate(self.shares))
        known = Restored(*(values[plain:].detach() for values in restored))
        y, x = self.cut(known.latent), self.cut(target[plain:])
        condition, prompt = self.condition(known, lr[plain:], y, batch.sources[plain:], generator)
        estimate = self._roll_out(y, condition, prompt, generator)

        rows, cols = (side // self.pipeline.sampling.patch_size for side in target.shape[2:])
        sampled = fold(estimate, rows, cols, self.pipeline.sampling.patch_size)
        latents = {
            "bare": target[:bare],
            "clean": target[bare:clean],
            "restored": restored.latent[clean:plain].detach(),
            "sampled": sampled,
        }
        latents = {kind: latent.to(target.dtype) for kind, latent in latents.items()}
        kinds = decode_kinds(compact(self.pipeline), latents, lr)
        real = None
        if self.adversary is not None and not self.paces["autoencoder.decoder."]:
            with torch.no_grad():
                real = self.autoencoder.decode(target, lr).float()
        loss, logs = self.image_loss(kinds, batch.images, generator, self.adversary, real)
        error = F.l1_loss(estimate.float(), x.float())
        moved = (estimate.float() - y.float()).detach().norm() / (x.float() - y.float()).norm()
        loss, logs = loss + self.latent * error, logs | {"latent": error, "moved": moved}
        if self.paces["restoration."]:
            own, more = restoration_loss(restored, target)
            loss, logs = loss + own, logs | more
        return loss, logs

    def _roll_out(self, y: Tensor, condition: Tensor, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """The estimate of x_0 at a random step of a random path, with gradient through that step alone."""
        drawn = (uniform(len(y), generator) * len(self.paths)).long()
        start, steps = self.paths[drawn].unbind(1)
        still = (steps == 0).view(-1, 1, 1, 1)
        steps = steps.clamp(min=1)
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
        estimate = self.denoiser(state.to(y.dtype), y, condition, prompt, timestep, start)
        return torch.where(still, y.to(estimate.dtype), estimate)
