import pytest
import torch
from PIL import Image

from patchscaler.batch import CallOptions, run_jobs
from patchscaler.imaging.io import OutputOptions
from patchscaler.jobs import Job
from patchscaler.runtime.runner import Runner


@pytest.fixture
def jobs(tmp_path):
    """Three photographs of one size."""
    made = []
    for number in range(3):
        source = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 16), (90, 50 * number, 30)).save(source)
        made.append(Job(source, tmp_path / f"large-{number}.png", None, (20, 16), (80, 64)))
    return made


def test_a_record_tells_what_capturing_took_where_it_fell(make_pipeline, jobs):
    pipeline = make_pipeline()
    pipeline.runner = Runner(torch.device("cpu"), capture=lambda function, inputs: function)
    outcomes = list(run_jobs(jobs, [lambda: pipeline], CallOptions(), OutputOptions()))
    records = {outcome.job.source: outcome.record for outcome in outcomes}
    first, second, third = (records[job.source]["start_up"] for job in jobs)
    assert first == third == {}, "a shape is captured when it comes again, once"
    assert list(second) == ["capture"]
    assert second["capture"] >= 0


@pytest.mark.parametrize("limit", [None, 2**40])
def test_a_result_waits_in_memory_unless_that_is_limited(pipeline, jobs, tmp_path, limit):
    waiting = []
    (outcome,) = run_jobs(
        jobs[:1],
        [lambda: pipeline],
        CallOptions(memory_limit=limit),
        OutputOptions(),
        progress=lambda state: waiting.extend(tmp_path.glob(".patchscaler-*.part")),
    )
    assert outcome.error is None
    assert jobs[0].output.exists()
    assert bool(waiting) == (limit is not None)
    assert not list(tmp_path.glob(".patchscaler-*"))
