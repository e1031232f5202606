import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.sampling.grouping import Plan

PLAN = Plan.uniform(0.9, 2)
LEVEL = 1 / 255


def as_array(photo: torch.Tensor) -> np.ndarray:
    return (photo * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def test_all_kinds_of_images_agree_and_come_back_as_they_were(pipeline, photo):
    array = as_array(photo)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    from_array, from_pil, from_tensor = (
        pipeline(image, plan=PLAN).image for image in (array, Image.fromarray(array), tensor)
    )
    assert from_array.shape == (280, 400, 3)
    assert from_array.dtype == np.uint8
    assert isinstance(from_pil, Image.Image)
    assert from_pil.size == (400, 280)
    assert np.array_equal(np.asarray(from_pil), from_array)
    assert from_tensor.shape == (3, 280, 400)
    assert from_tensor.dtype == torch.float32
    assert np.array_equal(as_array(from_tensor), from_array)
    assert (from_tensor * 255 - (from_tensor * 255).round()).abs().max() > 0.1, "a tensor is not rounded"


def test_tensors_outside_the_range_are_clamped(pipeline, photo):
    expected = pipeline(photo.round(), plan=PLAN).image
    assert torch.equal(pipeline(photo.round() * 3 - 1, plan=PLAN).image, expected)
    assert expected.min() >= 0
    assert expected.max() <= 1


def test_a_list_gives_what_single_calls_give(pipeline, photo):
    images = [photo, photo[:, :40, :33], photo[:, 5:21, 60:90]]
    together = pipeline(images, plan=PLAN)
    assert [result.image.shape for result in together] == [(3, 280, 400), (3, 160, 132), (3, 64, 120)]
    for image, result in zip(images, together, strict=True):
        alone = pipeline(image, plan=PLAN)
        assert (alone.groups == result.groups).all()
        assert (alone.image - result.image).abs().max() < LEVEL / 10, "batches differ in rounding alone"


def test_a_deterministic_patch_is_the_same_to_the_bit_in_any_company(pipeline, photo):
    images = [photo, photo[:, :40, :33], photo[:, 5:21, 60:90]]
    together = pipeline(images, plan=PLAN, deterministic=True)
    for image, result in zip(images, together, strict=True):
        assert torch.equal(pipeline(image, plan=PLAN, deterministic=True).image, result.image)


def test_each_image_of_a_list_may_have_its_own_plan_and_seed(pipeline, photo):
    images = [photo, photo[:, :40, :33], photo[:, 5:21, 60:90]]
    plans = [PLAN, Plan.restoration_only(), Plan.uniform(0.5, 3)]
    seeds = [3, 4, 5]
    together = pipeline(images, plan=plans, seed=seeds)
    for image, plan, seed, result in zip(images, plans, seeds, together, strict=True):
        alone = pipeline(image, plan=plan, seed=seed)
        assert (result.seed, result.mean_steps) == (seed, plan.paths[0].steps)
        assert (alone.image - result.image).abs().max() < LEVEL / 10, "batches differ in rounding alone"
    with pytest.raises(InputError, match="2 plans or seeds for 3 images"):
        pipeline(images, seed=[1, 2])


def test_an_empty_list_gives_an_empty_list(pipeline):
    assert pipeline([]) == []


def test_the_seed_fixes_the_result(pipeline, photo):
    first, again, other = (pipeline(photo, plan=PLAN, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image)
    assert (first.image - other.image).abs().mean() > LEVEL
    assert (first.seed, other.seed) == (3, 4)


@pytest.mark.parametrize(("height", "width"), [(13, 21), (8, 8), (8, 65), (33, 32)])
def test_odd_sizes_become_exactly_four_times_as_large(pipeline, photo, height, width):
    result = pipeline(photo[:, :height, :width], plan=PLAN)
    assert result.image.shape == (3, 4 * height, 4 * width)
    assert result.confidence.shape == (-(-height // 2), -(-width // 2))
    assert result.groups.shape == (-(-height // 32), -(-width // 32))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((32, 32), np.uint8), r"\(h, w, 3\)"),
        (np.zeros((32, 32, 4), np.uint8), r"\(h, w, 3\)"),
        (np.zeros((32, 32, 3), np.float32), "uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "floating"),
        (torch.zeros(1, 32, 32), r"\(3, h, w\)"),
        (torch.zeros(1, 3, 32, 32), r"\(3, h, w\)"),
        (torch.full((3, 32, 32), torch.nan), "NaN"),
        (Image.new("L", (32, 32)), "mode L"),
        (Image.new("RGBA", (32, 32)), "mode RGBA"),
        (torch.zeros(3, 7, 32), "32x7.*8 or more"),
        (torch.zeros(3, 32, 7), "7x32.*8 or more"),
        ("photo.png", "not str"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_one_line(pipeline, image, reason):
    with pytest.raises(InputError, match=reason) as caught:
        pipeline(image)
    assert "\n" not in str(caught.value)


def test_one_bad_image_of_a_list_is_refused(pipeline, photo):
    with pytest.raises(InputError, match="8 or more"):
        pipeline([photo, photo[:, :7]])


def test_an_unknown_quality_names_the_known_ones(pipeline, photo):
    with pytest.raises(InputError, match=r"'fastest'.*fast, balanced, best"):
        pipeline(photo, plan="fastest")


def test_a_call_changes_nothing_in_its_input(pipeline, photo):
    before = photo.clone()
    pipeline(photo, plan=PLAN)
    assert torch.equal(photo, before)


def test_the_record_fits_the_image(pipeline, photo):
    result = pipeline(photo, plan=PLAN, seed=9)
    assert (result.confidence.shape, result.confidence.dtype) == ((35, 50), np.float32)
    assert ((result.confidence > 0) & (result.confidence < 1)).all()
    assert (result.groups.shape, result.groups.dtype) == ((3, 4), np.int8)
    assert (result.steps.shape, result.steps.dtype) == ((3, 4), np.int16)
    assert (result.steps == 2).all()
    assert result.mean_steps == 2
    assert result.group_shares(1) == [1.0]
    assert list(result.timings) == ["encode", "restore", "sample", "decode"]
    assert min(result.timings.values()) >= 0


def test_progress_takes_every_stage_to_its_end(pipeline, photo):
    seen = []
    results = pipeline([photo, photo[:, :20]], plan=PLAN, progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == [
        "encode",
        "restore",
        "sample",
        "decode",
    ]
    for stage in ("encode", "restore", "sample", "decode"):
        own = [progress for progress in seen if progress.stage == stage]
        done = [progress.done for progress in own]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, own[0].total)
        assert own[0].total > 0
    steps = next(progress.total for progress in seen if progress.stage == "sample")
    assert steps == sum(int(result.steps.sum()) for result in results)
