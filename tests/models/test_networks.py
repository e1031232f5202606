import pytest
import torch

from patchscaler.models.autoencoder import Autoencoder
from patchscaler.models.blocks import Standardise, sinusoidal_embedding
from patchscaler.models.restoration import Restored
from patchscaler.models.texture_encoder import TextureEncoder


@pytest.fixture
def image():
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def inner(maps, margin):
    return maps[:, :, margin:-margin, margin:-margin]


@torch.inference_mode()
def test_encoder_has_bounded_receptive_field(pipeline, image):
    whole = pipeline.autoencoder.encode(image)
    part = pipeline.autoencoder.encode(image[:, :, 64:192, 64:192])
    reach = 5  # three 3x3 convolutions at a quarter and three at an eighth of the resolution: 4.5 latents
    torch.testing.assert_close(inner(part, reach), inner(whole[:, :, 8:24, 8:24], reach), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_decoder_has_bounded_receptive_field(pipeline):
    generator = torch.Generator().manual_seed(0)
    latent, lr = torch.randn(1, 4, 32, 32, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)
    whole = pipeline.autoencoder.decode(latent, lr)
    part = pipeline.autoencoder.decode(latent[:, :, 8:24, 8:24], lr[:, :, 16:48, 16:48])
    torch.testing.assert_close(inner(part, 40), inner(whole[:, :, 64:192, 64:192], 40), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_restoration_and_stem_have_bounded_receptive_fields(pipeline):
    generator = torch.Generator().manual_seed(0)
    latent, lr = torch.randn(1, 4, 48, 48, generator=generator), torch.rand(1, 3, 96, 96, generator=generator)
    whole = pipeline.restoration(latent, lr)
    part_lr = lr[:, :, 16:80, 16:80]
    part = pipeline.restoration(latent[:, :, 8:40, 8:40], part_lr)
    for ours, theirs in zip(part, whole, strict=True):
        torch.testing.assert_close(inner(ours, 12), inner(theirs[:, :, 8:40, 8:40], 12), atol=1e-5, rtol=0)
    cut = Restored(*(maps[:, :, 8:40, 8:40] for maps in whole))
    stem = pipeline.patch_dit.stem(cut, part_lr)
    expected = pipeline.patch_dit.stem(whole, lr)[:, :, 8:40, 8:40]
    torch.testing.assert_close(inner(stem, 6), inner(expected, 6), atol=1e-5, rtol=0)


def test_standardised_channels_are_alike_in_training_and_depend_on_no_batch_after_it():
    torch.manual_seed(0)
    layer, tokens = Standardise(6, pace=0.1), torch.randn(4, 32, 6) * torch.tensor([1.0, 50, 0.1, 2, 3, 4])
    common = torch.tensor([0.0, 0, 0, 1000, 0, 0])  # as a weight that grows in one direction would give
    standard = layer(tokens + common)
    torch.testing.assert_close(standard.mean(dim=(0, 1)), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(dim=(0, 1)), torch.ones(6), atol=1e-2, rtol=0)
    torch.testing.assert_close(standard, layer(tokens), atol=1e-3, rtol=0)
    for _ in range(200):
        layer(tokens)
    layer.eval()
    torch.testing.assert_close(layer(tokens)[:1], layer(tokens[:1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(tokens).std(dim=(0, 1)), torch.ones(6), atol=1e-2, rtol=0)


@torch.inference_mode()
def test_confidence_is_a_probability(pipeline, image):
    confidence = pipeline.restore(image[:, :, :64, :64]).confidence
    assert confidence.shape == (1, 1, 32, 32)
    assert ((confidence > 0) & (confidence < 1)).all()


@torch.inference_mode()
def test_latents_are_normalised_and_decoded_back():
    autoencoder = Autoencoder(4, (16, 16), (1, 1), (16, 16), (1, 1)).eval()
    image = torch.rand(2, 3, 64, 64)
    raw, decoded = autoencoder.encode(image), autoencoder.decode(autoencoder.encode(image))
    autoencoder.latent_mean.copy_(torch.arange(4.0))
    autoencoder.latent_std.fill_(2.0)
    torch.testing.assert_close(autoencoder.encode(image) * 2 + torch.arange(4.0).view(1, -1, 1, 1), raw)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(image)), decoded)


@torch.inference_mode()
def test_lr_image_changes_nothing_until_its_branch_is_trained():
    autoencoder = Autoencoder(4, (16, 16), (1, 1), (16, 16), (1, 1)).eval()
    latent, lr = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16)
    assert torch.equal(autoencoder.decode(latent, lr), autoencoder.decode(latent))


@torch.inference_mode()
def test_denoiser_patches_do_not_see_each_other(pipeline):
    dit = pipeline.patch_dit
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 4, 16, 16, generator=generator)
    condition = dit.condition_tokens(torch.randn(6, 12, 16, 16, generator=generator))
    prompt = dit.prompt_cache(torch.randn(6, 5, 32, generator=generator))
    times, start = torch.linspace(0.1, 0.6, 6), torch.linspace(0.6, 0.9, 6)
    together = dit(x, y, condition, prompt, times, start)
    for i in range(6):
        one = slice(i, i + 1)
        alone = dit(x[one], y[one], condition[one], prompt[:, :, one], times[one], start[one])
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=0)
    moved = dit(x, y, condition, prompt, times + 0.2, start)
    assert (moved - together).abs().max() > 1e-4, "the denoiser must know the timestep"
    other = dit(x, y, condition, prompt.flip(2), times, start)
    assert (other - together).abs().max() > 1e-5, "the denoiser must read its prompt"


def test_texture_keys_have_unit_length(pipeline):
    texture = pipeline.texture_classifier(torch.randn(5, 4, 16, 16))
    torch.testing.assert_close(texture.key.norm(dim=1), torch.ones(5))


def test_texture_encoder_is_aware_of_similarity(pipeline):
    patches = torch.randn(2, 3, 4, 16, 16)
    near = pipeline.texture_encoder(patches, torch.full((2, 3), 0.9))
    far = pipeline.texture_encoder(patches, torch.full((2, 3), 0.1))
    assert near.shape == (2, 3 * 16 + 1, 32)
    torch.testing.assert_close(near[:, -1:], pipeline.texture_encoder.null_prompt(2))
    assert (near - far).abs().max() > 1e-4
    assert (near - pipeline.texture_encoder(patches, None)).abs().max() > 1e-4


def test_without_similarity_a_texture_encoder_modulates_nothing():
    encoder = TextureEncoder(latent_channels=4, width=32, heads=2, depth=1, prompt_width=32)
    patches, similarity = torch.randn(2, 3, 4, 16, 16), torch.rand(2, 3)
    assert torch.equal(encoder(patches, None), encoder(patches, similarity))
    torch.nn.init.normal_(encoder.similarity[-1].weight)
    assert (encoder(patches, None) - encoder(patches, similarity)).abs().max() > 0.01


def test_embedding_tells_close_timesteps_apart():
    a, b = sinusoidal_embedding(torch.tensor([0.43, 0.44]), 64)
    assert (a - b).norm() > 0.1
