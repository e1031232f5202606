"""The worker and what it knows of: accepts jobs, runs them in batches, keeps their results for a while."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from patchscaler.batch import CallOptions, Enlarged, Task, enlarge
from patchscaler.errors import InputError, PatchScalerError
from patchscaler.imaging.formats import FORMATS, writable_format
from patchscaler.imaging.io import OutputOptions, Photo, check_holds, probe_photo, read_photo
from patchscaler.imaging.size import TargetSize
from patchscaler.jobs import Job
from patchscaler.service.job import UpscaleJob, without_names
from patchscaler.service.limits import Limits
from patchscaler.service.observer import Observer
from patchscaler.service.queue import BusyError, ClosedError, JobQueue

if TYPE_CHECKING:
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import Progress

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 0.5


class TooLargeError(InputError):
    """An input or output beyond the service's limits."""


class _Abandoned(Exception):  # noqa: N818 - not an error
    """Nobody wants the results of the running call any more."""


class Upscaler:
    """A queue, one worker thread that owns the pipeline, and the jobs by their id.

    Args:
        load: gives the pipeline; called in the worker thread.
        limits: what is accepted.
        observer: told of what happens.

    Attributes:
        jobs: all accepted jobs whose results are kept.
        model: the pipeline, when it is loaded.
        failure: why it could not be loaded.
    """

    def __init__(
        self,
        load: Callable[[], PatchScalerPipeline],
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.observer = observer or Observer()
        self.queue = JobQueue(self.limits)
        self.jobs: dict[str, UpscaleJob] = {}
        self.model: PatchScalerPipeline | None = None
        self.failure: Exception | None = None
        self.pace = 1.0
        self._load = load
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(2, "patchscaler-files")
        self._room = threading.Semaphore(2 * self.limits.batch_jobs)
        self._worker = threading.Thread(target=self._work, name="patchscaler-worker", daemon=True)
        self._sweeper = threading.Thread(target=self._sweep, name="patchscaler-sweeper", daemon=True)

    def start(self) -> None:
        """Load the pipeline and begin to work, in threads."""
        self._home = tempfile.TemporaryDirectory(prefix="patchscaler-service-")
        self._worker.start()
        self._sweeper.start()

    @property
    def folder(self) -> Path:
        """Where all files of the service are."""
        return Path(self._home.name)

    @property
    def is_ready(self) -> bool:
        """Whether jobs are accepted and worked on."""
        return self.model is not None and not self.queue.closed

    @property
    def is_idle(self) -> bool:
        """Whether every accepted job ended."""
        return all(job.is_final for job in list(self.jobs.values()))

    def new_folder(self) -> Path:
        """An empty folder for an upload; its name owes nothing to the request."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def check_room(self) -> None:
        """Raise BusyError or ClosedError where `submit` would, before an upload is read."""
        if self.queue.closed:
            raise ClosedError("the service is shutting down")
        if len(self.queue) >= self.limits.waiting:
            raise BusyError(f"{len(self.queue)} jobs are waiting; try again later")
        if len(self.jobs) >= self.limits.kept:
            raise BusyError(f"{len(self.jobs)} results are kept; fetch and delete some, or try again later")

    def submit(
        self,
        source: Path,
        call: CallOptions,
        size: TargetSize,
        output: OutputOptions,
        *,
        format: str | None = None,
        with_map: bool = False,
    ) -> UpscaleJob:
        """Accept a photograph.

        Args:
            source: the file, in a folder of its own from `new_folder`, which the job owns from now on.
            call: how to upscale.
            size: of the output.
            output: how to write.
            format: suffix of the output, such as "png"; None keeps the input's format where it can be written.
            with_map: draw the difficulty map, too.

        Raises:
            InputError: it is no image, or cannot become what is asked for.
            TooLargeError: the input or the output is.
            BusyError: too many wait.
            ClosedError: the service is shutting down.
        """
        self.check_room()
        try:
            files = self._files(source, size, format, with_map)
        except InputError as error:
            raise type(error)(without_names(error, source)) from None
        call = replace(call, tile=self.limits.tile, memory_limit=self.limits.memory)
        job = UpscaleJob(source.parent, files, call, output, self.limits.job_seconds)
        self.jobs[job.id] = job
        try:
            self.queue.put(job)
        except PatchScalerError:
            del self.jobs[job.id]
            raise
        self.observer.accepted()
        return job

    def _files(self, source: Path, size: TargetSize, format: str | None, with_map: bool) -> Job:
        photo = probe_photo(source)
        if photo.width * photo.height > self.limits.pixels:
            raise TooLargeError(
                f"{photo.width}x{photo.height} is too large; at most {self.limits.pixels / 1e6:.3g} megapixels"
            )
        wide, high = size.of(photo.width, photo.height)
        if wide * high > self.limits.output_pixels:
            raise TooLargeError(
                f"an output of {wide}x{high} is too large; at most"
                f" {self.limits.output_pixels / 1e6:.3g} megapixels"
            )
        form = FORMATS[photo.format]
        suffix = f".{format}" if format else form.suffixes[0] if form.saver else ".png"
        target = source.parent / f"upscaled{suffix}"
        writable_format(target, wide, high)
        chart = source.parent / "map.png" if with_map else None
        return Job(source, target, chart, (photo.width, photo.height), (wide, high))

    def cancel(self, job: UpscaleJob) -> None:
        """Stop a job, if it has not ended; the worker leaves it at its next report."""
        self.queue.remove(job)
        if job.end("cancelled", "cancelled by the client"):
            self.observer.ended(job)

    def drop(self, job: UpscaleJob) -> None:
        """Stop a job and forget its result."""
        self.cancel(job)
        self.jobs.pop(job.id, None)
        job.drop()

    def retry_after(self) -> int:
        """Seconds after which there may be room."""
        return max(1, min(60, round(self.pace * len(self.queue))))

    def close(self, *, finish: bool = True) -> None:
        """Accept nothing more, finish (or cancel) what was accepted, and remove all files."""
        self.queue.close()
        if not finish:
            for job in list(self.jobs.values()):
                self.cancel(job)
        if self._worker.is_alive():
            self._worker.join()
        self._pool.shutdown()
        self._stop.set()
        self._home.cleanup()

    def _work(self) -> None:
        try:
            self.model = self._load()
        except Exception as error:
            self.failure = error
            self.queue.close()
        while batch := self.queue.take():
            with ExitStack() as stack:
                for job in batch:
                    stack.enter_context(job.in_use())
                try:
                    self._run(batch)
                except Exception as error:
                    for job in batch:
                        self._fail(job, error)

    def _run(self, batch: list[UpscaleJob]) -> None:
        """One call of the pipeline; if it fails, each job is tried once more by itself."""
        if self.model is None:
            raise RuntimeError(f"the model cannot be loaded: {self.failure}")
        begin = time.monotonic()
        tasks = [(job, task) for job in batch if (task := self._read(job)) is not None]
        if not tasks:
            return
        jobs = [job for job, _ in tasks]

        def watch(progress: Progress) -> None:
            for job in jobs:
                job.progress = progress
            if all(job.is_final for job in jobs):
                raise _Abandoned

        try:
            enlarged = enlarge([task for _, task in tasks], self.model, watch)
        except _Abandoned:
            return
        except Exception as error:
            self.observer.call_failed()
            _log.warning("a call for %d jobs failed: %s", len(jobs), error, exc_info=error)
            for job in jobs:
                if job.alone:
                    self._fail(job, error)
            self.queue.put_back([job for job in jobs if not (job.alone or job.is_final)])
            return
        self.pace = 0.7 * self.pace + 0.3 * (time.monotonic() - begin) / len(jobs)
        self.observer.call_done([one.result for one in enlarged])
        for job, one in zip(jobs, enlarged, strict=True):
            self._room.acquire()
            written = ExitStack()
            written.callback(self._room.release)
            written.enter_context(job.in_use())
            self._pool.submit(self._write, job, one, written)

    def _read(self, job: UpscaleJob) -> Task | None:
        if job.is_final:
            return None
        job.begin("running")
        try:
            photo: Photo = read_photo(job.job.source, max_pixels=self.limits.pixels)
            check_holds(photo, job.job.output)
        except Exception as error:
            self._fail(job, error)
            return None
        return Task(job.job, photo, job.call, job.output)

    def _write(self, job: UpscaleJob, enlarged: Enlarged, used: ExitStack) -> None:
        with used, enlarged:
            if job.is_final:
                return
            try:
                record = enlarged.write()
            except Exception as error:
                self._fail(job, error)
                return
            if job.job.map is not None:
                job.result = replace(enlarged.result, image=None)
            hidden = ("input", "output", "map", "source")
            shown = {key: value for key, value in record.items() if key not in hidden}
            if job.end("done", record=shown):
                self.observer.ended(job)

    def _fail(self, job: UpscaleJob, error: Exception) -> None:
        if not isinstance(error, InputError):
            _log.error("job %s failed: %s", job.id, error)
        if job.fail(error):
            self.observer.ended(job)

    def _sweep(self) -> None:
        """End jobs past their time, forget results nobody fetched."""
        while not self._stop.wait(_SWEEP_SECONDS):
            now = time.monotonic()
            for job in list(self.jobs.values()):
                if job.is_final:
                    if now > job.finished + self.limits.keep_seconds:
                        with suppress(OSError):
                            self.drop(job)
                elif now > job.deadline:
                    self.queue.remove(job)
                    seconds = f"{self.limits.job_seconds:g} s"
                    if job.end("failed", f"not done within {seconds}, the time limit", "time"):
                        self.observer.ended(job)
