"""One accepted request: what it asks for, how far it is, how it ended."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchscaler.errors import InputError

if TYPE_CHECKING:
    from patchscaler.batch import CallOptions
    from patchscaler.imaging.io import OutputOptions
    from patchscaler.jobs import Job
    from patchscaler.result import Progress, UpscaleResult

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Reason = Literal["input", "time", "worker"]
"""Why a job failed: its image, its time limit, or the worker."""


class UpscaleJob:
    """An accepted request; every state is final but `waiting` and `running`, and the first final state stays.

    Args:
        folder: the job's own folder, removed when the job is dropped and nobody works in it.
        job: files and sizes.
        call: how to upscale.
        output: how to write.
        seconds: time limit from now.

    Attributes:
        id: a random name.
        progress: how far the call is that the job is part of.
        record: facts of a finished job.
        result: map and steps of a finished job whose map was asked for; its image is in the output file.
        ended: resolved with the final state.
        alone: whether a call of several jobs failed, and this one is to be tried by itself.
    """

    def __init__(
        self, folder: Path, job: Job, call: CallOptions, output: OutputOptions, seconds: float
    ) -> None:
        self.folder, self.job, self.call, self.output = folder, job, call, output
        self.id = secrets.token_urlsafe(12)
        self.accepted = time.monotonic()
        self.deadline = self.accepted + seconds
        self.finished = 0.0
        self.state: State = "waiting"
        self.progress: Progress | None = None
        self.record: dict[str, Any] | None = None
        self.result: UpscaleResult | None = None
        self.error: str | None = None
        self.reason: Reason | None = None
        self.alone = False
        self.ended: Future[State] = Future()
        self._lock = threading.Lock()
        self._users, self._dropped = 0, False

    @property
    def pixels(self) -> int:
        """Pixels of the input."""
        return self.job.input_size[0] * self.job.input_size[1]

    @property
    def is_final(self) -> bool:
        """Whether the job ended, in whatever way."""
        return self.ended.done()

    def begin(self, state: Literal["waiting", "running"]) -> None:
        """Go to a state that is not final, unless the job ended."""
        with self._lock:
            if not self.ended.done():
                self.state = state

    def end(
        self,
        state: State,
        error: str | None = None,
        reason: Reason | None = None,
        record: dict[str, Any] | None = None,
    ) -> bool:
        """Go to a final state; False if the job has one."""
        with self._lock:
            if self.ended.done():
                return False
            self.state, self.error, self.reason, self.record = state, error, reason, record
            self.finished = time.monotonic()
            self.ended.set_result(state)
            return True

    def fail(self, error: Exception) -> bool:
        """End with the message of an error."""
        message = without_names(error, self.job.source, self.job.output)
        return self.end("failed", message, "input" if isinstance(error, InputError) else "worker")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the folder for as long as the `with` block lasts."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self._remove_if_free()

    def drop(self) -> None:
        """Remove the folder, now or when the last user leaves it."""
        self._dropped = True
        self._remove_if_free()

    def _remove_if_free(self) -> None:
        with self._lock:
            free = self._dropped and not self._users
        if free:
            shutil.rmtree(self.folder, ignore_errors=True)


def without_names(error: Exception, *paths: Path) -> str:
    """The message of an error, less the names of our own files."""
    message = str(error)
    for path in paths:
        message = message.replace(f"{path}: ", "").replace(str(path), "the image")
    return message
