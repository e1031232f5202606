"""Running jobs: reading, computing and writing overlap, and several devices share the work."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchscaler.errors import DeviceError, InputError, PatchScalerError
from patchscaler.imaging.alpha import hold_between_neighbours
from patchscaler.imaging.difficulty import difficulty_map, group_names
from patchscaler.imaging.io import (
    OutputOptions,
    Photo,
    check_holds,
    output_losses,
    read_photo,
    write_photo,
    write_pixels,
)
from patchscaler.imaging.streaming import Spool
from patchscaler.jobs import Job
from patchscaler.manifest import source_mark

if TYPE_CHECKING:
    import pyvips

    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import Progress, ProgressCallback, UpscaleResult

_AHEAD = 2
"""Photographs read ahead, and results waiting to be written, per device."""


@dataclass(frozen=True)
class CallOptions:
    """Arguments of a pipeline call."""

    plan: str = "balanced"
    seed: int = 0
    texture: bool = True
    deterministic: bool = False
    memory_limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `record` is what the manifest holds, `error` why it failed."""

    job: Job
    record: dict[str, Any]
    error: PatchScalerError | None = None


class _Stop(Exception):  # noqa: N818 - not an error
    """The run is being given up."""


def run_jobs(
    jobs: Sequence[Job],
    pipelines: Sequence[Callable[[], PatchScalerPipeline]],
    call: CallOptions,
    output: OutputOptions,
    *,
    record: Callable[[dict[str, Any]], None] = lambda record: None,
    progress: ProgressCallback | None = None,
) -> Generator[Outcome]:
    """Upscale photographs, in about their order; a bad file does not stop the others.

    Args:
        jobs: what to do.
        pipelines: one loader per device, called in the thread that uses it.
        call: how to upscale.
        output: how to write.
        record: told of each output when it is complete, just before it appears under its name.
        progress: told how far the photograph in work is, if there is one device only.

    Raises:
        Whatever is no InputError; by then all threads have stopped and no file is half-written.
    """
    outcomes: queue.Queue[Outcome | BaseException] = queue.Queue()
    stop = threading.Event()
    turn = threading.Lock()
    reading: list[tuple[Job, Future[Photo]]] = []
    coming = iter(jobs)

    def watch(state: Progress) -> None:
        if stop.is_set():
            raise _Stop
        if progress is not None and len(pipelines) == 1:
            progress(state)

    def next_job(readers: ThreadPoolExecutor) -> tuple[Job, Future[Photo]] | None:
        with turn:
            while len(reading) <= _AHEAD and not stop.is_set():
                job = next(coming, None)
                if job is None:
                    break
                reading.append((job, readers.submit(read_photo, job.source)))
            return reading.pop(0) if reading and not stop.is_set() else None

    def finish(
        job: Job, stack: ExitStack, write: Callable[[], dict[str, Any]], room: threading.Semaphore
    ) -> None:
        try:
            with stack:
                outcomes.put(Outcome(job, write()))
        except InputError as error:
            outcomes.put(_failure(job, error))
        except BaseException as error:
            outcomes.put(error)
        finally:
            room.release()

    def work(
        load: Callable[[], PatchScalerPipeline], readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
    ) -> None:
        room = threading.Semaphore(_AHEAD)
        try:
            while (item := next_job(readers)) is not None:
                job, coming_photo = item
                try:
                    photo = coming_photo.result()
                    check_holds(photo, job.output)
                except InputError as error:
                    outcomes.put(_failure(job, error))
                    continue
                model = load()
                room.acquire()
                with ExitStack() as stack:
                    try:
                        write = _compute(job, photo, model, call, output, record, watch, stack)
                    except (InputError, DeviceError) as error:
                        outcomes.put(_failure(job, error))
                        room.release()
                    else:
                        writers.submit(finish, job, stack.pop_all(), write, room)
        except _Stop:
            pass
        except BaseException as error:
            outcomes.put(error)

    with (
        ThreadPoolExecutor(2) as readers,
        ThreadPoolExecutor(2) as writers,
        ThreadPoolExecutor(len(pipelines)) as devices,
    ):
        for load in pipelines:
            devices.submit(work, load, readers, writers)
        try:
            for _ in jobs:
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            stop.set()


