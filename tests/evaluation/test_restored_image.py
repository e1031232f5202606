import numpy as np
import pytest
import torch

from patchscaler import InputError, Path, Plan
from patchscaler.evaluation.restored_image import RestoredImage


@pytest.mark.parametrize("size", [(64, 64), (70, 50)])
def test_it_gives_what_the_pipeline_gives(pipeline, make_scene, size):
    image = make_scene(*size)
    restored = RestoredImage(pipeline, image, seed=5)
    for plan in (pipeline.plans["best"], *pipeline.plans.values(), Plan.uniform(0.4, 1)):
        ours, theirs = restored.upscale(plan), pipeline(image, plan=plan, seed=5)
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
        np.testing.assert_array_equal(ours.groups, theirs.groups)
        np.testing.assert_array_equal(ours.steps, theirs.steps)
        assert (ours.groups.dtype, ours.steps.dtype) == (theirs.groups.dtype, theirs.steps.dtype)
        assert ours.timings.keys() == theirs.timings.keys()
        assert ours.seed == 5


def test_tensors_stay_tensors(pipeline):
    image = torch.rand(3, 40, 32)
    plan = pipeline.plans["best"]
    torch.testing.assert_close(
        RestoredImage(pipeline, image).upscale(plan).image, pipeline(image, plan=plan).image
    )


def test_equal_paths_are_taken_once_whatever_the_groups(pipeline, make_scene):
    restored = RestoredImage(pipeline, make_scene(64, 64))
    (threshold,) = pipeline.plans["balanced"].thresholds
    nothing = Path(1.0, 0)
    plain, grouped = (
        restored.upscale(Plan.restoration_only()),
        restored.upscale(Plan((threshold,), (nothing,) * 2)),
    )
    assert grouped.image is plain.image
    assert grouped.groups.max() == 1 > plain.groups.max()
    assert restored.upscale(pipeline.plans["balanced"]).image is not plain.image


def test_coarse_latents_and_confidence_cover_whole_patches(pipeline, make_scene):
    image = make_scene(64, 96)
    restored = RestoredImage(pipeline, image)
    restored.upscale(pipeline.plans["best"])
    expected = pipeline.restore(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(restored.latent, expected.latent)
    torch.testing.assert_close(restored.confidence, expected.confidence)


def test_small_images_are_refused(pipeline):
    with pytest.raises(InputError, match="8 or more"):
        RestoredImage(pipeline, np.zeros((7, 9, 3), np.uint8))
