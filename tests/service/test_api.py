import concurrent.futures
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from patchscaler.cli import app as command_line
from patchscaler.service.limits import Limits

PNG = {"Content-Type": "image/png"}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.fixture
def upscale(model_folder, tmp_path):
    """The same on the command line."""

    def run(image: bytes, *words: str, suffix: str = ".png", to: str = ".png") -> bytes:
        source, target = tmp_path / f"in{suffix}", tmp_path / f"out{to}"
        source.write_bytes(image)
        options = ["--model", str(model_folder), "--device", "cpu", "--overwrite", *words]
        result = CliRunner().invoke(command_line, ["upscale", str(source), "-o", str(target), *options])
        assert result.exit_code == 0, result.output
        return target.read_bytes()

    return run


def photo_with_everything() -> bytes:
    """A JPEG with EXIF (turned on its side), a colour profile and a resolution."""
    from PIL import ImageCms

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(file, "JPEG", exif=exif, icc_profile=profile, dpi=(300, 300), quality=90)
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "words", "to"),
    [
        ({}, (), ".png"),
        ({"quality": "best", "seed": 7}, ("--quality", "best", "--seed", "7"), ".png"),
        ({"budget": 0.5}, ("--budget", "0.5"), ".png"),
        ({"scale": 1.5, "texture": 0}, ("--scale", "1.5", "--no-texture"), ".png"),
        ({"fit": "60x60", "format": "webp"}, ("--fit", "60x60"), ".webp"),
        ({"width": 50, "height": 40, "format": "jpg", "jpeg_quality": 60},
         ("--width", "50", "--height", "40", "--jpeg-quality", "60"), ".jpg"),
        ({"deterministic": 1, "strip": 1, "format": "tif"}, ("--deterministic", "--strip"), ".tif"),
    ],
)  # fmt: skip
def test_the_answer_is_what_the_command_line_writes(shared, upscale, png, options, words, to):
    image = png(3, 40, 24)
    reply = shared.post(image, **options)
    assert reply.status_code == 200, reply.text
    assert reply.content == upscale(image, *words, to=to)
    record = json.loads(reply.headers["x-patchscaler-record"])
    assert record["input_size"] == [40, 24]
    assert record["output_size"] == list(Image.open(io.BytesIO(reply.content)).size)
    assert not shared.upscaler.jobs, "a result that was sent is not kept"


def test_depth_transparency_profile_and_metadata_are_kept_as_by_the_command_line(shared, upscale, png):
    jpeg = photo_with_everything()
    reply = shared.client.post("/v1/upscale", content=jpeg, headers={"Content-Type": "image/jpeg"})
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.content == upscale(jpeg, suffix=".jpg", to=".jpg")
    assert Image.open(io.BytesIO(reply.content)).getexif()[0x010F] == "A camera"
    transparent = png(4, mode="RGBA")
    assert shared.post(transparent).content == upscale(transparent)
    wide = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 65536, (16, 16), dtype=np.uint16)).save(wide, "PNG")
    reply = shared.post(wide.getvalue())
    assert reply.content == upscale(wide.getvalue())
    assert np.asarray(Image.open(io.BytesIO(reply.content))).dtype in (np.uint16, np.int32)


