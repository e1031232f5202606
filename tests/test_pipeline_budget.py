import numpy as np
import pytest
import torch

from patchscaler.errors import InputError
from patchscaler.sampling.grouping import Path, Plan, patch_quality

RESTORATION = Plan.restoration_only()


@pytest.fixture(scope="module")
def budgeted(make_pipeline):
    pipeline = make_pipeline()
    pipeline.plans["best"] = Plan((0.6, 0.4), (Path(1.0, 0), Path(0.6, 1), Path(0.9, 3)))
    return pipeline


@pytest.fixture(scope="module")
def image():
    """Of 3 x 4 whole patches."""
    return torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(5))


def test_no_budget_is_the_restoration_alone_to_the_bit(budgeted, image):
    expected = budgeted(image, plan=RESTORATION).image
    for options in ({"budget": 0}, {"time_budget": 0}):
        result = budgeted(image, **options)
        assert not result.steps.any()
        assert torch.equal(result.image, expected)


@pytest.mark.parametrize("budget", [0.4, 1, 1.5, 2.9])
def test_a_budget_goes_to_the_hardest_patches(budgeted, image, budget):
    result = budgeted(image, budget=budget)
    assert budget - 2 / 12 <= result.mean_steps <= budget
    confidence = torch.from_numpy(result.confidence)[None, None]
    order = patch_quality(confidence, 16, 16).argsort().numpy()
    assert (np.diff(result.steps.flatten()[order]) <= 0).all()
    assert set(result.steps.flatten()) <= {0, 1, 3}


def test_enough_budget_is_uniform_sampling_on_the_longest_path(budgeted, image):
    expected = budgeted(image, plan=Plan.uniform(0.9, 3)).image
    for options in ({"budget": 3}, {"budget": 100}, {"time_budget": 1e6}, {"budget": 3, "time_budget": 1e6}):
        assert torch.equal(budgeted(image, **options).image, expected)


def test_a_budget_is_each_image_s_own(budgeted, image):
    images = [image, image[:, :64, 40:104]]
    for alone, together in zip(
        [budgeted(each, budget=1.2) for each in images], budgeted(images, budget=1.2), strict=True
    ):
        assert np.array_equal(alone.steps, together.steps)


def test_a_plan_of_one_s_own_keeps_its_paths(budgeted, image):
    assert set(budgeted(image, plan=Plan.uniform(0.5, 2), budget=1).steps.flatten()) == {0, 2}
    results = budgeted([image, image], plan=[RESTORATION, "best"], time_budget=1e6)
    assert [result.mean_steps for result in results] == [0, 3]


@pytest.mark.parametrize("options", [{"budget": -1}, {"time_budget": -0.5}, {"budget": float("nan")}])
def test_a_negative_budget_is_refused(budgeted, image, options):
    with pytest.raises(InputError, match="budget"):
        budgeted(image, **options)
