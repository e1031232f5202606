"""Tiny real pipelines for the tests."""

import pytest
import torch
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.presets import build
from patchscaler.storage import latent_space
from patchscaler.texture_memory import ReferenceTextureMemory
from torch.nn import functional as F


def enliven(pipeline: PatchScalerPipeline, seed: int = 0) -> PatchScalerPipeline:
    """Randomise every layer that starts at zero, so that no branch is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for network in pipeline.networks.values():
        for value in network.parameters():
            if not value.any():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return pipeline


def random_memory(pipeline: PatchScalerPipeline, entries: int = 12, seed: int = 1) -> ReferenceTextureMemory:
    generator = torch.Generator().manual_seed(seed)
    channels = pipeline.autoencoder.latent_channels
    patches = torch.randn(3 * entries, channels, 16, 16, generator=generator)
    return ReferenceTextureMemory.build(
        patches,
        lambda part: pipeline.texture_classifier(part).key,
        [f"image {number // 4}" for number in range(len(patches))],
        ["CC0-1.0"] * len(patches),
        entries=entries,
        latent_space=latent_space(pipeline.autoencoder),
    )


@pytest.fixture(scope="session")
def pipeline() -> PatchScalerPipeline:
    torch.manual_seed(0)
    tiny = enliven(build("tiny"))
    return tiny.with_memory(random_memory(tiny))


@pytest.fixture
def photo() -> torch.Tensor:
    """A smooth random LR image (3, 70, 100)."""
    generator = torch.Generator().manual_seed(3)
    return F.interpolate(torch.rand(1, 3, 9, 12, generator=generator), (70, 100), mode="bicubic")[0].clamp(0, 1)