def test_a_form_may_hold_image_and_options(shared, png):
    image = png(5)
    form = {"files": {"image": ("../../etc/passwd", image, "image/png")}, "data": {"seed": "3"}}
    reply = shared.client.post("/v1/upscale", params={"quality": "best"}, **form)
    assert reply.status_code == 200, reply.text
    assert reply.content == shared.post(image, quality="best", seed=3).content
    assert 'filename="upscaled.png"' in reply.headers["content-disposition"]
    twice = shared.client.post("/v1/upscale", params={"seed": 3}, **form)
    assert (twice.status_code, twice.json()["detail"]) == (422, "seed is in the query and in the form")
    absent = shared.client.post("/v1/upscale", files={"picture": ("a.png", image, "image/png")})
    assert (absent.status_code, absent.json()["detail"]) == (422, "the form has no file named image")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"quality": "perfect"}, "quality"),
        ({"scale": 9}, "scale"),
        ({"scale": 2, "width": 10}, "not several"),
        ({"seed": -1}, "seed"),
        ({"budget": -1}, "budget"),
        ({"fit": "big"}, "fit"),
        ({"nonsense": 1}, "nonsense"),
        ({"format": "../png"}, "format"),
    ],
)
def test_wrong_options_are_refused_in_one_line(shared, png, options, reason):
    reply = shared.post(png(), **options)
    assert reply.status_code == 422
    assert reason in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged"),
        (None, "damaged"),
    ],
)
def test_what_is_no_whole_image_is_refused_without_our_file_names(shared, png, body, reason):
    body = png(0, 60, 60)[:-300] if body is None else body
    reply = shared.post(body)
    assert reply.status_code == 422, reply.text
    assert reason in reply.json()["detail"]
    assert str(shared.upscaler.folder) not in reply.text
    assert not list(shared.upscaler.folder.iterdir()), "nothing is left of it"


def test_another_kind_of_body_is_refused(shared):
    reply = shared.client.post("/v1/upscale", content=b"x", headers={"Content-Type": "text/plain"})
    assert reply.status_code == 415


def test_sizes_are_bounded(serve, png):
    with serve(Limits(upload_bytes=2**13, pixels=1000, output_pixels=10_000)) as served:
        big = os.urandom(10_000)
        assert served.post(big).status_code == 413
        assert served.client.post("/v1/upscale", files={"image": ("a", big)}).status_code == 413
        pieces = served.client.post("/v1/upscale", content=(big[:1000] for _ in range(10)), headers=PNG)
        assert (pieces.status_code, pieces.json()["detail"]) == (
            413,
            "the upload is too large; at most 0.00781 MiB",
        )
        many = served.post(png(0, 40, 40))
        assert (many.status_code, many.json()["detail"]) == (
            413,
            "40x40 is too large; at most 0.001 megapixels",
        )
        assert served.post(png(0, 24, 24), scale=8).status_code == 413
        assert served.post(png(0, 24, 24)).status_code == 200
        assert not list(served.upscaler.folder.iterdir())


def test_a_slow_upload_is_given_up_and_takes_its_place_no_longer(serve, png):
    with serve(Limits(upload_seconds=0.5, waiting=1)) as served:
        host, port = served.client.base_url.host, served.client.base_url.port
        with socket.create_connection((host, port)) as line:
            line.sendall(
                b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
            )
            while not served.server.config.app.state.uploads:
                time.sleep(0.01)
            refused = served.post(png())
            assert (refused.status_code, "1 uploads" in refused.text) == (429, True)
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        assert served.post(png()).status_code == 200


def test_requests_that_wait_are_sampled_together_and_equal_single_ones(serve, png):
    images = [png(seed, 24 + seed, 16 + 8 * seed) for seed in range(5)]
    options = [{"seed": n, "quality": ("fast", "balanced", "best")[n % 3]} for n in range(5)]
    with serve() as served:
        alone = [served.post(image, **own).content for image, own in zip(images, options, strict=True)]
        served.gate.open.clear()
        first = served.post_job(png(9))
        served.wait(first, "running")
        jobs = [served.post_job(image, **own) for image, own in zip(images, options, strict=True)]
        other = served.post_job(png(8), texture=0)
        assert served.wait(jobs[2], "waiting")["position"] == 2
        served.gate.open.set()
        for job, expected in zip(jobs, alone, strict=True):
            assert served.wait(job)["state"] == "done"
            together = served.client.get(f"/v1/jobs/{job}/result").content
            assert abs(pixels(together) - pixels(expected)).max() <= 1
        assert served.wait(other)["state"] == "done"
        assert served.gate.calls == [1] * 5 + [1, 5, 1]
        assert served.metric("patchscaler_batch_jobs_count") == 8


