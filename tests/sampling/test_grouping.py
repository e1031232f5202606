import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality

PATHS = (Path(0.4, 0), Path(0.6, 2), Path(0.9, 4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_groups_follow_the_paper(qualities, a, b):
    low, high = sorted((a, b))
    groups = assign(torch.tensor(qualities, dtype=torch.float64), (high, low)).tolist()
    assert groups == [0 if q > high else 1 if q > low else 2 for q in qualities]


def test_quality_is_the_mean_confidence_of_a_patch():
    confidence = torch.zeros(1, 1, 32, 32)
    confidence[:, :, :16, 16:] = 0.5
    assert patch_quality(confidence, 16, 16).tolist() == [0, 0.5, 0, 0]


def test_quantiles_give_each_group_its_share():
    quality = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    plan = Plan.by_quantiles(quality, (0.5, 0.3, 0.2), PATHS)
    shares = torch.bincount(assign(quality, plan.thresholds)) / len(quality)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=1e-3, rtol=0)


def test_a_plan_survives_json():
    plan = Plan((0.86, 0.58), PATHS)
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("thresholds", "paths"),
    [
        ((0.5,), PATHS),
        ((0.5, 0.8), PATHS),
        ((), (Path(0.5, -1),)),
        ((), (Path(0.0, 1),)),
        ((), (Path(1.5, 1),)),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(thresholds, paths):
    with pytest.raises(ValueError, match=r"plan needs|must fall|path needs"):
        Plan(thresholds, paths)
