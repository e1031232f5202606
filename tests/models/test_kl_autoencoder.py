import numpy as np
import pytest
import torch

from patchscaler.errors import ModelError
from patchscaler.models.kl_autoencoder import KLAutoencoder
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.presets import build
from patchscaler.sampling.grouping import Plan


def test_paper_preset_runs_on_any_kl_autoencoder_and_is_saved_with_it(vae, tmp_path):
    torch.manual_seed(0)
    pipeline = build("paper", vae)
    image = np.random.default_rng(0).integers(0, 256, (48, 33, 3), dtype=np.uint8)
    plan = Plan.uniform(0.5, 1)
    result = pipeline(image, plan=plan)
    assert result.image.shape == (192, 132, 3)
    assert result.steps.shape == (2, 2), "patches of 16 latents at stride 8 overlap"
    pipeline.save_pretrained(tmp_path)
    again = PatchScalerPipeline.from_pretrained(tmp_path, device="cpu")
    assert isinstance(again.autoencoder, KLAutoencoder)
    assert np.abs(again(image, plan=plan).image.astype(int) - result.image).max() <= 4, (
        "half-precision weights"
    )


def test_vae_latents_are_scaled(vae):
    image = torch.rand(1, 3, 64, 64)
    expected = vae.vae.encode(image * 2 - 1).latent_dist.mode() * 0.18215
    torch.testing.assert_close(vae.encode(image), expected)
    assert vae.factor == 8


def test_paper_preset_without_an_autoencoder_is_refused():
    with pytest.raises(ModelError, match="needs an autoencoder"):
        build("paper")
