"""Load and faults: many clients at once against the service, over a real socket, in a process of its own.

python benchmarks/serve_load.py [--model FOLDER | --tiny] [--requests 200] [--clients 32] [--device cpu]

Requests of mixed sizes and options; some bodies are broken, some clients cancel, and one call of the pipeline is made
to fail. Every answer is compared with what the command line's code gives for the same image alone. At the end it prints
a Markdown table, and exits with 1 if an accepted job was lost or an image was wrong.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

TOLERANCE = 1  # levels of 255


@dataclass(frozen=True)
class Case:
    """One request: what it sends and what is to come of it."""

    number: int
    kind: str
    body: bytes
    options: dict[str, Any]


class FailingOnce:
    """A pipeline one of whose calls fails, as a device may."""

    def __init__(self, pipeline: Any, call: int) -> None:
        self.pipeline, self.left, self.lock = pipeline, call, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        with self.lock:
            self.left -= 1
        if self.left == 0:
            raise RuntimeError("injected failure")
        return self.pipeline(images, **options)


@dataclass
class Seen:
    """What the clients saw."""

    answers: dict[int, bytes] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    memory: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Serve, load, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="folder; the bundled one if nothing is said")
    parser.add_argument(
        "--tiny", action="store_true", help="an untrained tiny model, to try the script itself"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[16, 32, 48, 64], help="of the images, pixels"
    )
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder)) if arguments.tiny else arguments.model
        cases = make_cases(arguments.requests, arguments.sides)
        spawn = multiprocessing.get_context("spawn")
        mine, theirs = spawn.Pipe()
        child = spawn.Process(
            target=serve, args=(theirs, model, arguments.device, arguments.batch), daemon=True
        )
        child.start()
        seen = load(f"http://127.0.0.1:{mine.recv()}", cases, arguments.clients)
        child.terminate()  # the signal that lets it finish
        child.join()
        expected, sequential, cpu = references(cases, model, arguments.device, Path(folder))
        cold = cold_seconds(cases, model, arguments.device, Path(folder))
    wrong = [n for n, image in expected.items() if n in seen.answers and not same(seen.answers[n], image)]
    missing = [n for n in expected if n not in seen.answers]
    print(
        report(arguments, cases, seen, wrong, missing, len(expected), sequential, cpu, cold, child.exitcode)
    )
    raise SystemExit(bool(wrong or missing or seen.lost))


def serve(pipe: Any, model: str | None, device: str, batch: int) -> None:
    """The service; the fourth call of its pipeline fails."""
    import uvicorn

    from patchscaler import PatchScalerPipeline
    from patchscaler.service.app import create_app
    from patchscaler.service.limits import Limits
    from patchscaler.service.metrics import Metrics
    from patchscaler.service.server import Server
    from patchscaler.service.upscaler import Upscaler

    def load_failing() -> Any:
        return FailingOnce(PatchScalerPipeline.from_pretrained(model, device=device), 4)

    metrics = Metrics()
    upscaler = Upscaler(load_failing, Limits(waiting=24, job_seconds=3600, batch_jobs=batch), metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    config = uvicorn.Config(create_app(upscaler, metrics), log_level="error")
    Server(config, upscaler, 0).run([listener])


def make_cases(count: int, sides: list[int]) -> list[Case]:
    """Requests that are the same every time: of ten, six are plain, two ask for a job, one is broken, one cancels."""
    kinds = ["plain"] * 6 + ["job"] * 2 + ["broken", "cancelled"]
    random = np.random.default_rng(0)
    cases = []
    for number in range(count):
        width, height = (int(side) for side in random.choice(sides, 2))
        coarse = random.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
        kind, body = kinds[number % len(kinds)], file.getvalue()
        if kind == "broken":
            body = body[: len(body) // 2] if number % 20 < 10 else b"no image at all"
        options = {"quality": str(random.choice(["fast", "balanced", "best"])), "seed": number}
        cases.append(Case(number, kind, body, options))
    return cases


def load(address: str, cases: list[Case], clients: int) -> Seen:
    """Send all requests from as many threads as there are clients."""
    seen, lock = Seen(), threading.Lock()
    with httpx.Client(base_url=address, timeout=3600, limits=httpx.Limits(max_connections=None)) as client:
        while not ready(client):
            time.sleep(0.2)
        seen.memory.append(metric(client, "process_resident_memory_bytes"))
        cpu = metric(client, "process_cpu_seconds_total")
        begin, step = time.monotonic(), max(1, len(cases) // 4)

        def run(case: Case) -> None:
            how = send(client, case, seen, lock)
            with lock:
                seen.ends[f"{case.kind}: {how}"] += 1
                if sum(seen.ends.values()) % step == 0:
                    seen.memory.append(metric(client, "process_resident_memory_bytes"))

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(run, cases))
        seen.seconds = time.monotonic() - begin
        seen.cpu = metric(client, "process_cpu_seconds_total") - cpu
        names = (
            "batch_jobs_sum",
            "batch_jobs_count",
            "call_failures_total",
            "jobs_accepted_total",
            "jobs_kept",
        )
        seen.metrics = {name: metric(client, f"patchscaler_{name}") for name in names}
    return seen


def send(client: httpx.Client, case: Case, seen: Seen, lock: threading.Lock) -> str:
    """One request from its beginning to its end; gives how it ended."""
    wants_job = case.kind in ("job", "cancelled")
    while True:
        reply = client.post(
            "/v1/upscale",
            params={**case.options, "format": "png", **({"async": 1} if wants_job else {})},
            content=case.body,
            headers={"Content-Type": "image/png"},
        )
        if reply.status_code != 429:
            break
        with lock:
            seen.refused += 1
        time.sleep(min(2, int(reply.headers["Retry-After"])))
    if reply.status_code == 200:
        seen.answers[case.number] = reply.content
    if reply.status_code >= 500:
        seen.lost.append(f"{case.number}: {reply.status_code} {reply.text}")
    if reply.status_code != 202:
        return str(reply.status_code)
    place = reply.headers["Location"]
    if case.kind == "cancelled":
        time.sleep(case.number % 7 / 10)
        client.delete(place)
        return "gone" if client.get(place).status_code == 404 else "still there"
    while (job := client.get(place).json()).get("state") in ("waiting", "running"):
        time.sleep(0.1)
    if job.get("state") != "done":
        seen.lost.append(f"{case.number}: {job}")
        return "lost"
    seen.answers[case.number] = client.get(f"{place}/result").content
    client.delete(place)
    return "done"


def references(
    cases: list[Case], model: str | None, device: str, folder: Path
) -> tuple[dict[int, np.ndarray], float, float]:
    """What the command line's code makes of every good request, one after the other; seconds and CPU seconds."""
    from patchscaler import PatchScalerPipeline
    from patchscaler.batch import CallOptions, run_jobs
    from patchscaler.imaging.io import OutputOptions, probe_photo
    from patchscaler.jobs import Job

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device)
    images: dict[int, np.ndarray] = {}
    seconds = cpu = 0.0
    for case in cases:
        if case.kind not in ("plain", "job"):
            continue
        source, target = folder / f"{case.number}.png", folder / f"{case.number}-large.png"
        source.write_bytes(case.body)
        begin, busy = time.monotonic(), time.process_time()
        size = probe_photo(source)
        job = Job(source, target, None, (size.width, size.height), (4 * size.width, 4 * size.height))
        call = CallOptions(case.options["quality"], case.options["seed"])
        for outcome in run_jobs([job], [lambda: pipeline], call, OutputOptions()):
            assert outcome.error is None, outcome.error
        seconds += time.monotonic() - begin
        cpu += time.process_time() - busy
        images[case.number] = np.asarray(Image.open(target)).astype(int)
    return images, seconds, cpu


