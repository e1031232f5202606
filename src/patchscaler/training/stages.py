"""The stages of training by name, in the order they are run."""

from __future__ import annotations

from patchscaler.training.diffusion import DiffusionStage
from patchscaler.training.finetune import FinetuneStage
from patchscaler.training.reconstruction import AutoencoderStage, DecoderStage, RestorationStage
from patchscaler.training.stage import Stage
from patchscaler.training.texture import TextureStage

STAGES: dict[str, type[Stage]] = {
    "autoencoder": AutoencoderStage,
    "restoration": RestorationStage,
    "decoder": DecoderStage,
    "texture": TextureStage,
    "diffusion": DiffusionStage,
    "finetune": FinetuneStage,
}