def _compute(
    job: Job,
    photo: Photo,
    model: PatchScalerPipeline,
    call: CallOptions,
    output: OutputOptions,
    record: Callable[[dict[str, Any]], None],
    progress: ProgressCallback,
    stack: ExitStack,
) -> Callable[[], dict[str, Any]]:
    """Upscale one photograph; what is returned writes it and gives the record."""
    begin = time.perf_counter()
    colour = _spool(stack, job, photo.pixels, model.scale)
    result = model(photo.pixels, out=colour, progress=progress, **asdict(call))
    alpha = None if photo.alpha is None else _upscale_alpha(model, photo, job, call, progress, stack)
    facts = _facts(job, model, photo, output, result, call)

    def write() -> dict[str, Any]:
        def seal(temporary: Path) -> None:
            facts["seconds"] = round(time.perf_counter() - begin, 3)
            facts["bytes"] = temporary.stat().st_size
            facts["sha256"] = _digest(temporary)
            record(facts)

        if job.map is not None:
            patch = model.sampling.stride * model.autoencoder.factor // model.scale
            write_pixels(
                job.map, difficulty_map(_eight_bits(photo.pixels), result.confidence, result.groups, patch)
            )
        write_photo(job.output, colour.image(), alpha, photo, job.size, output, before_rename=seal)
        return facts

    return write


def _upscale_alpha(
    model: PatchScalerPipeline,
    photo: Photo,
    job: Job,
    call: CallOptions,
    progress: ProgressCallback,
    stack: ExitStack,
) -> pyvips.Image:
    """Alpha enlarged by the restoration alone: edges as sharp as the picture's, nothing invented."""
    import pyvips

    from patchscaler.sampling.grouping import Plan

    assert photo.alpha is not None
    if photo.alpha.min() == photo.alpha.max():
        return pyvips.Image.new_from_array(photo.alpha).zoom(model.scale, model.scale)
    grey = np.repeat(photo.alpha[..., None], 3, axis=2)
    spool = _spool(stack, job, grey, model.scale)
    options = {**asdict(call), "plan": Plan.restoration_only()}
    model(grey, out=spool, progress=progress, **options)
    upscaled = spool.image().bandmean().rint().cast("ushort" if grey.dtype == np.uint16 else "uchar")
    return hold_between_neighbours(upscaled, photo.alpha)


def _spool(stack: ExitStack, job: Job, pixels: np.ndarray, scale: int) -> Spool:
    height, width, bands = pixels.shape
    try:
        return stack.enter_context(
            Spool(job.output.parent, (scale * height, scale * width, bands), pixels.dtype)
        )
    except OSError as error:
        raise InputError(f"{job.output.parent}: {error.strerror}") from None


def _facts(
    job: Job,
    model: PatchScalerPipeline,
    photo: Photo,
    output: OutputOptions,
    result: UpscaleResult,
    call: CallOptions,
) -> dict[str, Any]:
    names = group_names(len(model.plans[call.plan].paths))
    return {
        "input": str(job.source),
        "status": "done",
        "output": str(job.output),
        "map": str(job.map) if job.map else None,
        "source": source_mark(job.source),
        "input_size": list(job.input_size),
        "output_size": list(job.size),
        "quality": call.plan,
        "seed": result.seed,
        "groups": dict(zip(names, result.group_shares(len(names)), strict=True)),
        "mean_steps": result.mean_steps,
        "timings": result.timings,
        "device": str(model.device),
        "weights": model.fingerprint,
        "not_kept": list(output_losses(photo, job.output, output)),
    }


def _failure(job: Job, error: PatchScalerError) -> Outcome:
    facts = {"input": str(job.source), "output": str(job.output), "status": "failed", "error": str(error)}
    return Outcome(job, facts, error)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
