"""Tuning of Patch-DiT at the paths it is sampled with, against a perceptual and an adversarial loss on the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.features import EfficientNetFeatures
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.patches import fold
from patchscaler.sampling.schedule import solver_step, start_state
from patchscaler.training.adversary import Adversary
from patchscaler.training.diffusion import DiffusionStage
from patchscaler.training.draws import normal_like, uniform
from patchscaler.training.losses import balance_gradients, detail_ratio, lattice_loss, perceptual_loss
from patchscaler.training.stage import Logs, compact


class FinetuneStage(DiffusionStage):
    """Patch-DiT at its paths: roll out to a random step, decode that estimate of x_0, learn from the image.

    The steps before the chosen one run without gradient. Patches of one image take different paths, so that the
    losses on the decoded image see the seams between them. The decoder may learn along; then some images are decoded
    from y_0 without being judged, so that a patch that takes no step stays faithful.

    Args:
        pipeline, tiles, degradation, drop_prompt: as in `DiffusionStage`.
        paths: pairs (T, N); each patch draws one.
        latent, perceptual, lattice: weights beside the L1 of the decoded image.
        adversarial: whether there is an adversary.
        detail, strength, penalty, alone: its arguments.
        decoder: pace of the decoder, the denoiser's being 1; 0 leaves it as it is. If it learns, what counts as real
            is the image, else the decoded x_HR: the discriminator is to see what those who learn do wrong, not what a
            frozen decoder does.
        faithful: share of the images decoded from y_0, if the decoder learns.
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
        adversarial: bool = True,
        detail: float = -3.0,
        strength: tuple[float, float] = (0.02, 0.1),
        penalty: float = 10.0,
        alone: int = 500,
        decoder: float = 0.25,
        faithful: float = 0.25,
        drop_prompt: float = 0.15,
    ) -> None:
        super().__init__(pipeline, tiles, degradation, drop_prompt=drop_prompt)
        self.features = EfficientNetFeatures("lite0")
        self.register_buffer("paths", torch.tensor(paths), persistent=False)
        self.longest = max(int(steps) for _, steps in paths)
        self.latent, self.perceptual, self.lattice = latent, perceptual, lattice
        self.decoder = compact(pipeline).decoder
        self.decoder_pace, self.faithful = decoder, faithful if decoder else 0.0
        self.decoder.requires_grad_(decoder > 0)
        if adversarial:
            self.adversary = Adversary(detail, strength, penalty, alone)

    def compiled(self) -> list[nn.Module]:
        """Everything but the discriminator, whose spectral norm changes its own buffers."""
        return [*super().compiled(), self.decoder, self.features]

    def pace(self, name: str) -> float:
        """The decoder has its own: it renders every patch, also those that take no step."""
        return self.decoder_pace if name.startswith("autoencoder.decoder.") else 1.0

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Image, latent, perceptual and adversarial loss of an estimate in mid-path, and the discriminator's own."""
        lr, restored, target = self.restored(batch, generator)
        y, x = self.cut(restored.latent), self.cut(target)
        condition, prompt = self.condition(restored, lr, y, batch, generator)
        estimate = self._roll_out(y, condition, prompt, generator)

        rows, cols = (side // self.pipeline.sampling.patch_size for side in restored.latent.shape[2:])
        joined = fold(estimate, rows, cols, self.pipeline.sampling.patch_size)
        plain = round(self.faithful * len(lr))
        joined = torch.cat((restored.latent[:plain].to(joined.dtype), joined[plain:]))
        decoded = judged = self.autoencoder.decode(joined, lr).float()
        if self.adversary is not None:
            decoded, judged = balance_gradients(decoded, self.adversary.strength())
        pixel = F.l1_loss(decoded, batch.images)
        latent = F.l1_loss(estimate.float(), x.float())
        perceived = perceptual_loss(self.features, decoded, batch.images, generator)
        repeated = lattice_loss(decoded, batch.images, self.autoencoder.factor)
        mse = (decoded.detach().clamp(0, 1) - batch.images).square().mean(dim=(1, 2, 3))
        psnr = -10 * mse.clamp(min=1e-7).log10()
        loss = pixel + self.latent * latent + self.perceptual * perceived.mean() + self.lattice * repeated
        logs = {
            "l1": pixel,
            "latent": latent,
            "perceptual": perceived[plain:].mean(),
            "lattice": repeated,
            "psnr": psnr[plain:].mean(),
            "detail": detail_ratio(decoded[plain:], batch.images[plain:]),
        }
        if plain:
            logs |= {"psnr_faithful": psnr[:plain].mean(), "perceptual_faithful": perceived[:plain].mean()}
        if self.adversary is None:
            return loss, logs
        if self.decoder_pace:
            real = batch.images
        else:
            with torch.no_grad():
                real = self.autoencoder.decode(target, lr).float()
        rivalry, more = self.adversary(judged[plain:], real[plain:], generator)
        self.adversary.feel(logs["detail"])
        return loss + rivalry, logs | more

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