def cold_seconds(cases: list[Case], model: str | None, device: str, folder: Path) -> float:
    """Median seconds of three calls of the command, each a process of its own."""
    source, target = folder / "cold.png", folder / "cold-large.png"
    source.write_bytes(cases[0].body)
    words = ["upscale", str(source), "-o", str(target), "--overwrite", "--device", device, "--quiet"]
    times = []
    for _ in range(3):
        begin = time.monotonic()
        extra = ["--model", model] if model else []
        subprocess.run([sys.executable, "-m", "patchscaler", *words, *extra], check=True)
        times.append(time.monotonic() - begin)
    return sorted(times)[1]


def same(answer: bytes, expected: np.ndarray) -> bool:
    """Whether a PNG is an image to within the tolerance."""
    got = np.asarray(Image.open(io.BytesIO(answer))).astype(int)
    return got.shape == expected.shape and abs(got - expected).max() <= TOLERANCE


def ready(client: httpx.Client) -> bool:
    """Whether the service answers and has its model."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def metric(client: httpx.Client, name: str) -> float:
    """One value of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def tiny_model(folder: Path) -> str:
    """An untrained model whose patches all take steps."""
    from patchscaler.presets import build
    from patchscaler.sampling.grouping import Plan

    pipeline = build("tiny")
    pipeline.plans = {
        name: Plan.uniform(0.9, steps) for name, steps in {"fast": 1, "balanced": 2, "best": 3}.items()
    }
    pipeline.save_pretrained(folder / "tiny")
    return str(folder / "tiny")


def report(
    arguments: argparse.Namespace,
    cases: list[Case],
    seen: Seen,
    wrong: list[int],
    missing: list[int],
    expected: int,
    sequential: float,
    cpu: float,
    cold: float,
    exit_code: int | None,
) -> str:
    """The figures in Markdown."""
    import torch

    made = len(seen.answers)
    served, alone = made / seen.seconds, expected / sequential
    calls = seen.metrics["batch_jobs_count"] or 1
    rows = {
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}, {arguments.device},"
        f" torch {torch.__version__} with {torch.get_num_threads()} threads",
        "requests, clients": f"{len(cases)}, {arguments.clients}; sides {arguments.sides} pixels, x4",
        "ends": ", ".join(f"{end} {count}" for end, count in sorted(seen.ends.items())),
        "answers 429, all tried again": str(seen.refused),
        "calls of the pipeline, of which failed": f"{calls + seen.metrics['call_failures_total']:.0f},"
        f" {seen.metrics['call_failures_total']:.0f}",
        "jobs in a call, mean": f"{seen.metrics['batch_jobs_sum'] / calls:.2f}",
        "accepted jobs lost": str(len(missing) + len(seen.lost)),
        f"wrong images (more than {TOLERANCE}/255 from one alone)": f"{len(wrong)} of {made}",
        "jobs still kept at the end": f"{seen.metrics['jobs_kept']:.0f}",
        "resident memory, MiB: start, then at each quarter": ", ".join(
            f"{value / 2**20:.0f}" for value in seen.memory
        ),
        "exit code after SIGTERM": str(exit_code),
        "images a second, served": f"{served:.2f}",
        "images a second, one after the other in one process": f"{alone:.2f};"
        f" the service does {served / alone:.2f} times that",
        "CPU seconds an image, served; one after the other": f"{seen.cpu / made:.2f}; {cpu / expected:.2f}",
        "images a second, one process each": f"{1 / cold:.2f}; the service does {served * cold:.1f} times that",
    }
    lines = ["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*lines, *seen.lost])


if __name__ == "__main__":
    main()