def test_a_job_is_followed_fetched_and_deleted(shared, png):
    job = shared.post_job(png(6), map=1, scale=2)
    with shared.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = "".join(stream.iter_text()).strip().split("\n\n")
    name, data = events[-1].split("\n")
    assert name == "event: done"
    assert json.loads(data.removeprefix("data: "))["record"]["output_size"] == [48, 32]
    assert all(event.startswith("event: progress\n") for event in events[:-1])
    result = shared.client.get(f"/v1/jobs/{job}/result")
    assert result.content == shared.post(png(6), scale=2).content
    chart = shared.client.get(f"/v1/jobs/{job}/map")
    assert Image.open(io.BytesIO(chart.content)).size[0] >= 384
    assert shared.client.delete(f"/v1/jobs/{job}").status_code == 204
    for path in ("", "/result", "/map", "/events"):
        assert shared.client.get(f"/v1/jobs/{job}{path}").status_code == 404
    assert shared.client.get("/v1/jobs/..%2F..%2Fetc/result").status_code == 404
    plain = shared.post_job(png(6))
    assert shared.client.get(f"/v1/jobs/{plain}/map").status_code == 404
    shared.client.delete(f"/v1/jobs/{plain}")


def test_events_tell_of_every_stage(serve, png):
    with serve() as served:
        served.gate.open.clear()
        job = served.post_job(png())
        with served.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: progress"
            while '"stage":"encode"' not in next(lines):
                pass
            served.gate.open.set()
            assert '"state":"done"' in "".join(lines)


def test_over_the_queue_is_429_with_a_time_to_come_back(serve, png):
    with serve(Limits(waiting=2, kept=4)) as served:
        served.gate.open.clear()
        running = served.post_job(png())
        served.wait(running, "running")
        waiting = [served.post_job(png(seed)) for seed in range(2)]
        reply = served.post(png())
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert "2 jobs are waiting" in reply.json()["detail"]
        served.gate.open.set()
        for job in (running, *waiting):
            assert served.wait(job)["state"] == "done", "what was accepted is done"
        served.wait(served.post_job(png()))
        full = served.post(png())
        assert (full.status_code, "4 results are kept" in full.text) == (429, True)
        served.client.delete(f"/v1/jobs/{running}")
        assert served.post(png()).status_code == 200


def test_cancelling_frees_the_work_and_spares_the_others(serve, png):
    with serve() as served:
        served.gate.open.clear()
        alone = served.post_job(png())
        served.wait(alone, "running")
        mates = [served.post_job(png(seed)) for seed in range(3)]
        assert served.client.delete(f"/v1/jobs/{alone}").status_code == 204  # the gate is still shut
        for mate in mates:
            served.wait(mate, "running")
        served.client.delete(f"/v1/jobs/{mates[0]}")
        served.gate.open.set()
        for seed in (1, 2):
            assert served.wait(mates[seed])["state"] == "done"
            result = served.client.get(f"/v1/jobs/{mates[seed]}/result").content
            assert abs(pixels(result) - pixels(served.post(png(seed)).content)).max() <= 1
        assert served.metric("patchscaler_jobs_ended_total") == 6
        assert len(list(served.upscaler.folder.iterdir())) == 2, "the files of what was cancelled are gone"


def test_a_client_that_leaves_cancels_its_request(serve, png):
    with serve() as served:
        served.gate.open.clear()
        with pytest.raises(httpx.ReadTimeout):
            served.client.post("/v1/upscale", content=png(), headers=PNG, timeout=0.3)
        end = time.monotonic() + 20
        while served.upscaler.jobs:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert served.post_job(png())


