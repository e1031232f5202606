"""What a GPU's graphs are kept for, with graphs that a CPU can make: traces of the tensor operations."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from patchscaler.runtime.runner import Runner, _cause
from patchscaler.sampling.grouping import Plan

CPU = torch.device("cpu")
ONES = torch.ones(2, 3)


class Traces:
    """Traces functions; like a CUDA graph, a trace fails where a function looks at a value on the host."""

    def __init__(self):
        self.made = []

    def __call__(self, function, inputs):
        trace = make_fx(function)(*(x.clone() for x in inputs))
        self.made.append(function)
        return trace


def double(x):
    return (2 * x,)


@pytest.fixture
def traces():
    return Traces()


@pytest.fixture
def runner(traces):
    return Runner(CPU, capture=traces, most=3)


def test_the_second_call_of_a_shape_is_captured_and_the_third_replays(runner, traces):
    for count, made in ((1, 0), (2, 1), (3, 1), (4, 1)):
        assert torch.equal(runner("double", double, count * ONES)[0], 2 * count * ONES)
        assert len(traces.made) == made
    assert runner.seconds["capture"] > 0


def test_names_shapes_and_types_have_graphs_of_their_own(runner, traces):
    calls = [("a", ONES), ("b", ONES), ("a", torch.ones(3, 2)), ("a", ONES.double())]
    for name, x in calls:
        assert runner(name, double, x)[0].dtype == x.dtype
    assert traces.made == []


def test_what_was_not_used_for_longest_is_forgotten(runner, traces):
    for name in ("a", "a", "b", "c", "a", "d"):  # d drives out b
        runner(name, double, ONES)
    assert len(traces.made) == 1
    for name in ("a", "c", "d"):
        runner(name, double, ONES)
    assert len(traces.made) == 3
    runner("b", double, ONES)
    assert len(traces.made) == 3


def test_nothing_is_captured_that_is_not_worth_it(runner, traces):
    for _ in range(3):
        runner("double", double, ONES, repeats=False)
    assert traces.made == []


def test_what_cannot_be_captured_runs_as_it_is(runner, traces):
    def looks(x):
        return (x + 1 if bool(x.sum() > 0) else x - 1,)

    for sign in (1, -1, 1, -1):
        assert torch.equal(runner("looks", looks, sign * ONES)[0], 2 * sign * ONES)
    assert traces.made == []


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("no compiler found\n\nSet TORCH_LOGS", "no compiler found"),
        (
            "An exception occurred in a subprocess:\n\nTraceback (most recent call last):\n  File x\n"
            "triton.compiler.errors.CompilationError: at 3:4: bad type\n\nSet TORCH_LOGS",
            "triton.compiler.errors.CompilationError: at 3:4: bad type",
        ),
    ],
)
def test_a_compiler_that_fails_is_quoted_where_it_says_why(message, cause):
    assert _cause(RuntimeError(message)) == cause


def test_without_graphs_everything_runs_as_it_is():
    runner = Runner(CPU)
    assert all(torch.equal(runner("double", double, ONES)[0], 2 * ONES) for _ in range(3))
    assert runner.seconds == {"compile": 0, "capture": 0}


@pytest.mark.parametrize("forget", [Runner.clear, lambda runner: runner.reset(CPU)], ids=["clear", "reset"])
def test_graphs_can_be_forgotten(runner, traces, forget):
    for _ in range(2):
        runner("double", double, ONES)
        runner("double", double, ONES)
        forget(runner)
    assert len(traces.made) == 2


def test_graphs_give_way_when_memory_runs_out(runner, traces):
    full = True

    def greedy(x):
        if full and traces.made:
            release()
            raise torch.OutOfMemoryError
        return double(x)

    def release():
        nonlocal full
        full = False

    runner("double", double, ONES)
    runner("double", double, ONES)
    assert torch.equal(runner("greedy", greedy, ONES)[0], 2 * ONES)
    runner("double", double, ONES)
    assert len(traces.made) == 1, "its graph was given up"


def test_running_out_of_memory_without_graphs_is_told(runner):
    def greedy(x):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        runner("greedy", greedy, ONES)


def test_threads_may_share_graphs_and_get_what_they_get_without(make_pipeline, photo, traces):
    pipeline, plan = make_pipeline(), Plan.uniform(0.9, 2)
    images = [photo[:, i : i + 64, i : i + 64] for i in range(6)]
    expected = [pipeline(image, plan=plan, seed=seed).image for seed, image in enumerate(images)]
    pipeline.runner = Runner(CPU, capture=traces)
    with ThreadPoolExecutor(3) as pool:
        results = list(
            pool.map(lambda job: pipeline(job[1], plan=plan, seed=job[0]).image, enumerate(images))
        )
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert len(traces.made) == 5, "encode, restore, prepare, step, decode"


def test_deterministic_calls_and_those_with_a_limit_use_no_graphs(make_pipeline, photo, traces):
    pipeline = make_pipeline()
    pipeline.runner = Runner(CPU, capture=traces)
    for options in ({"deterministic": True}, {"memory_limit": 2**40}):
        first, again = (pipeline(photo, plan=Plan.uniform(0.9, 1), **options).image for _ in range(2))
        assert torch.equal(first, again)
    assert traces.made == []
