import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from patchscaler.errors import InputError, ModelError
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.grouping import Path, Plan, patch_quality

SIMPLE, MEDIUM, HARD = Path(1.0, 0), Path(0.66, 1), Path(0.9, 3)
LEVEL = 1 / 255
PATCH, REACH = 128, 36  # pixels of a patch, and how far the tiny decoder's receptive field goes


@pytest.fixture(scope="module")
def mixed(pipeline) -> tuple[torch.Tensor, Plan]:
    """An image of 3x4 whole patches and a plan that splits it into three groups of four."""
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(5))
    confidence = torch.from_numpy(pipeline(image, plan=Plan.restoration_only()).confidence)
    quality = patch_quality(confidence[None, None], 16, 16).sort().values
    cuts = tuple(float(quality[i - 1] + quality[i]) / 2 for i in (8, 4))
    return image, Plan(cuts, (SIMPLE, MEDIUM, HARD))


def middles(image):
    """The part (rows, cols, 3, m, m) of each patch that depends on no other patch, but for a trace of its colour."""
    patches = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return patches[..., REACH:-REACH, REACH:-REACH].permute(1, 2, 0, 3, 4)


def test_all_simple_is_the_restoration_alone(pipeline, mixed):
    image, _ = mixed
    result = pipeline(image, plan=Plan((0.0,), (SIMPLE, HARD)))
    assert not result.steps.any()
    assert torch.equal(result.image, pipeline(image, plan=Plan.restoration_only()).image)


def test_all_hard_is_uniform_sampling(pipeline, mixed):
    image, _ = mixed
    result = pipeline(image, plan=Plan((1.0, 1.0), (SIMPLE, MEDIUM, HARD)))
    assert (result.steps == HARD.steps).all()
    assert torch.equal(result.image, pipeline(image, plan=Plan.uniform(*dataclasses.astuple(HARD))).image)


def test_in_a_mixed_plan_every_patch_takes_the_path_of_its_group(pipeline, mixed):
    image, plan = mixed
    result = pipeline(image, plan=plan)
    assert result.group_shares(3) == [pytest.approx(1 / 3)] * 3
    confidence = patch_quality(torch.from_numpy(result.confidence)[None, None], 16, 16).view(3, 4)
    groups = torch.from_numpy(result.groups)
    assert confidence[groups == 0].min() > confidence[groups == 1].max()
    assert confidence[groups == 1].min() > confidence[groups == 2].max()
    for group, path in enumerate(plan.paths):
        uniform = pipeline(image, plan=Plan.uniform(path.timestep, path.steps)).image
        mask = groups == group
        torch.testing.assert_close(
            middles(result.image)[mask], middles(uniform)[mask], atol=LEVEL / 2, rtol=0
        )
        assert (middles(result.image)[~mask] - middles(uniform)[~mask]).abs().max() > 0.01


def test_a_named_quality_is_its_plan(make_pipeline, mixed):
    image, plan = mixed
    pipeline = make_pipeline()
    assert not pipeline(image).steps.any(), "before calibration nothing is sampled"
    pipeline.plans["best"] = plan
    assert torch.equal(pipeline(image, plan="best").image, pipeline(image, plan=plan).image)


def test_threads_may_share_a_pipeline(pipeline, mixed):
    image, plan = mixed
    jobs = [(image[:, :, : 40 + 20 * (seed % 4)], seed) for seed in range(8)]

    def work(job):
        return pipeline(job[0], plan=plan, seed=job[1])

    expected = [work(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, jobs))
    for ours, theirs, (_, seed) in zip(results, expected, jobs, strict=True):
        assert ours.seed == seed
        torch.testing.assert_close(ours.image, theirs.image, atol=1e-5, rtol=0)


def test_without_texture_a_memory_does_not_matter(pipeline, mixed):
    image, plan = mixed
    empty = pipeline.texture_memory[:0]
    off = pipeline(image, plan=plan, texture=False).image
    assert torch.equal(pipeline.with_memory(empty)(image, plan=plan).image, off)
    assert torch.equal(pipeline.with_memory(None)(image, plan=plan).image, off)
    assert not torch.equal(pipeline(image, plan=plan).image, off)


def test_a_memory_smaller_than_the_prompt_is_used_whole(pipeline, mixed):
    image, plan = mixed
    result = pipeline.with_memory(pipeline.texture_memory[:2])(image, plan=plan).image
    assert not torch.equal(result, pipeline(image, plan=plan, texture=False).image)


def test_a_memory_of_another_autoencoder_is_refused(pipeline):
    foreign = dataclasses.replace(pipeline.texture_memory, latent_space="0" * 16)
    with pytest.raises(ModelError, match="another autoencoder"):
        pipeline.with_memory(foreign)


def test_keys_of_another_classifier_are_made_again(pipeline):
    memory = pipeline.texture_memory
    stale = dataclasses.replace(memory, keys=memory.keys.roll(1, dims=0), key_space="0" * 16)
    torch.testing.assert_close(pipeline.with_memory(stale).texture_memory.keys, memory.keys)
    kept = dataclasses.replace(stale, key_space=memory.key_space)
    assert torch.equal(pipeline.with_memory(kept).texture_memory.keys, stale.keys)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_is_loaded_with_another_memory(pipeline, tmp_path, dtype):
    pipeline.save_pretrained(tmp_path / "model")
    pipeline.texture_memory[:5].save(tmp_path / "memory.safetensors")
    loaded = PatchScalerPipeline.from_pretrained(
        tmp_path / "model", device="cpu", dtype=dtype, memory=tmp_path / "memory.safetensors"
    )
    assert torch.equal(loaded.texture_memory.values, pipeline.texture_memory.values[:5])
    assert len(loaded.make_prompt(pipeline.texture_memory.patches(slice(2)).to(loaded.dtype))) == 2


def test_overlapping_patches_are_blended(pipeline, mixed):
    image, _ = mixed
    sampling = dataclasses.replace(pipeline.sampling, stride=8)
    overlapping = PatchScalerPipeline(**pipeline.networks, sampling=sampling)
    alone = overlapping(image, plan=Plan.restoration_only())
    assert alone.groups.shape == (5, 7)
    expected = pipeline(image, plan=Plan.restoration_only()).image
    torch.testing.assert_close(alone.image, expected, atol=1e-5, rtol=0)
    sampled = overlapping(image[:, :50, :41], plan=Plan.uniform(0.9, 2))
    assert sampled.steps.shape == (3, 2)
    assert sampled.image.shape == (3, 200, 164)
    assert (sampled.image - expected[:, :200, :164]).abs().mean() > 0.01


def test_fidelity_leads_from_the_sampled_to_the_restored_image(pipeline, photo):
    plan = Plan.uniform(0.9, 2)
    restored = pipeline(photo, plan=Plan.restoration_only()).image
    distances = [
        float((pipeline(photo, plan=plan, fidelity=share).image - restored).square().mean())
        for share in (0.0, 0.5, 0.75, 1.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0
    faithful = pipeline(photo, plan=plan, fidelity=1.0)
    assert torch.equal(faithful.image, restored)
    assert faithful.mean_steps == 0


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, float("nan")])
def test_a_fidelity_is_a_share(pipeline, photo, fidelity):
    with pytest.raises(InputError, match="from 0 to 1"):
        pipeline(photo, fidelity=fidelity)
