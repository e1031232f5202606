import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler import Plan
from patchscaler.evaluation.ablation import NULL, ablate
from patchscaler.evaluation.metrics import DeepFeatureDistance
from patchscaler.evaluation.prompted import Extremes, PromptedPatch


def patch(gain):
    return PromptedPatch(f"{gain}", (0, 0), (), (1.0, 1.0, 1.0 - gain), torch.empty(0))


def test_the_largest_changes_of_each_sign_are_kept():
    extremes = Extremes(2)
    for gain in (0.1, -0.3, 0.0, 0.3, 0.2, -0.1, -0.2):
        extremes.add(patch(gain))
    assert [each.image for each in extremes.better] == ["0.3", "0.2"]
    assert [each.image for each in extremes.worse] == ["-0.3", "-0.2"]


@pytest.fixture(scope="module")
def judge():
    return DeepFeatureDistance()


def test_patches_are_cut_and_judged_alone(make_pipeline, make_scene, judge):
    """In a 2 x 3 grid one patch is right only without a prompt, and one only with it."""
    pipeline = make_pipeline()
    truth = make_scene(256, 384)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    without, prompted = truth.copy(), truth.copy()
    prompted[:128, 256:] = noise
    without[128:, 128:256] = noise
    extremes = Extremes(3)
    with torch.inference_mode():
        latent = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 16, 16)
        extremes.add_image(pipeline, judge, "a", (truth, without, prompted, truth), latent)
    (better,), (worse,) = extremes.better, extremes.worse
    assert (better.corner, worse.corner) == ((128, 128), (256, 0))
    assert (int(better.latent[0, 0, 0]), int(worse.latent[0, 0, 0])) == (4, 2)
    assert np.array_equal(better.pixels[1], noise) and np.array_equal(worse.pixels[2], noise)
    assert np.array_equal(better.pixels[3], truth[128:, 128:256])
    assert better.distance[0] == better.distance[2] == 0 < better.distance[1]


def test_the_sheet_shows_what_prompts_change(make_pipeline, make_scene, tmp_path):
    pipeline = make_pipeline()
    low, high = tmp_path / "lr", tmp_path / "hr"
    for folder, size in ((low, (96, 64)), (high, (384, 256))):
        folder.mkdir()
        Image.fromarray(make_scene(256, 384)).resize(size).save(folder / "a.png")
    extremes = Extremes(2)
    result = ablate(pipeline, low, high, plan=Plan.uniform(0.9, 1), extremes=extremes)
    kept = [*extremes.better, *extremes.worse]
    assert 2 <= len(kept) <= 4
    for each in kept:
        assert each.image == "a"
        assert not np.array_equal(each.pixels[1], each.pixels[2])
    sheet = extremes.sheet(pipeline)
    assert sheet.shape[1] == 7 * (128 + 8) + 8
    for column in range(7):
        left = 8 + column * 136
        assert sheet[34 : 34 + 128, left : left + 128].std() > 1
    pipeline.patch_dit.out.weight.zero_()
    pipeline.patch_dit.out.bias.zero_()
    nothing = Extremes(2)
    result = ablate(pipeline, low, high, plan=Plan.uniform(0.9, 1), extremes=nothing)
    assert result.gain("top 3", "dfd").mean == 0 and NULL in result.values
    assert not nothing.better and not nothing.worse
    assert nothing.sheet(pipeline).ndim == 3
