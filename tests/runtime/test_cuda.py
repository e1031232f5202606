"""What holds on a GPU alone; skipped without one."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from patchscaler.evaluation import ablation
from patchscaler.imaging.tensors import levels
from patchscaler.models.blocks import FeedForward, PointwiseConv
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.runtime.runner import CudaCapture, Runner, run_plainly
from patchscaler.sampling.engine import PatchSet, prepare_batch, sample_patches, step_batch
from patchscaler.sampling.grouping import Path, Plan, patch_quality
from patchscaler.sampling.patches import fold, unfold
from patchscaler.stages import batch_sizes, condition_part, decode_part, encode_part

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
LEVEL = 1 / 255
PLAN = Plan.uniform(0.9, 2)
PHOTO = FilePath(__file__).parents[2] / "examples" / "shop-front.png"


@pytest.fixture
def on_gpu(make_pipeline):
    return make_pipeline().to("cuda", torch.float16)


@pytest.fixture
def images(photo):
    return [photo[:, i : i + 64, 2 * i : 2 * i + 64].cuda() for i in range(6)]


def no_graphs(pipeline, image, **options):
    return pipeline(image, memory_limit=2**50, **options).image


def test_graphs_give_what_kernels_give(on_gpu, images):
    expected = [no_graphs(on_gpu, image, plan=PLAN, seed=seed) for seed, image in enumerate(images)]
    for _ in range(2):
        for seed, image in enumerate(images):
            result = on_gpu(image, plan=PLAN, seed=seed).image
            assert float((result - expected[seed]).abs().max()) <= LEVEL
    assert sum(graph is not None for graph in on_gpu.runner._graphs.values()) == 5
    assert on_gpu.runner.seconds["capture"] > 0


def test_graphs_are_captured_again_after_they_were_given_up(on_gpu, images):
    expected = no_graphs(on_gpu, images[0], plan=PLAN)
    for _ in range(3):
        for _ in range(3):
            assert float((on_gpu(images[0], plan=PLAN).image - expected).abs().max()) <= LEVEL
        assert len(on_gpu.runner._capture.graphs) == 5
        on_gpu.runner.clear()


def test_threads_and_streams_may_share_graphs(on_gpu, images):
    expected = [no_graphs(on_gpu, image, plan=PLAN, seed=seed) for seed, image in enumerate(images)]

    def work(seed):
        stream = torch.cuda.Stream() if seed % 2 else torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            return on_gpu(images[seed % 6], plan=PLAN, seed=seed % 6).image.cpu()

    with ThreadPoolExecutor(4) as pool:
        for seed, result in enumerate(pool.map(work, range(24))):
            assert float((result - expected[seed % 6].cpu()).abs().max()) <= LEVEL


def test_compiled_code_gives_what_kernels_give(on_gpu, images):
    expected = no_graphs(on_gpu, images[0], plan=PLAN)
    on_gpu.runner = Runner(on_gpu.device, compile=True)
    for _ in range(3):
        assert float((on_gpu(images[0], plan=PLAN).image - expected).abs().max()) <= LEVEL
    assert on_gpu.runner.seconds["compile"] > 0


@torch.inference_mode()
def test_each_part_compiled_is_as_near_to_float32_as_it_is_uncompiled(on_gpu, make_pipeline, photo):
    """One by one: in the sum of all a part that is wrong in a few places could pass."""
    exact, compiled = make_pipeline().to("cuda", torch.float32), Runner(on_gpu.device, compile=True)
    compiled_parts = set()

    def error(values, truth):
        return float((values.float() - truth.float()).norm() / truth.float().norm().clamp(min=1e-6))

    def agreed(name, part, *inputs):
        truth = part(exact)(*(x.float() if x.is_floating_point() else x for x in inputs))
        plain, ran = part(on_gpu)(*inputs), part(on_gpu)
        for _ in range(3):  # as it is, captured, replayed
            for one, other, value in zip(compiled(name, ran, *inputs), plain, truth, strict=True):
                assert error(one, value) <= 1.5 * error(other, value) + 2e-3, name
        compiled_parts.add(name)
        return plain

    lr = photo[None, :, :64, :64].cuda().half().contiguous(memory_format=torch.channels_last)
    (latent,) = agreed("encode", lambda model: partial(encode_part, model), lr)
    _, condition, _ = agreed("condition", lambda model: partial(condition_part, model), latent, lr)
    patches = unfold(condition, 16, 16)
    count = len(patches)
    start, steps = (torch.full((count,), value, device="cuda") for value in (0.9, 2.0))
    seed, row, col = torch.tensor([[-1] * count, range(count), range(count)], device="cuda")

    def prepare(model):  # which of two alike entries is found may turn on rounding
        return partial(prepare_batch, model.patch_dit, model.null_prompt)

    def prompt(model):
        return lambda *found: (model.texture_encoder(*found),)

    def step(model):
        return partial(step_batch, model.patch_dit, model.sampling.shortcut)

    state, tokens, cache = agreed("prepare", prepare, patches, start, seed, row, col)
    y = patches[:, : on_gpu.patch_dit.latent_channels].contiguous()
    found = on_gpu.texture_memory.search(on_gpu.texture_classifier(y).key, 3)
    agreed("prompt", prompt, found.patches, found.similarity)
    agreed("step", step, cache, steps[0], state, y, tokens, start, steps)
    agreed("decode", lambda model: partial(decode_part, model), latent, lr)
    assert compiled.seconds["compile"] > 0 and len(compiled_parts) == 6


@pytest.mark.parametrize(("tokens", "length"), [(64, None), (48, None), (64, 49), (64, 1), (16, 97)])
@torch.inference_mode()
def test_attention_in_one_kernel_gives_what_several_give(tokens, length):
    attend = pytest.importorskip("patchscaler.models.fused_attention").attend
    query, key, value = torch.randn(3, 6, length or tokens, 5, 64, device="cuda", dtype=torch.float16)
    query, scale = query.new_empty(6, tokens, 5, 64).normal_(), torch.rand(64, device="cuda").half() + 0.5
    key_scale = None if length else scale.flip(0)
    mixed = attend(query, key, value, scale, key_scale, 1e-6)
    query = F.rms_norm(query.float(), (64,), scale.float(), 1e-6)
    key = key.float() if key_scale is None else F.rms_norm(key.float(), (64,), key_scale.float(), 1e-6)
    heads = (part.float().transpose(1, 2) for part in (query, key, value))
    expected = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed.float(), expected, atol=4e-3, rtol=4e-3)


@torch.inference_mode()
def test_layers_that_add_their_bias_and_gelu_in_the_product_give_what_several_kernels_give():
    torch.manual_seed(0)
    maps = torch.randn(2, 24, 9, 7).contiguous(memory_format=torch.channels_last)
    for layer, values in ((PointwiseConv(24, 40), maps), (FeedForward(64), torch.randn(3, 10, 64))):
        expected = layer(values)
        result = layer.cuda().half()(values.cuda().half())
        torch.testing.assert_close(result.float().cpu(), expected, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_come_to_the_host_as_they_are(dtype):
    pixels = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    for _ in range(3):  # into the same memory
        assert np.array_equal(levels(pixels.cuda(), dtype), levels(pixels, dtype))


def test_deterministic_results_are_the_same_to_the_bit(on_gpu, images):
    plan = Plan((0.5,), (Path(0.6, 1), Path(0.9, 2)))
    alone = [on_gpu(image, plan=plan, deterministic=True).image for image in images]
    for image in images:
        on_gpu(image, plan=plan)  # graphs come up in the meantime
    together = on_gpu(images[::-1], plan=plan, deterministic=True)[::-1]
    for one, result in zip(alone, together, strict=True):
        assert torch.equal(one, result.image)


@pytest.mark.parametrize("graphs", [False, True])
@torch.inference_mode()
def test_a_warm_sampling_loop_never_waits_for_the_device(on_gpu, graphs):
    dit, count = on_gpu.patch_dit, 40
    channels = dit.config["latent_channels"] + dit.config["stem_channels"]
    patches = PatchSet(
        condition=torch.randn(count, channels, 16, 16, device="cuda", dtype=torch.float16),
        start=torch.full((count,), 0.9, device="cuda"),
        steps=torch.arange(count) % 4,
        seed=torch.zeros(count, dtype=torch.int64, device="cuda"),
        row=torch.arange(count, device="cuda"),
        col=torch.arange(count, device="cuda"),
    )

    def sampled():
        return sample_patches(
            dit,
            on_gpu.make_prompt,
            patches,
            shortcut=on_gpu.sampling.shortcut,
            sizes=batch_sizes(on_gpu.device, False),
            run=on_gpu.runner if graphs else run_plainly,
        )

    expected = [sampled() for _ in range(3)][-1]  # as it is, captured, replayed
    assert (on_gpu.runner.seconds["capture"] > 0) == graphs
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = sampled()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
    moved = (again != patches.condition[:, : dit.latent_channels]).flatten(1).any(dim=1).cpu()
    assert torch.equal(moved, patches.steps > 0)


@torch.inference_mode()
def test_the_packed_loop_samples_the_bundled_weights_as_a_plain_loop_over_groups_does():
    pipeline = PatchScalerPipeline.from_pretrained(device="cuda", dtype="fp16")
    lr = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).permute(2, 0, 1) / 255
    restored = pipeline(lr, plan=Plan.restoration_only())
    quality = patch_quality(torch.from_numpy(restored.confidence)[None, None], 16, 16).sort().values
    cuts = tuple(float(quality[i - 1] + quality[i]) / 2 for i in (10, 5))
    plan = Plan(cuts, (Path(1.0, 0), Path(0.66, 1), Path(0.9, 3)))
    no_truth = torch.zeros(3, 512, 512)
    scene, (height, width) = ablation._scene(pipeline, lr, no_truth, plan, seed=0, number=0)
    own = ablation.Variant("own", lambda pipeline, scene: pipeline.make_prompt(scene.latent))
    latent = fold(ablation.sample(pipeline, scene, own), height // 16, width // 16, 16)
    expected = pipeline.decode(latent, lr[None])[0].clamp(0, 1).float().cpu()
    for _ in range(3):  # as it is, captured, replayed
        result = pipeline(lr, plan=plan)
        assert result.group_shares(3) == [6 / 16, 5 / 16, 5 / 16]
        assert float((result.image - expected).abs().max()) <= LEVEL
    for other in (*plan.paths[1:], Path(1.0, 0)):
        uniform = pipeline(lr, plan=Plan.uniform(other.timestep, other.steps)).image
        assert float((uniform - expected).abs().max()) > LEVEL, "else this proves nothing"


def test_the_cpu_agrees(on_gpu, make_pipeline, images):
    expected = make_pipeline()(images[0].cpu(), plan=PLAN).image
    assert float((on_gpu(images[0], plan=PLAN).image.cpu() - expected).abs().mean()) <= LEVEL


def test_a_function_that_looks_at_values_is_refused():
    capture = CudaCapture(torch.device("cuda"))
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        capture(lambda x: (x * float(x.sum()),), (x,))
    assert torch.equal(capture(lambda x: (x + 1,), (x,))(2 * x)[0], 3 * x)
