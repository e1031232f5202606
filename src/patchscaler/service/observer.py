"""What the worker tells of; the default listens to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchscaler.result import UpscaleResult
    from patchscaler.service.job import UpscaleJob


class Observer:
    """Told of jobs and calls, from any thread."""

    def accepted(self) -> None:
        """A job was accepted."""

    def ended(self, job: UpscaleJob) -> None:
        """A job reached a final state."""

    def call_done(self, results: Sequence[UpscaleResult]) -> None:
        """A call of the pipeline gave these results."""

    def call_failed(self) -> None:
        """A call of the pipeline failed."""
