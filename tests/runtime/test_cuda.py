"""What holds on a GPU alone; skipped without one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from patchscaler.runtime.runner import CudaCapture
from patchscaler.sampling.grouping import Path, Plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
LEVEL = 1 / 255
PLAN = Plan.uniform(0.9, 2)


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


def test_deterministic_results_are_the_same_to_the_bit(on_gpu, images):
    plan = Plan((0.5,), (Path(0.6, 1), Path(0.9, 2)))
    alone = [on_gpu(image, plan=plan, deterministic=True).image for image in images]
    for image in images:
        on_gpu(image, plan=plan)  # graphs come up in the meantime
    together = on_gpu(images[::-1], plan=plan, deterministic=True)[::-1]
    for one, result in zip(alone, together, strict=True):
        assert torch.equal(one, result.image)


def test_the_cpu_agrees(on_gpu, make_pipeline, images):
    expected = make_pipeline()(images[0].cpu(), plan=PLAN).image
    assert float((on_gpu(images[0], plan=PLAN).image.cpu() - expected).abs().mean()) <= LEVEL


def test_a_function_that_looks_at_values_is_refused():
    capture = CudaCapture(torch.device("cuda"))
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        capture(lambda x: (x * float(x.sum()),), (x,))
    assert torch.equal(capture(lambda x: (x + 1,), (x,))(2 * x)[0], 3 * x)
