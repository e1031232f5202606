"""Running jobs: reading, computing and writing overlap, and several devices share the work."""

from __future__ import annotations

import hashlib
import os
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
from patchscaler.imaging.alpha import alpha_as_grey, alpha_from_grey
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
from patchscaler.imaging.tensors import eight_bits
from patchscaler.jobs import Job
from patchscaler.manifest import source_mark

if TYPE_CHECKING:
    import pyvips

    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import Progress, ProgressCallback, UpscaleResult

_AHEAD = 2
"""Photographs read ahead."""

_THREADS = 2
"""Threads that share a GPU: it works for one while the others move pixels."""

_WRITERS = 12
"""Most photographs being written, per device; three quarters of the cores if that is less."""

_IN_MEMORY = 2**26
"""Bytes of the largest result that waits in memory: 4729 x 4729 pixels of 8 bits; larger ones wait on disk."""


@dataclass(frozen=True)
class CallOptions:
    """Arguments of a pipeline call."""

    plan: str = "balanced"
    seed: int = 0
    texture: bool = True
    deterministic: bool = False
    memory_limit: int | None = None
    tile: int | None = None
    budget: float | None = None
    time_budget: float | None = None
    fidelity: float = 0.0


@dataclass(frozen=True)
class Task:
    """A decoded photograph and what to make of it."""

    job: Job
    photo: Photo
    call: CallOptions
    output: OutputOptions


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `record` is what the manifest holds, `error` why it failed."""

    job: Job
    record: dict[str, Any]
    error: PatchScalerError | None = None


Rooms = dict[bool, threading.Semaphore]
"""Room for photographs in work or not yet written, for those whose results are in memory and for the others."""


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
    # Photographs in work or not yet written, per device: what bounds memory, and the disk for those that wait there.
    large = _AHEAD * (_THREADS if call.memory_limit is None else 1)
    cores = 3 * (os.cpu_count() or 1) // (4 * len(pipelines))
    small = max(large, _THREADS + min(cores, _WRITERS))

    def watch(state: Progress) -> None:
        if stop.is_set():
            raise _Stop
        if progress is not None and len(pipelines) == 1:
            progress(state)

    def next_job() -> tuple[Job, Future[Photo]] | None:
        with turn:
            while len(reading) <= _AHEAD and not stop.is_set():
                job = next(coming, None)
                if job is None:
                    break
                reading.append((job, readers.submit(read_photo, job.source)))
            return reading.pop(0) if reading and not stop.is_set() else None

    def finish(job: Job, enlarged: Enlarged, room: threading.Semaphore) -> None:
        try:
            with enlarged:
                outcomes.put(Outcome(job, enlarged.write(record)))
        except InputError as error:
            outcomes.put(_failure(job, error))
        except BaseException as error:
            outcomes.put(error)
        finally:
            room.release()

    def work(load: Callable[[], PatchScalerPipeline], rooms: Rooms, alone: bool) -> None:
        """Take photographs until none is left; on a GPU other threads keep it busy while files are moved."""
        try:
            while (item := next_job()) is not None:
                job, coming_photo = item
                try:
                    photo = coming_photo.result()
                    check_holds(photo, job.output)
                except InputError as error:
                    outcomes.put(_failure(job, error))
                    continue
                model = load()
                if alone and model.device.type == "cuda" and call.memory_limit is None:
                    alone = False
                    for _ in range(1, _THREADS):
                        devices.submit(work, load, rooms, alone)
                room = rooms[_in_memory(photo, call, model.scale)]
                room.acquire()
                try:
                    (enlarged,) = enlarge([Task(job, photo, call, output)], model, watch)
                except (InputError, DeviceError) as error:
                    outcomes.put(_failure(job, error))
                    room.release()
                else:
                    writers.submit(finish, job, enlarged, room)
        except _Stop:
            pass
        except BaseException as error:
            outcomes.put(error)

    with (
        ThreadPoolExecutor(_AHEAD, "read") as readers,
        ThreadPoolExecutor(small * len(pipelines), "write") as writers,
        ThreadPoolExecutor(_THREADS * len(pipelines), "device") as devices,
    ):
        for load in pipelines:
            rooms = {True: threading.Semaphore(small), False: threading.Semaphore(large)}
            devices.submit(work, load, rooms, True)
        try:
            for _ in jobs:
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            stop.set()


class Enlarged:
    """An upscaled photograph that waits to be written; leaving its `with` block removes what waits.

    Attributes:
        task: what it was made from.
        result: how it was made; the image is in a spool.
        start_up: seconds of "compile" and "capture" that fell into its call, if any; threads that share the model
            share them.
    """

    result: UpscaleResult
    start_up: dict[str, float]

    def __init__(self, task: Task, model: PatchScalerPipeline) -> None:
        self.task, self.model, self.begin = task, model, time.perf_counter()
        self._stack = ExitStack()
        photo = task.photo
        self.colour = self._spool(photo.pixels)
        self.alpha: Spool | None = None
        if photo.alpha is not None and photo.alpha.min() < photo.alpha.max():
            self.alpha = self._spool(alpha_as_grey(photo.alpha))

    def __enter__(self) -> Enlarged:
        """The photograph itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the spools."""
        self._stack.close()

    def write(self, record: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
        """Write the output, and the difficulty map if the job has one; gives the record.

        Args:
            record: told of the output when it is complete, just before it appears under its name.

        Raises:
            InputError: writing fails.
        """
        job, photo, model, result = self.task.job, self.task.photo, self.model, self.result
        facts = _facts(self.task, model, result) | {"start_up": self.start_up}

        def seal(temporary: Path) -> None:
            facts["seconds"] = round(time.perf_counter() - self.begin, 3)
            facts["bytes"] = temporary.stat().st_size
            facts["sha256"] = _digest(temporary)
            record(facts)

        if job.map is not None:
            patch = model.sampling.stride * model.autoencoder.factor // model.scale
            write_pixels(
                job.map, difficulty_map(eight_bits(photo.pixels), result.confidence, result.groups, patch)
            )
        colour = self.colour.image()
        write_photo(job.output, colour, self._alpha(), photo, job.size, self.task.output, before_rename=seal)
        return facts

    def _alpha(self) -> pyvips.Image | None:
        import pyvips

        alpha = self.task.photo.alpha
        if alpha is None:
            return None
        if self.alpha is None:
            return pyvips.Image.new_from_array(alpha).zoom(self.model.scale, self.model.scale)
        return alpha_from_grey(self.alpha.image(), alpha)

    def _spool(self, pixels: np.ndarray) -> Spool:
        height, width, bands = pixels.shape
        scale, folder = self.model.scale, self.task.job.output.parent
        shape = (scale * height, scale * width, bands)
        in_memory = _in_memory(self.task.photo, self.task.call, scale)
        try:
            return self._stack.enter_context(Spool(folder, shape, pixels.dtype, in_memory=in_memory))
        except OSError as error:
            self._stack.close()
            raise InputError(f"{folder}: {error.strerror}") from None


def enlarge(tasks: Sequence[Task], model: PatchScalerPipeline, progress: ProgressCallback) -> list[Enlarged]:
    """Upscale photographs in one call of the pipeline.

    Args:
        tasks: what to make; their calls differ in plan and seed alone.
        model: the pipeline.
        progress: told how far the call is; what it raises ends the call.

    Returns:
        Each photograph, to be written and closed.

    Raises:
        Whatever the pipeline raises; nothing is left behind.
    """
    from patchscaler.sampling.grouping import Plan

    options = {key: value for key, value in asdict(tasks[0].call).items() if key not in ("plan", "seed")}
    before = dict(model.runner.seconds)
    with ExitStack() as undo:
        done = [undo.enter_context(Enlarged(task, model)) for task in tasks]
        results = model(
            [task.photo.pixels for task in tasks],
            plan=[task.call.plan for task in tasks],
            seed=[task.call.seed for task in tasks],
            out=[one.colour for one in done],
            progress=progress,
            **options,
        )
        for one, result in zip(done, results, strict=True):
            one.result = result
        transparent = [
            (one.task.photo.alpha, one.alpha)
            for one in done
            if one.task.photo.alpha is not None and one.alpha is not None
        ]
        if transparent:
            # By the restoration alone: edges as sharp as the picture's, nothing invented.
            model(
                [alpha_as_grey(alpha) for alpha, _ in transparent],
                plan=Plan.restoration_only(),
                out=[spool for _, spool in transparent],
                progress=progress,
                **options,
            )
        spent = {part: seconds - before[part] for part, seconds in model.runner.seconds.items()}
        for one in done:
            one.start_up = {part: round(seconds, 3) for part, seconds in spent.items() if seconds}
        undo.pop_all()
    return done


def _facts(task: Task, model: PatchScalerPipeline, result: UpscaleResult) -> dict[str, Any]:
    job, call = task.job, task.call
    budgeted = call.budget is not None or call.time_budget is not None
    if budgeted:
        names = tuple(f"{path.steps} steps" for path in model.plans["best"].ladder())
    else:
        names = group_names(len(model.plans[call.plan].paths))
    return {
        "input": str(job.source),
        "status": "done",
        "output": str(job.output),
        "map": str(job.map) if job.map else None,
        "source": source_mark(job.source),
        "input_size": list(job.input_size),
        "output_size": list(job.size),
        "quality": None if budgeted else call.plan,
        "seed": result.seed,
        "fidelity": call.fidelity,
        "groups": dict(zip(names, result.group_shares(len(names)), strict=True)),
        "mean_steps": result.mean_steps,
        "timings": result.timings,
        "device": str(model.device),
        "weights": model.fingerprint,
        "not_kept": list(output_losses(task.photo, job.output, task.output)),
    }


def _in_memory(photo: Photo, call: CallOptions, scale: int) -> bool:
    """Whether what comes of a photograph waits in memory rather than on disk."""
    return call.memory_limit is None and scale**2 * photo.pixels.nbytes <= _IN_MEMORY


def _failure(job: Job, error: PatchScalerError) -> Outcome:
    facts = {"input": str(job.source), "output": str(job.output), "status": "failed", "error": str(error)}
    return Outcome(job, facts, error)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
