import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from patchscaler.errors import DeviceError, ModelError
from patchscaler.imaging.streaming import Canvas, Spool
from patchscaler.imaging.tensors import to_tensor, window
from patchscaler.imaging.tiles import Tile, cut, run_tiles
from patchscaler.models.autoencoder import Autoencoder
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.presets import build
from patchscaler.sampling.grouping import Path, Plan

LEVEL = 1 / 255


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Large enough for several tiles each way, and for their halos to end within it: (3, 330, 250)."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(1, 3, 40, 30, generator=generator)
    return F.interpolate(coarse, (330, 250), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def plan(pipeline, image) -> Plan:
    """Three groups, split in the gaps between the patches' confidences."""
    confidence = torch.from_numpy(pipeline(image, plan=Plan.restoration_only()).confidence)
    quality = F.avg_pool2d(confidence[None, None], 16).flatten().sort().values
    middle = (quality[1:] + quality[:-1]) / 2
    gaps = quality.diff()
    third = len(gaps) // 3
    low, high = int(gaps[:third].argmax()), 2 * third + int(gaps[2 * third :].argmax())
    return Plan((float(middle[high]), float(middle[low])), (Path(1.0, 0), Path(0.66, 1), Path(0.9, 2)))


@pytest.mark.parametrize("tile", [128, 256, 384, 1024])
def test_tiles_give_what_the_whole_image_gives(pipeline, image, plan, tile):
    whole = pipeline(image, plan=plan)
    tiled = pipeline(image, plan=plan, tile=tile)
    assert np.array_equal(tiled.groups, whole.groups)
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-3)
    assert float((tiled.image - whole.image).abs().max()) <= LEVEL


def test_tiles_of_overlapping_patches_give_what_the_whole_image_gives(pipeline, image):
    sampling = replace(pipeline.sampling, stride=8)
    overlapping = PatchScalerPipeline(**pipeline.networks, sampling=sampling)
    plan = Plan.uniform(0.9, 1)
    whole = overlapping(image[:, :170, :140], plan=plan)
    tiled = overlapping(image[:, :170, :140], plan=plan, tile=192)
    assert float((tiled.image - whole.image).abs().max()) <= LEVEL


@pytest.mark.parametrize("preset", ["tiny", "compact"])
@torch.inference_mode()
def test_halos_cover_the_receptive_fields(preset):
    """A change outside the halo of a tile changes nothing in it, and one at the halo's edge is needed."""
    torch.manual_seed(0)
    pipeline = build(preset)
    for network in pipeline.networks.values():
        for value in network.parameters():
            value.copy_(
                torch.randn(value.shape) / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else value
            )
    autoencoder, restoration, stem = pipeline.autoencoder, pipeline.restoration, pipeline.patch_dit.stem
    channels = autoencoder.latent_channels

    def reach(run, height, factor):
        """Positions of the input, in latents, that rows from `height` on of a map depend on before them."""
        rows = torch.zeros(1, 1, height * 2, 8)
        base, changed = run(rows), None
        rows = torch.zeros(1, 1, height * 2, 8)
        rows[:, :, : height - factor] = 1
        changed = run(rows)
        return float((base - changed).abs().amax(dim=(0, 1, 3))[height:].max())

    def decode(rows):
        latent = rows.expand(1, channels, -1, -1)
        return autoencoder.decode(latent, F.interpolate(latent[:, :3], scale_factor=2.0))[:, :, ::8]

    def encode(rows):
        return autoencoder.encode(F.interpolate(rows.expand(1, 3, -1, -1), scale_factor=8.0))

    def restore(rows):
        latent = rows.expand(1, channels, -1, -1)
        restored = restoration(latent, F.interpolate(latent[:, :3], scale_factor=2.0))
        return torch.cat((restored.latent, restored.confidence, restored.features), dim=1)

    for run, halo in (
        (encode, autoencoder.encode_halo),
        (decode, autoencoder.decode_halo),
        (restore, restoration.halo),
    ):
        assert reach(run, 64, halo) == pytest.approx(0, abs=1e-5)
        assert reach(run, 64, 0) > 1e-3
    assert stem.halo == 5


def test_sixteen_bits_come_back_as_sixteen_bits(pipeline, image):
    pixels = (image.permute(1, 2, 0).numpy() * 65535).round().astype(np.uint16)
    result = pipeline(pixels, plan=Plan.restoration_only()).image
    expected = pipeline(image, plan=Plan.restoration_only()).image.permute(1, 2, 0).numpy() * 65535
    assert result.dtype == np.uint16
    assert len(np.unique(result)) > 4096
    assert np.abs(result - expected).max() < 3


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_spool_takes_what_an_array_takes(pipeline, image, tmp_path, in_memory):
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    expected = pipeline(pixels, plan=Plan.restoration_only(), tile=256).image
    with Spool(tmp_path, expected.shape, np.uint8, in_memory=in_memory) as spool:
        assert pipeline(pixels, plan=Plan.restoration_only(), tile=256, out=spool).image is spool
        assert np.array_equal(spool.image().numpy(), expected)
        assert [file.name[0] for file in tmp_path.iterdir()] == ([] if in_memory else ["."])
    assert list(tmp_path.iterdir()) == []


