"""A service over a real socket, with a tiny model."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from patchscaler import PatchScalerPipeline, Plan
from patchscaler import Path as ShortcutPath
from patchscaler.service.app import create_app
from patchscaler.service.limits import Limits
from patchscaler.service.metrics import Metrics
from patchscaler.service.server import Server
from patchscaler.service.upscaler import Upscaler


class Gate:
    """A pipeline whose calls wait until the gate is open, and fail if told to."""

    def __init__(self, pipeline: PatchScalerPipeline) -> None:
        self.pipeline, self.open = pipeline, threading.Event()
        self.open.set()
        self.calls: list[int] = []
        self.failing: Callable[[list[np.ndarray]], bool] = lambda images: False

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, images, *, progress, **options):
        self.calls.append(len(images))

        def watch(state):
            progress(state)
            while not self.open.wait(0.02):
                progress(state)

        if self.failing(images):
            raise RuntimeError("the device is on fire")
        return self.pipeline(images, progress=watch, **options)


class Served:
    """A running service: `client` talks to it, `gate` holds it up, `stop` sends it the first signal."""

    def __init__(self, gate: Gate, upscaler: Upscaler, server: Server, thread, client) -> None:
        self.gate, self.upscaler, self.server, self.thread, self.client = (
            gate,
            upscaler,
            server,
            thread,
            client,
        )

    def stop(self) -> None:
        self.server.handle_exit(15, None)

    def post(self, image: bytes, **options):
        return self.client.post(
            "/v1/upscale", params=options, content=image, headers={"Content-Type": "image/png"}
        )

    def post_job(self, image: bytes, **options) -> str:
        reply = self.post(image, **options, **{"async": 1})
        assert reply.status_code == 202, reply.text
        assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"
        return reply.json()["id"]

    def wait(self, job: str, *states: str) -> dict:
        seen = {}
        end = time.monotonic() + 60
        while time.monotonic() < end:
            seen = self.client.get(f"/v1/jobs/{job}").json()
            if seen["state"] in (states or ("done", "failed", "cancelled")):
                return seen
            time.sleep(0.02)
        raise AssertionError(f"still {seen}")

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@pytest.fixture(name="Gate", scope="session")
def gate_class() -> type[Gate]:
    return Gate


@pytest.fixture(scope="session")
def served_pipeline(make_pipeline) -> PatchScalerPipeline:
    pipeline = make_pipeline()
    paths = (ShortcutPath(0.43, 0), ShortcutPath(0.66, 1), ShortcutPath(0.9, 2))
    pipeline.plans = {
        "fast": Plan.restoration_only(), "balanced": Plan((0.55, 0.45), paths), "best": Plan.uniform(0.9, 3)
    }  # fmt: skip
    return pipeline


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, served_pipeline) -> Path:
    folder = tmp_path_factory.mktemp("model")
    served_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder) -> PatchScalerPipeline:
    """As the command line loads it: the saved weights are in half precision."""
    return PatchScalerPipeline.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="session")
def serve(loaded) -> Callable[..., AbstractContextManager[Served]]:
    @contextlib.contextmanager
    def run(limits: Limits | None = None, token: str | None = None, grace: float = 0) -> Iterator[Served]:
        gate = Gate(loaded)
        metrics = Metrics()
        upscaler = Upscaler(lambda: gate, limits, metrics)
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(upscaler, metrics, token), log_level="warning")
        server = Server(config, upscaler, grace)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=60) as client:
            while not (server.started and upscaler.is_ready):
                time.sleep(0.01)
            try:
                yield Served(gate, upscaler, server, thread, client)
            finally:
                gate.open.set()
                server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not upscaler.folder.exists()

    return run


@pytest.fixture(scope="session")
def shared(serve) -> Iterator[Served]:
    """A service for tests that change nothing in it."""
    with serve() as served:
        yield served


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    def make(seed: int = 0, width: int = 24, height: int = 16, mode: str = "RGB") -> bytes:
        """A small random picture as PNG."""
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse.squeeze()).resize((width, height)).save(file, "PNG")
        return file.getvalue()

    return make
