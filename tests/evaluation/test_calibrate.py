import pytest
import torch
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.evaluation.calibrate import (
    PRICES,
    Calibration,
    calibrate,
    choose,
    held_out,
    read_pairs,
    to_markdown,
)
from patchscaler.evaluation.metrics import DeepFeatureDistance
from patchscaler.sampling.grouping import Path, Plan, assign

CANDIDATES = (Path(0.43, 1), Path(0.9, 1), Path(0.9, 2))
NOTHING = Path(1.0, 0)


@pytest.fixture(scope="module")
def images(pipeline):
    """LR images of 4 and 3 whole patches."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *sides, generator=generator) for sides in ((64, 64), (32, 96))]


def pairs_made_by(pipeline, images, plan):
    """Pairs whose truth is what a plan makes."""
    return [(lr, (pipeline(lr, plan=plan).image * 255).round() / 255) for lr in images]


@pytest.fixture(scope="module")
def measured(pipeline, images) -> Calibration:
    """A calibration on a truth that no path reaches; not to be changed."""
    pairs = pairs_made_by(pipeline, images, Plan.uniform(0.7, 3))
    return calibrate(pipeline, pairs, candidates=CANDIDATES)


def test_every_path_is_measured_on_every_patch(measured):
    assert set(measured.distance) == {NOTHING, *CANDIDATES}
    assert all(distance.shape == (7,) for distance in measured.distance.values())
    assert all((distance > 0).all() for distance in measured.distance.values())
    assert ((measured.quality > 0) & (measured.quality < 1)).all()


def test_plans_have_three_groups_of_their_shares(measured):
    assert list(measured.plans) == ["fast", "balanced", "best"]
    for plan in measured.plans.values():
        assert len(plan.paths) == 3
        assert plan.thresholds[0] > plan.thresholds[1]
        counts = assign(measured.quality, plan.thresholds).bincount(minlength=3).tolist()
        assert counts == pytest.approx([2.8, 2.45, 1.75], abs=0.81)


def test_better_qualities_cost_no_less_and_are_no_worse(measured):
    steps = [row["steps"] for row in measured.comparison]
    distance = [row["pgs"] for row in measured.comparison]
    assert [row["plan"] for row in measured.comparison] == ["fast", "balanced", "best"]
    assert steps == sorted(steps)
    assert distance == sorted(distance, reverse=True)
    assert steps[-1] > 0


def test_a_step_must_gain_its_price():
    """One step gains 1.5 % in easy patches and nothing in others, two gain 2 % and 0.05 %."""
    quality = torch.tensor([0.9, 0.8, 0.2, 0.1])
    easy = (quality > 0.5).float()
    distance = {
        NOTHING: torch.ones(4),
        Path(0.43, 1): 1 - 0.015 * easy,
        Path(0.9, 2): 1 - 0.02 * easy - 0.0005 * (1 - easy),
    }
    found = Calibration(quality, distance, torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    counts = {
        name: [path.steps for path in choose(found, (0.5, 0.5), price).paths]
        for name, price in PRICES["distance"].items()
    }
    assert counts == {"fast": [1, 0], "balanced": [2, 0], "best": [2, 2]}


@pytest.mark.parametrize(("spread", "steps"), [(0.005, [1]), (0.05, [0])])
def test_a_gain_must_be_certain(spread, steps):
    """One step gains 1 % on the mean of 16 images of two patches; by chance or not."""
    image = torch.arange(16).repeat_interleave(2)
    gain = 0.01 + spread * (-1.0) ** image
    distance = {NOTHING: torch.ones(32), Path(0.43, 1): 1 - gain}
    plan = choose(Calibration(torch.rand(32), distance, torch.zeros(32), image), (1.0,), 0.0)
    assert [path.steps for path in plan.paths] == steps


def test_best_takes_the_best_path_of_each_group(measured):
    plan = measured.plans["best"]
    groups = assign(measured.quality, plan.thresholds)
    for group, path in enumerate(plan.paths):
        mean = {path: float(each[groups == group].mean()) for path, each in measured.distance.items()}
        assert mean[path] == pytest.approx(min(mean.values()), abs=1e-6)


def test_a_plan_gives_what_was_measured_path_by_path(measured, pipeline, images):
    row = measured.comparison[-1]
    steps = [pipeline(image, plan=measured.plans["best"]).steps.flatten() for image in images]
    assert torch.cat([torch.from_numpy(each) for each in steps]).float().mean() == pytest.approx(row["steps"])


def test_a_denoiser_that_makes_it_worse_gets_no_steps(pipeline, images):
    pairs = pairs_made_by(pipeline, images, Plan.restoration_only())
    result = calibrate(pipeline, pairs, candidates=CANDIDATES)
    for plan in result.plans.values():
        assert plan.paths == (NOTHING,) * 3
    assert {row["steps"] for row in result.comparison} == {0.0}


def test_a_path_that_gives_the_truth_is_chosen(pipeline, images):
    pairs = pairs_made_by(pipeline, images, Plan.uniform(0.9, 2))
    result = calibrate(pipeline, pairs, candidates=CANDIDATES)
    assert result.plans["best"].paths == (Path(0.9, 2),) * 3
    assert result.comparison[-1]["pgs"] == pytest.approx(0, abs=1e-6)


def test_by_detail_the_path_that_has_as_much_as_the_truth_is_chosen_where_there_is_detail(pipeline, images):
    pairs = pairs_made_by(pipeline, images, Plan.uniform(0.9, 2))
    result = calibrate(pipeline, pairs, measure="detail", candidates=CANDIDATES)
    assert Path(0.9, 2) in result.plans["best"].paths
    assert float(result.distance[Path(0.9, 2)].max()) == 0 < float(result.distance[NOTHING].max())
    assert int((result.distance[NOTHING] > 0).sum()) <= 2 + 1  # of 4 and 3 patches, the half with most of it


def test_fewer_steps_win_where_more_gain_nothing(pipeline, images):
    pairs = pairs_made_by(pipeline, images, Plan.uniform(0.9, 1))
    result = calibrate(pipeline, pairs, candidates=(Path(0.9, 3), Path(0.9, 1)))
    assert {path.steps for plan in result.plans.values() for path in plan.paths} == {1}
    (uniform,) = {row["uniform"] for row in result.comparison}
    assert uniform == pytest.approx(0, abs=1e-6)


def test_one_patch_is_enough(pipeline, images):
    pairs = pairs_made_by(pipeline, [images[0][:, :32, :32]], Plan.uniform(0.9, 2))
    result = calibrate(pipeline, pairs, candidates=CANDIDATES)
    assert len(result.plans["best"].paths) == 3
    assert Path(0.9, 2) in result.plans["best"].paths
    assert "nan" not in to_markdown(result)


def test_progress_counts_the_paths_of_all_images(pipeline, images):
    seen = []
    pairs = [(images[0][:, :32, :32], torch.rand(3, 128, 128))] * 2
    calibrate(pipeline, pairs, candidates=CANDIDATES[:1], progress=lambda *values: seen.append(values))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_distances_are_those_of_the_outputs_patch_by_patch(measured, pipeline, images):
    """The last patch of the first image and the first of the second, each judged alone."""
    judge = DeepFeatureDistance()
    for path in (NOTHING, CANDIDATES[2]):
        for number, at, (top, left) in ((0, 3, (128, 128)), (1, 4, (0, 0))):
            patches = []
            for plan in (Plan((), (path,)), Plan.uniform(0.7, 3)):
                output = (pipeline(images[number], plan=plan).image * 255).round() / 255
                patches.append(output[None, :, top : top + 128, left : left + 128])
            assert float(measured.distance[path][at]) == pytest.approx(float(judge(*patches)), rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high"), [((33, 32), (132, 128)), ((64, 40), (256, 160)), ((32, 32), (64, 64))]
)
def test_sides_that_do_not_fit_are_refused(pipeline, low, high):
    with pytest.raises(InputError, match=r"32 LR pixels|4 times"):
        calibrate(pipeline, [(torch.rand(3, *low), torch.rand(3, *high))])


def test_the_report_has_a_row_for_every_path_and_plan(measured):
    lines = to_markdown(measured).splitlines()
    for path, distance in measured.distance.items():
        (row,) = [line for line in lines if line.startswith(f"| {path.timestep} | {path.steps} |")]
        assert f"{float(distance.mean()):.4f}" in row
    for row in measured.comparison:
        line, *_ = [line for line in lines if line.startswith(f"| {row['plan']} |")]
        assert f"{row['uniform']:.4f}" in line
    assert {line.count("|") for line in lines[: len(measured.distance) + 2]} == {7}


def test_pairs_are_read_by_their_names(folders):
    Image.new("RGB", (32, 32)).save(folders.lr / "lonely.png")
    pairs = read_pairs(folders.lr, folders.hr)
    assert [tuple(lr.shape) for lr, _ in pairs] == [(3, 64, 64), (3, 80, 70)]
    assert [tuple(hr.shape) for _, hr in pairs] == [(3, 256, 256), (3, 320, 280)]
    assert len(read_pairs(folders.lr, folders.hr, limit=1)) == 1


@pytest.mark.parametrize(
    ("content", "reason"), [(b"no image", "cannot be read"), (None, "no image of .* has a namesake")]
)
def test_pairs_that_cannot_be_read_are_refused(folders, content, reason):
    for file in list(folders.hr.iterdir()):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_pairs(folders.lr, folders.hr)


def test_held_out_gains_are_found_where_confidence_knows_them():
    """Hard patches gain from steps and simple ones lose by them, in every image."""
    generator = torch.Generator().manual_seed(2)
    quality = torch.rand(120, generator=generator)
    distance = {NOTHING: torch.ones(120), Path(0.9, 2): 0.5 + quality}
    variance, image = torch.rand(120, generator=generator), torch.arange(120) // 10
    gaps = held_out(Calibration(quality, distance, variance, image))["best"]
    assert all(gap.high < -0.05 for gap in gaps.values())
