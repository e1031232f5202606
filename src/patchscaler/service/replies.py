"""What the API answers with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from patchscaler.service.job import Reason, UpscaleJob
    from patchscaler.service.upscaler import Upscaler

STATUS: dict[Reason | None, int] = {"input": 422, "time": 504, "worker": 500}
"""HTTP status of a failed job."""


class Error(BaseModel):
    """Why a request was not carried out."""

    detail: str = Field(examples=["160x4 is too small; each side needs 8 pixels"])


class Progress(BaseModel):
    """State of the stage in work; jobs that share a call share it."""

    stage: Literal["encode", "restore", "sample", "decode"]
    done: int = Field(description="Units done: patch evaluations in `sample`, latents elsewhere.")
    total: int


class Job(BaseModel):
    """A job as its client sees it."""

    id: str = Field(examples=["hV2Qm0tXoVLW3p4e"])
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    position: int = Field(description="Jobs before it, while it waits.")
    progress: Progress | None = None
    error: str | None = Field(None, description="Why it failed.")
    record: dict[str, Any] | None = Field(
        None, description="Sizes, groups, steps, times, what was not kept; as `patchscaler upscale --json`."
    )


def describe(job: UpscaleJob, upscaler: Upscaler) -> Job:
    """The present state of a job."""
    progress = job.progress
    return Job(
        id=job.id,
        state=job.state,
        position=upscaler.queue.position(job),
        progress=Progress(**progress._asdict()) if progress and job.state == "running" else None,
        error=job.error,
        record=job.record,
    )


def headers(job: UpscaleJob, name: str) -> dict[str, str]:
    """Headers of a result: its name, and its record as JSON in ASCII."""
    return {
        "Content-Disposition": f'inline; filename="{name}"',
        "X-Patchscaler-Record": json.dumps(job.record),
        "Cache-Control": "no-store",
    }


def event(name: str, data: BaseModel) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n"
