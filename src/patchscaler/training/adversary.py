"""A discriminator, how loud it may be, and what it and the network that it judges learn from each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from patchscaler.training.discriminator import PixelDiscriminator, Thermostat
from patchscaler.training.draws import normal_like
from patchscaler.training.losses import relativistic_loss


class Adversary(nn.Module):
    """Judges images beside the real ones of the same places.

    Args:
        detail: detail of the judged images over the truth's, in dB, that the adversarial strength is regulated for.
        strength: that strength at the beginning, and at most, as a share of the other losses' gradient.
        penalty: weight of the discriminator's smoothness, |D(x) - D(x + noise)|^2 (arXiv 2501.08316, section 3.3),
            for a quarter of the real images and of the fakes.
        alone: steps that the discriminator learns before it is listened to.
    """

    heard: Tensor

    def __init__(
        self,
        detail: float,
        strength: tuple[float, float] = (0.02, 0.2),
        penalty: float = 10.0,
        alone: int = 500,
    ) -> None:
        super().__init__()
        self.pixel = PixelDiscriminator()
        self.thermostat = Thermostat(detail, *strength)
        self.penalty, self.alone = penalty, alone
        self.register_buffer("heard", torch.zeros(()), persistent=False)

    def prepare(self, step: int) -> None:
        """Be listened to from step `alone` on."""
        self.heard.fill_(float(step >= self.alone))

    def strength(self) -> Tensor:
        """Share of the other losses' gradient, a number; 0 as long as nobody listens."""
        return self.heard * self.thermostat()

    def feel(self, detail: Tensor) -> None:
        """Regulate the strength after a batch of this detail in dB."""
        self.thermostat.feel(detail, self.heard)

    def forward(
        self, fake: Tensor, real: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of both sides: it teaches what made the fakes (B, 3, H, W) to deceive, and the discriminator to tell.

        Also what to log.
        """
        count, few = len(fake), -(-len(fake) // 4)
        pair = torch.stack((real, fake.detach()))
        shaken = pair[:, :few] + 0.05 * normal_like(pair[:, :few], generator)
        images = torch.cat((pair.flatten(0, 1), shaken.flatten(0, 1)))
        scores = [score.float().split((count, count, few, few)) for score in self.pixel(images)]
        reals, fakes = [score[0] for score in scores], [score[1] for score in scores]
        moves = [((a[:few] - c).square() + (b[:few] - d).square()).mean() for a, b, c, d in scores]
        rough = torch.stack(moves).mean()
        contest = relativistic_loss(reals, fakes)
        with _frozen(self.pixel):
            deceit = relativistic_loss([s.float() for s in self.pixel(fake)], [r.detach() for r in reals])
        gap = torch.stack([(r - f).mean() for r, f in zip(reals, fakes, strict=True)]).mean()
        logs = {"contest": contest, "deceit": deceit, "rough": rough, "gap": gap, "strength": self.strength()}
        return deceit + contest + self.penalty * rough, logs


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """What the network computes inside teaches its input, not the network."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
