import numpy as np
import pytest
import torch

from patchscaler import Plan
from patchscaler.errors import InputError
from patchscaler.evaluation import ablation
from patchscaler.evaluation.ablation import NULL, ablate, parse_plan, to_markdown, variants
from patchscaler.evaluation.calibrate import read_pairs
from patchscaler.sampling.grouping import Path


@pytest.fixture(scope="module")
def prompted(make_pipeline):
    """A lively tiny pipeline with a memory of 12 entries and a plan of two groups."""
    pipeline = make_pipeline()
    pipeline.plans = dict.fromkeys(pipeline.plans, Plan.uniform(0.9, 2))
    return pipeline


@pytest.fixture
def pairs(tmp_path, make_scene):
    """LR of 64x96 and its truth."""
    from PIL import Image

    low, high = tmp_path / "lr", tmp_path / "hr"
    for folder, size in ((low, (96, 64)), (high, (384, 256))):
        folder.mkdir()
        Image.fromarray(make_scene(256, 384)).resize(size).save(folder / "a.png")
    return low, high


def names(pipeline, plan):
    return [variant.name for variant in variants(pipeline, plan)]


@torch.inference_mode()
def sampled(pipeline, pairs, name, plan):
    ((lr, hr),) = read_pairs(*pairs)
    scene, size = ablation._scene(pipeline, lr, hr, plan, 0, 0)
    variant = next(variant for variant in variants(pipeline, plan) if variant.name == name)
    return ablation.sample(pipeline, scene, variant), scene, size