class CrampedAutoencoder(Autoencoder):
    """One that runs out of memory beyond a size, as a device would."""

    most = 10**9

    def decode(self, latent, lr=None):
        if latent.shape[2] * latent.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(latent, lr)


@pytest.fixture
def cramped(pipeline) -> PatchScalerPipeline:
    networks = dict(pipeline.networks)
    autoencoder = CrampedAutoencoder(**pipeline.autoencoder.config)
    autoencoder.load_state_dict(pipeline.autoencoder.state_dict())
    return PatchScalerPipeline(**{**networks, "autoencoder": autoencoder}, sampling=pipeline.sampling)


def test_out_of_memory_halves_the_tile_and_goes_on(pipeline, cramped, image):
    cramped.autoencoder.most = 4000
    expected = pipeline(image, plan=Plan.restoration_only()).image
    result = cramped(image, plan=Plan.restoration_only()).image
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_out_of_memory_for_good_is_one_line(cramped, image):
    cramped.autoencoder.most = 100
    with pytest.raises(DeviceError, match="out of memory"):
        cramped(image, plan=Plan.restoration_only())


def test_half_precision_that_overflows_is_done_again_in_float32(pipeline, photo):
    """A huge scale that the last layer takes back: finite in float32, not in fp16."""
    networks = copy.deepcopy(pipeline.networks)
    decoder = networks["autoencoder"].decoder
    with torch.inference_mode():
        decoder.quarter[0].conv1.weight.mul_(3e4)
        decoder.quarter[0].conv1.bias.mul_(3e4)
        decoder.quarter[0].conv2.weight.div_(3e4)
    exact = PatchScalerPipeline(**copy.deepcopy(networks), sampling=pipeline.sampling)
    half = PatchScalerPipeline(**networks, sampling=pipeline.sampling).to("cpu", torch.float16)
    plan = Plan.uniform(0.9, 1)
    result, expected = half(photo, plan=plan).image, exact(photo, plan=plan).image
    assert result.isfinite().all()
    assert float((result - expected).abs().mean()) < 2 * LEVEL


def test_patches_that_overflow_are_done_again_in_float32(pipeline, photo):
    networks = copy.deepcopy(pipeline.networks)
    with torch.inference_mode():
        networks["patch_dit"].embed.weight.mul_(1e5)
    exact = PatchScalerPipeline(**copy.deepcopy(networks), sampling=pipeline.sampling)
    half = PatchScalerPipeline(**networks, sampling=pipeline.sampling).to("cpu", torch.float16)
    plan = Plan.uniform(0.9, 1)
    result, expected = half(photo, plan=plan).image, exact(photo, plan=plan).image
    assert result.isfinite().all()
    assert float((result - expected).abs().mean()) < 2 * LEVEL


def test_broken_weights_are_refused(pipeline, photo):
    networks = copy.deepcopy(pipeline.networks)
    with torch.inference_mode():
        networks["autoencoder"].decoder.eighth[0].bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        PatchScalerPipeline(**networks, sampling=pipeline.sampling)(photo, plan=Plan.restoration_only())


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9), st.integers(1, 12))
def test_tiles_cover_a_map_once(height, width, steps, step):
    seen = np.zeros((height, width), int)
    for tile in cut(Tile(0, height, 0, width), steps * step):
        seen[tile.where] += 1
    assert (seen == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 6), st.integers(64, 500))
def test_tiles_cover_a_map_once_whenever_memory_runs_out(height, width, steps, most):
    seen = np.zeros((height, width), int)

    def run(tile: Tile) -> None:
        if tile.area > most:
            raise torch.OutOfMemoryError
        assert tile.top % 4 == tile.left % 4 == 0
        seen[tile.where] += 1

    run_tiles(height, width, steps * 16, 4, run)
    assert (seen == 1).all()


@settings(max_examples=40)
@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([(16, 16), (16, 8)]), st.data())
def test_windows_are_parts_of_the_padded_image(height, width, sizes, data):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas = Canvas(torch.from_numpy(pixels).permute(2, 0, 1), *sizes, 2)
    tall, wide = 2 * canvas.height, 2 * canvas.width
    extra = ((0, tall - height), (0, wide - width), (0, 0))
    padded = to_tensor(np.pad(pixels, extra, mode="reflect"), 8)
    top, left = data.draw(st.integers(0, tall - 1)), data.draw(st.integers(0, wide - 1))
    tile = Tile(top, data.draw(st.integers(top + 1, tall)), left, data.draw(st.integers(left + 1, wide)))
    assert torch.equal(window(canvas.planes, tile), padded[tile.where])
