import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.runtime.memory import halve_on_out_of_memory
from patchscaler.sampling.engine import PatchSet, cut_into_batches, sample_patches
from patchscaler.sampling.noise import patch_noise
from patchscaler.sampling.schedule import solver_step, start_state

COUNT = 11


def patch_set(steps):
    generator = torch.Generator().manual_seed(0)
    starts = {0: 1.0, 1: 0.43, 2: 0.66, 4: 0.9}
    return PatchSet(
        condition=torch.randn(COUNT, 12, 16, 16, generator=generator),
        start=torch.tensor([starts[count] for count in steps]),
        steps=torch.tensor(steps),
        seed=torch.full((COUNT,), 5),
        row=torch.arange(COUNT) // 4,
        col=torch.arange(COUNT) % 4,
    )


GROUPINGS = {
    "all simple": [1] * COUNT,
    "all hard": [4] * COUNT,
    "mixed": [4, 0, 2, 1, 1, 0, 4, 2, 1, 0, 4],
    "no steps": [0] * COUNT,
}


def run(pipeline, patches, **options):
    options = {"shortcut": "bridge", "sizes": (1, 2, 4), **options}
    with torch.inference_mode():
        return sample_patches(pipeline.patch_dit, pipeline.make_prompt, patches, **options)


@torch.inference_mode()
def one_by_one(pipeline, patches, shortcut):
    """The plain reference: each patch alone, one step after the other."""
    dit, results = pipeline.patch_dit, []
    for i in range(len(patches.start)):
        y, start, count = patches.condition[i : i + 1, :4], patches.start[i : i + 1], int(patches.steps[i])
        if count == 0:
            results.append(y)
            continue
        condition = dit.condition_tokens(patches.condition[i : i + 1])
        prompt = dit.prompt_cache(pipeline.make_prompt(y))
        place = (part[i : i + 1] for part in (patches.seed, patches.row, patches.col))
        state = start_state(y, patch_noise(*place, (4, 16, 16)), start)
        for step in range(count):
            timestep, following = start * (count - step) / count, start * (count - step - 1) / count
            x = dit(state, y, condition, prompt, timestep, start)
            state = solver_step(state, x, y, timestep, following, start, shortcut)
        results.append(state)
    return torch.cat(results)


def test_prompts_become_keys_and_values_once_a_patch(pipeline):
    """Whatever the number of steps: each patch searches, and is projected by each cross-attention, once."""
    searched, projected = [], []
    crossing = [block.cross for block in pipeline.patch_dit.blocks if block.cross is not None]
    hooks = [pipeline.texture_encoder.register_forward_hook(lambda _, inputs, out: searched.append(len(out)))]
    for cross in crossing:
        projection = cross.attention.to_key_value
        hooks.append(projection.register_forward_hook(lambda _, inputs, out: projected.append(len(out))))
    patches = patch_set(GROUPINGS["mixed"])
    run(pipeline, patches, sizes=(1,))
    for hook in hooks:
        hook.remove()
    moving = int((patches.steps > 0).sum())
    assert sum(searched) == moving
    assert sum(projected) == moving * len(crossing)


@pytest.mark.parametrize("shortcut", ["bridge", "plain"])
@pytest.mark.parametrize("steps", GROUPINGS.values(), ids=GROUPINGS.keys())
def test_the_packed_loop_equals_each_patch_alone(pipeline, steps, shortcut):
    patches = patch_set(steps)
    packed = run(pipeline, patches, shortcut=shortcut)
    torch.testing.assert_close(packed, one_by_one(pipeline, patches, shortcut), atol=1e-4, rtol=0)


def test_sampling_changes_what_has_steps_and_nothing_else(pipeline):
    patches = patch_set(GROUPINGS["mixed"])
    moved = (run(pipeline, patches) - patches.condition[:, :4]).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert moved.tolist() == [count > 0 for count in GROUPINGS["mixed"]]


@pytest.mark.parametrize(
    "options", [{"sizes": (1,)}, {"sizes": (16, 64)}, {"sizes": range(1, 4), "pack_size": 5}]
)
def test_batches_and_packs_do_not_matter(pipeline, options):
    patches = patch_set(GROUPINGS["mixed"])
    torch.testing.assert_close(run(pipeline, patches, **options), run(pipeline, patches), atol=1e-5, rtol=0)


def test_fixed_shapes_give_equal_bits_in_any_company(pipeline):
    patches = patch_set(GROUPINGS["mixed"])
    together = run(pipeline, patches, sizes=(4,))
    for chosen in ([0], [3, 10], [6, 2, 9, 4, 7]):
        index = torch.tensor(chosen)
        assert torch.equal(run(pipeline, patches[index], sizes=(4,)), together[index])


@given(st.integers(1, 2000), st.sampled_from([(16, 32, 64, 128, 256), (32,), (1, 2, 4), range(1, 33)]))
def test_batches_cover_the_rows_with_little_to_spare(count, sizes):
    batches = cut_into_batches(count, sizes)
    assert {len(batch) for batch in batches} <= set(sizes)
    assert [row for batch in batches for row in batch] == list(range(batches[-1].stop))
    spare = batches[-1].stop - count
    assert 0 <= spare < max(sizes[0], len(batches[-1]) / 4 if len(sizes) > 1 else 0)
    assert batches[-1].stop <= cut_into_batches(count + 1, sizes)[-1].stop, (
        "fewer rows fit into the same pack"
    )


def test_progress_counts_every_evaluation(pipeline):
    seen = []
    run(pipeline, patch_set(GROUPINGS["mixed"]), on_step=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sum(GROUPINGS["mixed"])


def test_work_is_halved_until_it_fits():
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return rows * 2

    assert halve_on_out_of_memory(work, torch.arange(10)).tolist() == [2 * i for i in range(10)]
    assert max(sizes[-1], sizes[-2]) <= 3
    with pytest.raises(torch.OutOfMemoryError):
        halve_on_out_of_memory(lambda rows: work(torch.arange(9)), torch.arange(1))
