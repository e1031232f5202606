"""What every training stage shares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.errors import InputError
from patchscaler.models.autoencoder import Autoencoder, upsample
from patchscaler.models.restoration import Restored
from patchscaler.pipeline import SCALE, PatchScalerPipeline
from patchscaler.sampling.patches import unfold
from patchscaler.training.adversary import Adversary

Logs = dict[str, Tensor]


class Stage(nn.Module):
    """One stage; a subclass names the parts that learn and computes their loss.

    `forward` is the whole training graph. It neither waits for the device nor depends on anything but its arguments and
    tensors that keep their place, so that it can be captured.

    Attributes:
        step: optimiser steps done; the loop keeps it.
        adversary: what judges images, if anything does. It learns twice as fast and without momentum, is not averaged,
            and is saved beside the model instead of in it.
    """

    step: int

    def __init__(self, pipeline: PatchScalerPipeline, tiles: TileSet, degradation: Degradation) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.tiles = tiles
        self.degradation = degradation
        self.step = 0
        self.adversary: Adversary | None = None

    def freeze_all_but(self, *parts: nn.Module) -> None:
        """Let only these parts learn."""
        self.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that learn, by name."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def pace(self, name: str) -> float:
        """By what the learning rate of a parameter is multiplied."""
        return 1.0

    @abstractmethod
    def compiled(self) -> list[nn.Module]:
        """The parts worth compiling: called with fixed shapes, through their `forward`."""

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The loss of one batch and what to log; all randomness comes from the generator."""

    def prepare(self) -> None:
        """Set the tensors that depend on `step`; called before each step, which may be a replayed graph."""
        if self.adversary is not None:
            self.adversary.prepare(self.step)

    def finish(self) -> None:
        """Derive from the trained weights, now in the pipeline, what the next stages need."""

    @torch.no_grad()
    def pair(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """LR images, z_LR and x_HR of a batch."""
        lr = self.degradation(batch.images, generator)
        autoencoder = self.pipeline.autoencoder
        return lr, autoencoder.encode(upsample(lr, SCALE)), autoencoder.encode(batch.images)

    @torch.no_grad()
    def restored(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Restored, Tensor]:
        """LR images, what the frozen restoration module makes of them, and x_HR."""
        lr, latent, target = self.pair(batch, generator)
        return lr, self.pipeline.restoration(latent, lr), target

    def cut(self, maps: Tensor) -> Tensor:
        """Patches that do not overlap: training sees each latent once."""
        size = self.pipeline.sampling.patch_size
        return unfold(maps, size, size)


def compact(pipeline: PatchScalerPipeline) -> Autoencoder:
    """The autoencoder, if it is one that can be trained here; InputError if not."""
    if not isinstance(pipeline.autoencoder, Autoencoder):
        raise InputError("this stage trains the compact autoencoder; an AutoencoderKL stays as it is")
    return pipeline.autoencoder


def encoders(pipeline: PatchScalerPipeline) -> list[nn.Module]:
    """The parts of the frozen autoencoder that are worth compiling."""
    return [pipeline.autoencoder.encoder] if isinstance(pipeline.autoencoder, Autoencoder) else []
