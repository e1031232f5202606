import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality, spend

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


PLANS = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(
    lambda steps: Plan(
        tuple(1 - (index + 1) / len(steps) for index in range(len(steps) - 1)),
        tuple(Path(0.5, count) for count in steps),
    )
)
QUALITIES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).map(torch.tensor)


def steps_of(quality, plan, budget):
    return torch.tensor([path.steps for path in plan.ladder()])[spend(quality, plan, budget)]


@given(QUALITIES, PLANS, st.floats(0, 7))
def test_a_budget_is_kept_and_nearly_used_up(quality, plan, budget):
    steps, counts = steps_of(quality, plan, budget), [path.steps for path in plan.ladder()]
    assert float(steps.double().mean()) <= budget + 1e-6
    widest = max((b - a for a, b in itertools.pairwise(counts)), default=0)
    assert int(steps.sum()) == counts[-1] * len(steps) or int(steps.sum()) > budget * len(steps) - max(widest, 1)


@given(QUALITIES, PLANS, st.floats(0, 7))
def test_a_harder_patch_never_gets_fewer_steps(quality, plan, budget):
    steps = steps_of(quality, plan, budget)[quality.argsort(stable=True)].tolist()
    assert steps == sorted(steps, reverse=True)


@given(QUALITIES, PLANS, st.floats(0, 7), st.floats(0, 7))
def test_more_budget_takes_no_step_from_any_patch(quality, plan, one, other):
    less, more = sorted((one, other))
    assert (steps_of(quality, plan, less) <= steps_of(quality, plan, more)).all()


@given(QUALITIES, PLANS)
def test_no_budget_takes_no_steps_and_the_plan_s_own_gives_the_plan(quality, plan):
    assert not steps_of(quality, plan, 0).any()
    own = torch.tensor([path.steps for path in plan.paths]).cummax(0).values[assign(quality, plan.thresholds)]
    assert torch.equal(steps_of(quality, plan, float(own.double().mean())), own)


def test_the_ladder_has_each_count_once_and_begins_at_none():
    plan = Plan((0.8, 0.5, 0.2), (Path(0.9, 4), Path(0.4, 2), Path(0.6, 2), Path(0.7, 4)))
    assert plan.ladder() == (Path(1.0, 0), Path(0.6, 2), Path(0.7, 4))
