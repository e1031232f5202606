"""In training a patch must not find texture that was cut from its own picture: it would learn to copy its answer."""

import pytest
import torch

from patchscaler.data.dataset import TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.storage import key_space, latent_space
from patchscaler.texture_memory import Origin, ReferenceTextureMemory
from patchscaler.training.stages import STAGES


@pytest.fixture(scope="module")
def tiles(tiles_folder):
    return TileSet.load(tiles_folder)


def first_inputs(stage, network, batch):
    """What a network gets in the first call of a stage's step."""
    seen = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    stage(batch, torch.Generator().manual_seed(1))
    hook.remove()
    return seen[0].detach()


@pytest.mark.parametrize(
    ("name", "options"), [("diffusion", {}), ("finetune", {"judged": None, "faithful": 0.25, "clean": 0.25})]
)
def test_a_patch_finds_nothing_of_its_own_source(name, options, make_pipeline, tiles):
    pipeline = make_pipeline()
    batch = tiles.sample(8, 256, torch.Generator().manual_seed(0), texture_share=0.5)

    def stage():
        return STAGES[name](pipeline, tiles, Degradation(), **options)

    queries = first_inputs(stage(), pipeline.texture_classifier, batch)
    used = len(queries) // 4  # patches of 128 px in a crop of 256
    sources = batch.sources[len(batch.sources) - used :].repeat_interleave(4)  # the last are those sampled
    assert sources.unique().numel() > 2
    # A memory of the very patches that will search it: the best find of each is itself.
    pipeline.texture_memory = memory = ReferenceTextureMemory.of(
        queries,
        pipeline.keys,
        [Origin(tiles.source_names[source], "CC0-1.0") for source in sources.tolist()],
        latent_space=latent_space(pipeline.autoencoder),
        key_space=key_space(pipeline.texture_classifier),
    )
    anything = sources[memory.search(pipeline.keys(queries), 1).entries[:, 0]]
    assert (anything == sources).float().mean() > 0.9
    found = first_inputs(stage(), pipeline.texture_encoder, batch)
    entries = memory.patches(slice(None))
    matches = (found[:, :, None] == entries).flatten(3).all(dim=3)
    assert matches.any(dim=2).all(), "what is found are entries"
    assert not (matches & (sources[:, None] == sources)[:, None]).any()
