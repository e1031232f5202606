"""What a service accepts, and how long it waits and keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Attributes:
        upload_bytes: largest upload.
        pixels: largest input.
        output_pixels: largest output.
        waiting: most jobs that wait; more are refused.
        kept: most jobs known at a time, results included; more are refused.
        job_seconds: longest time from acceptance to result.
        upload_seconds: longest time that an upload may take.
        keep_seconds: how long a result is kept for its client.
        batch_jobs: most jobs in one call of the pipeline.
        batch_pixels: most input pixels in one call of several jobs, so that a large job runs alone.
        tile: side of the tiles that images are processed in, output pixels: between two of them a job can stop.
        memory: bytes that the process may hold on the device; None for what is free.
    """

    upload_bytes: int = 64 * 2**20
    pixels: int = 2**24
    output_pixels: int = 2**28
    waiting: int = 32
    kept: int = 256
    job_seconds: float = 600.0
    upload_seconds: float = 60.0
    keep_seconds: float = 600.0
    batch_jobs: int = 8
    batch_pixels: int = 2**19
    tile: int = 2048
    memory: int | None = None
