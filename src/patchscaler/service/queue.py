"""The bounded queue: first come, first served, with those that can share a call."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patchscaler.errors import PatchScalerError

if TYPE_CHECKING:
    from patchscaler.service.job import UpscaleJob
    from patchscaler.service.limits import Limits


class BusyError(PatchScalerError):
    """The queue is full; the message says so to the client."""


class ClosedError(PatchScalerError):
    """The service is shutting down and accepts nothing."""


class JobQueue:
    """Jobs that wait, oldest first; all methods may be called from any thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._jobs: deque[UpscaleJob] = deque()
        self._change = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        """Whether nothing more is accepted."""
        return self._closed

    def put(self, job: UpscaleJob) -> None:
        """Add a job at the end.

        Raises:
            BusyError: as many wait as may.
            ClosedError: nothing is accepted any more.
        """
        with self._change:
            if self._closed:
                raise ClosedError("the service is shutting down")
            if len(self._jobs) >= self.limits.waiting:
                raise BusyError(f"{len(self._jobs)} jobs are waiting; try again later")
            self._jobs.append(job)
            self._change.notify()

    def put_back(self, jobs: list[UpscaleJob]) -> None:
        """Put accepted jobs in front of all others, to be tried each by itself; never refused."""
        with self._change:
            for job in reversed(jobs):
                job.alone = True
                job.begin("waiting")
                self._jobs.appendleft(job)
            self._change.notify()

    def remove(self, job: UpscaleJob) -> None:
        """Take a job out, if it waits."""
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)

    def position(self, job: UpscaleJob) -> int:
        """How many jobs are before this one."""
        with self._change:
            return self._jobs.index(job) if job in self._jobs else 0

    def take(self) -> list[UpscaleJob]:
        """Wait for the oldest job and take it with those that can share its call; none when closed and empty."""
        with self._change:
            self._change.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            batch = [self._jobs.popleft()]
            pixels = batch[0].pixels
            for job in list(self._jobs):
                if batch[0].alone or len(batch) >= self.limits.batch_jobs:
                    break
                fits = pixels + job.pixels <= self.limits.batch_pixels
                if fits and not job.alone and _kind(job) == _kind(batch[0]):
                    self._jobs.remove(job)
                    batch.append(job)
                    pixels += job.pixels
            return batch

    def close(self) -> None:
        """Accept nothing more; what waits can still be taken."""
        with self._change:
            self._closed = True
            self._change.notify_all()


def _kind(job: UpscaleJob) -> Any:
    """What jobs of one call have in common: all but plan and seed."""
    return replace(job.call, plan="", seed=0)