@pytest.mark.parametrize(("name", "texture"), [(NULL, False), ("top 3", True)])
def test_variants_sample_what_the_pipeline_samples(prompted, pairs, name, texture):
    plan = prompted.plans["balanced"]
    latent, _, size = sampled(prompted, pairs, name, plan)
    ((lr, _),) = read_pairs(*pairs)
    folded = ablation.fold(latent, *(side // 16 for side in size), 16)
    expected = prompted(lr, plan=plan, texture=texture).image
    torch.testing.assert_close(prompted.decode(folded, lr[None])[0].clamp(0, 1), expected, atol=1e-4, rtol=0)


def test_guidance_goes_on_from_no_prompt_through_the_prompt(prompted, pairs):
    plan = Plan.uniform(0.9, 1)
    without, plain, guided = (
        sampled(prompted, pairs, name, plan)[0] for name in (NULL, "top 3", "top 3, guidance 2")
    )
    torch.testing.assert_close(guided, without + 2 * (plain - without), atol=1e-4, rtol=0)
    assert (guided - plain).abs().max() > 1e-3


def test_random_entries_are_others_in_every_image(prompted, pairs):
    ((lr, hr),) = read_pairs(*pairs)
    plan = prompted.plans["balanced"]
    with torch.inference_mode():
        first, second = (ablation._scene(prompted, lr, hr, plan, 0, number)[0] for number in (0, 1))
        assert torch.equal(first.noise, second.noise)
        one, other = (
            ablation.retrieved(prompted, scene, count=3, order="random") for scene in (first, second)
        )
    assert not torch.equal(one, other)


def test_prompts_for_the_hard_group_only_leave_the_others_as_without(prompted, pairs):
    ((lr, _),) = read_pairs(*pairs)
    quality = prompted(lr, plan=Plan.restoration_only()).confidence
    middle = float(np.median(quality.reshape(2, 16, 3, 16).mean(axis=(1, 3))))
    path = prompted.plans["balanced"].paths[0]
    plan = Plan((middle,), (path, path))
    without, scene, _ = sampled(prompted, pairs, NULL, plan)
    hard, _, _ = sampled(prompted, pairs, "top 3, hard group only", plan)
    everywhere, _, _ = sampled(prompted, pairs, "top 3", plan)
    group = scene.group.bool()
    assert 0 < int(group.sum()) < len(group)
    torch.testing.assert_close(hard[~group], without[~group], atol=1e-5, rtol=0)
    torch.testing.assert_close(hard[group], everywhere[group], atol=1e-5, rtol=0)
    assert (without - everywhere).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    all_simple = Plan((0.0,), (path, path))
    without, scene, _ = sampled(prompted, pairs, NULL, all_simple)
    assert not scene.group.any()
    hard, _, _ = sampled(prompted, pairs, "top 3, hard group only", all_simple)
    torch.testing.assert_close(hard, without, atol=1e-5, rtol=0)


def test_prompts_for_the_hard_group_only_are_a_row_only_where_they_repeat_no_other(prompted):
    still, moving = Path(1.0, 0), Path(0.9, 2)
    for paths, there in {(still, moving): False, (moving, still): False, (moving, moving): True}.items():
        assert ("top 3, hard group only" in names(prompted, Plan((0.5,), paths))) == there
    assert "top 3, hard group only" not in names(prompted, Plan.uniform(0.9, 2))


def test_the_table_has_every_variant_and_no_prompt_gains_nothing_on_itself(prompted, pairs):
    plan = prompted.plans["balanced"]
    result = ablate(prompted, *pairs, plan=plan, larger=prompted.texture_memory)
    rows = variants(prompted, plan, prompted.texture_memory)
    assert set(result.values) == {variant.name for variant in rows}
    assert len({tuple(row["dfd"]) for row in result.values.values()}) >= len(result.values) - 2
    assert tuple(result.gain(NULL, "dfd")) == (0, 0, 0)
    assert result.values[NULL]["change"] == [0] and result.values["top 3"]["change"][0] > 1e-3
    (weak,), (strong,) = (result.values[f"top 3, guidance {s}"]["change"] for s in (1.5, 3))
    assert weak < strong
    figures, attention = to_markdown(result).split(result.settings)
    lines = figures.splitlines()
    assert len([line for line in lines if line.startswith("|")]) == len(result.values) + 2
    assert lines[2].startswith(f"| {NULL} |")
    assert "| block 1 |" in attention and "| uniform | 32.7 % | 32.7 % | 32.7 % | 2.0 % | 49 |" in attention
    assert "Last step of 6 patches" in attention


def test_where_no_patch_takes_a_step_there_is_no_change(prompted, pairs):
    result = ablate(prompted, *pairs, plan=Plan((0.0,), (Path(1.0, 0), Path(0.9, 2))))
    assert tuple(result.gain("top 3", "dfd")) == (0, 0, 0)
    assert "0.0 %" in to_markdown(result)
    assert "attention" not in to_markdown(result)


def test_what_cannot_be_measured_is_refused(prompted, pairs):
    with pytest.raises(InputError, match="takes no steps"):
        ablate(prompted, *pairs, plan=Plan.restoration_only())
    with pytest.raises(InputError, match="no texture memory"):
        variants(prompted.with_memory(None), prompted.plans["balanced"])
    assert parse_plan(prompted, "0.5:3") == Plan.uniform(0.5, 3)
    for text in ("half", "0.5:x", "2:1", "0.5:1,0.5:1"):
        with pytest.raises(InputError, match="--plan"):
            parse_plan(prompted, text)


def test_three_paths_take_the_thresholds_of_the_models_plan_of_three_groups(make_pipeline):
    pipeline, text = make_pipeline(), "0.4:1,0.6:2,0.9:4"
    with pytest.raises(InputError, match="no plan of three groups"):
        parse_plan(pipeline, text)
    pipeline.plans["best"] = Plan((0.6, 0.2), (Path(1.0, 0),) * 3)
    assert parse_plan(pipeline, text) == Plan((0.6, 0.2), (Path(0.4, 1), Path(0.6, 2), Path(0.9, 4)))
    with pytest.raises(InputError, match="three of them"):
        parse_plan(pipeline, "0.4:1,0.6:2,0.9")
