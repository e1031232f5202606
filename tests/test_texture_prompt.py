"""The prompt carries texture: what the memory holds of a patch comes back in its sample, and nothing else does."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from patchscaler.sampling.engine import PatchSet, sample_patches
from patchscaler.sampling.schedule import mid_state
from patchscaler.storage import key_space, latent_space
from patchscaler.texture_memory import Origin, ReferenceTextureMemory
from patchscaler.training.losses import contrastive_loss

CHANNELS, SIDE = 4, 16


def smooth(count, generator):
    """Coarse patches y_0: all that restoration keeps."""
    coarse = 2 * torch.randn(count, CHANNELS, 3, 3, generator=generator)
    return F.interpolate(coarse, (SIDE, SIDE), mode="bicubic")


def texture(count, generator):
    """Fine stripes of both directions, each of a random strength: nothing in y_0 tells them."""
    stripes = torch.tensor([1.0, -1.0]).repeat(SIDE // 2).expand(SIDE, SIDE)
    strength = 0.5 * torch.randn(count, 2, generator=generator)
    return torch.einsum("nd,dhw->nhw", strength, torch.stack((stripes, stripes.mT)))[:, None]


@pytest.fixture(scope="module")
def taught(make_pipeline):
    """A tiny denoiser and texture encoder, taught for some seconds to take from a prompt what y_0 does not tell.

    Every step draws new textures, so that they cannot be learned by heart: only the way to copy them can.
    """
    pipeline, generator = make_pipeline(), torch.Generator().manual_seed(0)
    dit, encoder, classifier = pipeline.patch_dit, pipeline.texture_encoder, pipeline.texture_classifier
    parameters = [p for network in (dit, encoder, classifier) for p in network.parameters()]
    for value in parameters:
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    steps = 100
    for step in range(steps):
        y = smooth(16, generator)
        x = y + texture(16, generator)
        tokens = encoder(x[:, None], torch.full((16, 1), 0.9))
        dropped = torch.rand(16, 1, 1, generator=generator) < 0.2
        prompt = dit.prompt_cache(torch.where(dropped, encoder.null_prompt(16), tokens))
        start = torch.full((16,), 0.9)
        timestep = start * torch.rand(16, generator=generator).sqrt()
        state = mid_state(x, y, torch.randn(y.shape, generator=generator), timestep, start, "bridge")
        estimate = dit(state, y, dit.condition_tokens(condition(y)), prompt, timestep, start)
        contrast = contrastive_loss(classifier(y).key, classifier(x).key, 0.1)
        loss = (estimate - x).square().mean() + 0.1 * contrast
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, 4 * (1 - step / steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in parameters:
        value.requires_grad_(False)
    return pipeline


def condition(y):
    """Condition patches without what the stem would add."""
    return torch.cat((y, torch.zeros(len(y), 8, SIDE, SIDE)), dim=1)


def memory_of(pipeline, patches):
    return ReferenceTextureMemory.of(
        patches,
        pipeline.keys,
        [Origin(str(number), "CC0-1.0") for number in range(len(patches))],
        latent_space=latent_space(pipeline.autoencoder),
        key_space=key_space(pipeline.texture_classifier),
    )


def one_entry_each(pipeline, patches):
    """The pipeline with a memory of these patches, prompted by one entry."""
    other = pipeline.with_memory(memory_of(pipeline, patches))
    other.sampling = replace(other.sampling, prompt_count=1)
    return other


@torch.inference_mode()
def sampled(pipeline, y, prompt):
    count = len(y)
    seed, row, col = torch.full((count,), 7), torch.arange(count), torch.zeros(count, dtype=torch.int64)
    patches = PatchSet(condition(y), torch.full((count,), 0.9), torch.full((count,), 4), seed, row, col)
    return sample_patches(pipeline.patch_dit, prompt, patches, shortcut="bridge", sizes=(count,))


def test_a_memory_that_holds_the_clean_texture_improves_the_patch(taught):
    generator = torch.Generator().manual_seed(1)
    y = smooth(16, generator)
    x, other = y + texture(16, generator), y + texture(16, generator)

    def error(prompt):
        return float((sampled(taught, y, prompt) - x).square().mean())

    own, others = (one_entry_each(taught, patches) for patches in (x, other))
    found = own.texture_memory.search(taught.keys(y), 1).entries[:, 0]
    assert torch.equal(found, torch.arange(16)), "the clean patches must be found"
    without = min(error(taught.null_prompt), float((y - x).square().mean()))
    assert error(own.make_prompt) < 0.25 * without
    assert error(others.make_prompt) > without, "the same patch with another texture must not help"


def test_no_memory_and_an_empty_one_equal_the_null_prompt_to_the_bit(taught):
    y = smooth(5, torch.Generator().manual_seed(2))
    null = sampled(taught, y, taught.null_prompt)
    full = taught.with_memory(memory_of(taught, y))
    for memory in (None, full.texture_memory[:0]):
        assert torch.equal(sampled(taught, y, taught.with_memory(memory).make_prompt), null)
    assert not torch.equal(sampled(taught, y, full.make_prompt), null)
