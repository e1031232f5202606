"""Stages without sampling: autoencoder, restoration module, decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.errors import InputError
from patchscaler.features import EfficientNetFeatures
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.training.adversary import Adversary
from patchscaler.training.draws import normal_like, uniform
from patchscaler.training.image_loss import ImageLoss, decode_kinds
from patchscaler.training.losses import ETA, WEIGHT, perceptual_loss, restoration_loss
from patchscaler.training.stage import Logs, Stage, compact, encoders


class AutoencoderStage(Stage):
    """Encoder and decoder without the LR image: L1, perceptual, latents robust to noise, scale and rotation.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        perceptual: weight of the perceptual loss.
        noise: largest deviation of noise added to the latents, in deviations of the latents.
        consistency: share of the batch whose latents are rotated, and share whose latents are halved in size, before
            they are decoded to the image treated alike (arXiv 2502.09509).
        magnitude: weight of the mean square of the latents, which keeps their scale in bounds.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        perceptual: float = 0.05,
        noise: float = 0.1,
        consistency: float = 0.125,
        magnitude: float = 1e-4,
    ) -> None:
        super().__init__(pipeline, tiles, degradation)
        self.autoencoder = compact(pipeline)
        self.features = EfficientNetFeatures("lite0")
        self.perceptual, self.noise, self.consistency, self.magnitude = (
            perceptual,
            noise,
            consistency,
            magnitude,
        )
        self.freeze_all_but(
            self.autoencoder.encoder, self.autoencoder.decoder.eighth, self.autoencoder.decoder.quarter
        )

    def compiled(self) -> list[nn.Module]:
        """Encoder, decoder and features."""
        return [self.autoencoder.encoder, self.autoencoder.decoder, self.features]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Reconstruction loss of the images."""
        images = batch.images
        latent = self.autoencoder.encoder(images * 2 - 1)
        deviation = latent.detach().float().std(dim=(0, 2, 3), keepdim=True)
        amount = self.noise * uniform(len(images), generator).view(-1, 1, 1, 1)
        noisy = latent + normal_like(latent, generator) * amount * deviation

        count = round(self.consistency * len(images))
        turned = torch.cat((noisy[:count].rot90(1, (2, 3)), noisy[count:]))
        target = torch.cat((images[:count].rot90(1, (2, 3)), images[count:]))
        decoded = self.autoencoder.decoder(turned).float() * 0.5 + 0.5
        error = F.l1_loss(decoded, target)
        if count:
            halved = self.autoencoder.decoder(F.avg_pool2d(noisy[-count:], 2)).float() * 0.5 + 0.5
            error = error + self.consistency * F.l1_loss(halved, F.avg_pool2d(images[-count:], 2))
        perceived = perceptual_loss(self.features, decoded, target, generator).mean()
        loss = error + self.perceptual * perceived + self.magnitude * latent.float().square().mean()
        mse = F.mse_loss(decoded.detach().clamp(0, 1), target)
        return loss, {
            "l1": error,
            "perceptual": perceived,
            "psnr": -10 * mse.log10(),
            "scale": deviation.mean(),
        }

    @torch.no_grad()
    def finish(self) -> None:
        """Normalise the latents: mean 0 and deviation 1 per channel over the training tiles.

        A texture memory of the former latents is dropped.
        """
        batches = (batch.images[::4] for batch in self.tiles.batches(16))
        latents = [self.autoencoder.encoder(images * 2 - 1).float() for images in batches]
        values = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
        self.autoencoder.latent_mean.copy_(values.mean(dim=1))
        self.autoencoder.latent_std.copy_(values.std(dim=1))
        self.pipeline.texture_memory = None


class RestorationStage(Stage):
    """GRM: L = |y - x|_1 + weight * (C |y - x|^2 - eta log C), the squared error detached.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        weight: lambda, weight of the confidence term.
        eta: squared latent error at which confidence reaches 1.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        weight: float = WEIGHT,
        eta: float = ETA,
    ) -> None:
        super().__init__(pipeline, tiles, degradation)
        self.restoration = pipeline.restoration
        self.autoencoder = pipeline.autoencoder
        self.weight, self.eta = weight, eta
        self.freeze_all_but(self.restoration)

    def compiled(self) -> list[nn.Module]:
        """Encoder and restoration module."""
        return [*encoders(self.pipeline), self.restoration]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Restoration and confidence loss."""
        lr, latent, target = self.pair(batch, generator)
        loss, logs = restoration_loss(self.restoration(latent, lr), target, self.weight, self.eta)
        return loss, {"before": (latent.float() - target.float()).square().mean(), **logs}


class DecoderStage(Stage):
    """The decoder learns what restored latents look like, and to take from the LR image what the latent lost.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        perceptual: weight of the perceptual loss.
        clean: share of the batch decoded from x_HR instead of y_0.
        bare: share of the batch decoded from x_HR without the LR image, so that the latent alone stays enough.
        lattice: weight of the lattice loss.
        restoration: pace of the restoration module, the decoder's being 1; 0 leaves it as it is. If it learns, the
            loss of its own stage is added: y_0 stays an estimate of x_HR, and tells the decoder besides what L1 would
            average away.
        detail: detail over the truth's, in dB, that an adversary is to bring to what is decoded from x_HR with the LR
            image; None: there is no adversary. What is decoded from y_0 stays faithful: texture that a latent
            does not hold is for the denoiser to find.
        strength, alone: further arguments of the adversary.

    Raises:
        InputError: there is to be an adversary and no share for it to judge.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        perceptual: float = 0.1,
        clean: float = 0.25,
        bare: float = 0.0,
        lattice: float = 10.0,
        restoration: float = 0.0,
        detail: float | None = None,
        strength: tuple[float, float] = (0.02, 0.2),
        alone: int = 500,
    ) -> None:
        super().__init__(pipeline, tiles, degradation)
        self.autoencoder = compact(pipeline)
        self.restoration = pipeline.restoration
        self.image_loss = ImageLoss(perceptual, lattice, judged="clean")
        self.clean, self.bare = clean, bare
        self.restoration_pace = restoration
        self.freeze_all_but(self.autoencoder.decoder, *([self.restoration] if restoration else []))
        if detail is not None and not clean:
            raise InputError(
                "an adversary of the decoder needs images decoded from x_HR: give the option clean"
            )
        if detail is not None:
            self.adversary = Adversary(detail, strength, alone=alone)

    def compiled(self) -> list[nn.Module]:
        """Everything but the discriminator, whose spectral norm changes its own buffers."""
        features = self.image_loss.features
        return [self.autoencoder.encoder, self.autoencoder.decoder, self.restoration, features]

    def pace(self, name: str) -> float:
        """The restoration module has its own."""
        return self.restoration_pace if name.startswith("restoration.") else 1.0

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Loss of the decoded latents, and of the latents if the restoration module learns."""
        lr, degraded, target = self.pair(batch, generator)
        restored = self.restoration(degraded, lr)
        bare, clean = round(self.bare * len(lr)), round((self.bare + self.clean) * len(lr))
        latents = {"bare": target[:bare], "clean": target[bare:clean], "restored": restored.latent[clean:]}
        kinds = decode_kinds(self.autoencoder, latents, lr)
        loss, logs = self.image_loss(kinds, batch.images, generator, self.adversary)
        if self.restoration_pace:
            own, more = restoration_loss(restored, target)
            loss, logs = loss + own, logs | more
        return loss, logs