def test_a_job_past_its_time_fails_and_the_next_one_goes_on(serve, png):
    with serve(Limits(job_seconds=0.5)) as served:
        served.gate.open.clear()
        late = served.post(png())
        assert late.status_code == 504
        assert "0.5 s" in late.json()["detail"]
        served.gate.open.set()
        assert served.post(png()).status_code == 200


def test_results_nobody_fetches_are_forgotten(serve, png):
    with serve(Limits(keep_seconds=0.2)) as served:
        job = served.post_job(png())
        end = time.monotonic() + 20
        while served.client.get(f"/v1/jobs/{job}").status_code != 404 or list(
            served.upscaler.folder.iterdir()
        ):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_failed_call_is_tried_again_for_each_job_alone(serve, png):
    bad = png(99, 40, 40)
    with serve() as served:
        served.gate.failing = lambda images: any(image.shape[:2] == (40, 40) for image in images)
        served.gate.open.clear()
        first = served.post_job(png())
        served.wait(first, "running")
        jobs = [served.post_job(png(1)), served.post_job(bad), served.post_job(png(2))]
        served.gate.open.set()
        ends = [served.wait(job) for job in jobs]
        assert [end["state"] for end in ends] == ["done", "failed", "done"]
        assert "on fire" in ends[1]["error"]
        assert served.client.get(f"/v1/jobs/{jobs[1]}/result").status_code == 500
        assert served.gate.calls == [1, 3, 1, 1, 1]
        assert served.metric("patchscaler_call_failures_total") == 2
        assert served.post(png()).status_code == 200


def test_shutdown_finishes_what_was_accepted_and_lets_it_be_fetched(serve, png):
    with serve(grace=20) as served, concurrent.futures.ThreadPoolExecutor() as pool:
        served.gate.open.clear()
        running = served.post_job(png())
        served.wait(running, "running")
        waiting = served.post_job(png(1))
        direct = pool.submit(served.post, png(2))
        while len(served.upscaler.queue) < 2:
            time.sleep(0.01)
        served.stop()
        refused = served.post(png())
        assert (refused.status_code, refused.json()["detail"]) == (503, "the service is shutting down")
        assert served.client.get("/readyz").status_code == 503
        assert served.client.get("/healthz").status_code == 200
        served.gate.open.set()
        assert direct.result().status_code == 200
        for job in (running, waiting):
            assert served.wait(job)["state"] == "done"
            assert served.client.get(f"/v1/jobs/{job}/result").status_code == 200
            served.client.delete(f"/v1/jobs/{job}")
        served.thread.join(20)
        assert not served.thread.is_alive(), "it ends when everything was fetched, before its grace is over"


def test_a_token_is_asked_for(serve, png):
    with serve(token="a secret") as served:
        for path in ("/v1/jobs/x", "/metrics"):
            reply = served.client.get(path)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert served.post(png()).status_code == 401
        assert served.client.get("/healthz").status_code == served.client.get("/readyz").status_code == 200
        served.client.headers["Authorization"] = "Bearer wrong"
        assert served.post(png()).status_code == 401
        served.client.headers["Authorization"] = "Bearer a secret"
        assert served.post(png()).status_code == 200


def test_metrics_are_for_prometheus(shared, png):
    shared.post(png())
    text = shared.client.get("/metrics").text
    assert 'patchscaler_requests_total{method="POST",route="/v1/upscale",status="200"}' in text
    assert 'patchscaler_stage_seconds_count{stage="sample"}' in text
    assert shared.metric("patchscaler_jobs_waiting") == 0


def test_the_command_serves_on_localhost_and_ends_with_a_signal(model_folder, png):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--port", str(port), "--model", str(model_folder), "--device", "cpu", "--grace", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "patchscaler", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                time.sleep(0.05)
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, process.stderr.read()
            assert client.post("/v1/upscale", content=png(), headers=PNG).status_code == 200
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=30)[1]
        assert process.returncode == 0
        assert f"http://127.0.0.1:{port}" in log


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--port", str(port), "--model", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(command_line, words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("patchscaler: ")
