"""Tiny real pipelines for the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import settings
from PIL import Image
from torch.nn import functional as F

from patchscaler.models.kl_autoencoder import KLAutoencoder
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.presets import build
from patchscaler.storage import key_space, latent_space
from patchscaler.texture_memory import Origin, ReferenceTextureMemory

settings.register_profile("shared", deadline=None)  # no test asserts a time
settings.load_profile("shared")
torch.set_num_threads(1)  # tiny networks gain nothing from threads, and lose minutes where cores are shared


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
    patches = torch.randn(entries, channels, 16, 16, generator=generator)
    return ReferenceTextureMemory.of(
        patches,
        pipeline.keys,
        [Origin(f"image {number // 4}", "CC0-1.0") for number in range(entries)],
        latent_space=latent_space(pipeline.autoencoder),
        key_space=key_space(pipeline.texture_classifier),
    )


def lively_tiny() -> PatchScalerPipeline:
    """A new tiny pipeline with a texture memory, the same every time."""
    torch.manual_seed(0)
    tiny = enliven(build("tiny"))
    return tiny.with_memory(random_memory(tiny))


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[[], PatchScalerPipeline]:
    """For tests that change their pipeline."""
    return lively_tiny


@pytest.fixture(scope="session")
def pipeline() -> PatchScalerPipeline:
    """Shared; not to be changed."""
    return lively_tiny()


@pytest.fixture(scope="session")
def vae() -> KLAutoencoder:
    """A tiny relative of the Stable Diffusion VAE; not to be changed."""
    torch.manual_seed(0)
    return KLAutoencoder(
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
        )
    )


@pytest.fixture
def photo() -> torch.Tensor:
    """A smooth random LR image (3, 70, 100)."""
    generator = torch.Generator().manual_seed(3)
    return F.interpolate(torch.rand(1, 3, 9, 12, generator=generator), (70, 100), mode="bicubic")[0].clamp(
        0, 1
    )


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory) -> Path:
    """Training tiles: two of 512 px in train/, four of 256 px and two categories in textures/."""
    root = tmp_path_factory.mktemp("tiles")
    generator = torch.Generator().manual_seed(4)
    names = [f"train/{number}.png" for number in range(2)]
    names += [f"textures/{kind}__{number}.webp" for kind in ("brick", "moss") for number in range(2)]
    for name in names:
        size = 512 if name.startswith("train") else 256
        coarse = torch.rand(1, 3, size // 16, size // 16, generator=generator)
        pixels = F.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(0, 1) * 255
        file = root / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(file)
    return root
