"""What decoded images are taught by: the truth, features, the latent grid, and an adversary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.features import EfficientNetFeatures
from patchscaler.models.autoencoder import Autoencoder
from patchscaler.training.adversary import Adversary
from patchscaler.training.losses import balance_gradients, detail_ratio, lattice_loss, perceptual_loss


def decode_kinds(autoencoder: Autoencoder, latents: Mapping[str, Tensor], lr: Tensor) -> dict[str, Tensor]:
    """Images by kind of latents by kind, empty ones left out.

    Args:
        autoencoder: decodes; what is "bare" without the LR images.
        latents: (b, c, H, W) by kind, those that are bare first.
        lr: the LR images (B, 3, h, w) of all, in the same order.
    """
    given = {kind: latent for kind, latent in latents.items() if len(latent)}
    bare = given.pop("bare", lr[:0])
    decoded = autoencoder.decode(torch.cat(list(given.values())), lr[len(bare) :])
    kinds = {"bare": autoencoder.decode(bare)} if len(bare) else {}
    return kinds | dict(zip(given, decoded.split([len(latent) for latent in given.values()]), strict=True))


class ImageLoss(nn.Module):
    """L1, perceptual and lattice loss of all images of a batch, adversarial loss of those of one kind.

    Args:
        perceptual, lattice: weights beside the L1.
        judged: the kind that an adversary judges, if there is one and the batch has images of that kind.
    """

    def __init__(self, perceptual: float, lattice: float, judged: str) -> None:
        super().__init__()
        self.features = EfficientNetFeatures("lite0")
        self.perceptual, self.lattice, self.judged = perceptual, lattice, judged

    def forward(
        self,
        decoded: Mapping[str, Tensor],
        truth: Tensor,
        generator: torch.Generator,
        adversary: Adversary | None = None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the images, the adversary's own included, and what to log of each kind.

        Args:
            decoded: images (b, 3, H, W) by kind.
            truth: what they should be (B, 3, H, W), in the same order.
            generator: of the place that features look at, and of the adversary's noise.
            adversary: what judges one kind.
            real: what it compares that with instead of the truth.
        """
        kinds = {kind: images.float() for kind, images in decoded.items()}
        sizes = [len(images) for images in kinds.values()]
        truths = dict(zip(kinds, truth.split(sizes), strict=True))
        judged = kinds.get(self.judged)
        if adversary is not None and judged is not None:
            kinds[self.judged], judged = balance_gradients(judged, adversary.strength())
        images = torch.cat(list(kinds.values()))
        pixel = F.l1_loss(images, truth)
        perceived = perceptual_loss(self.features, images, truth, generator)
        repeated = lattice_loss(images, truth)
        loss = pixel + self.perceptual * perceived.mean() + self.lattice * repeated
        mse = (images.detach().clamp(0, 1) - truth).square().mean(dim=(1, 2, 3))
        psnr = -10 * mse.clamp(min=1e-7).log10()
        logs = {"l1": pixel, "lattice": repeated}
        for kind, distances, decibels in zip(kinds, perceived.split(sizes), psnr.split(sizes), strict=True):
            logs |= {f"perceptual_{kind}": distances.mean(), f"psnr_{kind}": decibels.mean()}
            logs[f"detail_{kind}"] = detail_ratio(kinds[kind], truths[kind])
        if adversary is not None and judged is not None:
            rivalry, more = adversary(judged, truths[self.judged] if real is None else real, generator)
            adversary.feel(logs[f"detail_{self.judged}"])
            loss, logs = loss + rivalry, logs | more
        return loss, logs
