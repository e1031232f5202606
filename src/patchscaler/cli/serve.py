"""`patchscaler serve`: an HTTP API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from patchscaler.cli.common import (
    LOCAL_HOSTS,
    DeviceOption,
    DtypeOption,
    ModelOption,
    Precision,
    load_pipeline,
    warn,
)
from patchscaler.errors import InputError


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    model: ModelOption = None,
    queue: Annotated[int, typer.Option(min=1, help="Most jobs that wait; more get 429.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Most images in one call.")] = 8,
    max_upload: Annotated[str, typer.Option(metavar="SIZE", help="Largest upload.")] = "64M",
    max_megapixels: Annotated[float, typer.Option(min=0.001, max=134, help="Largest input.")] = 16.8,
    max_output_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest output.")] = 268.5,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds a job may take, waiting included.")] = 600,
    keep: Annotated[float, typer.Option(min=1, help="Seconds a result waits for its client.")] = 600,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds to fetch results in when the service is to end.")
    ] = 30,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory to hold on the device, such as 3G.")
    ] = None,
) -> None:
    """Serve an HTTP API: POST an image to /v1/upscale, get it back larger. See /docs for all of it.

    If the environment holds PATCHSCALER_TOKEN, clients must send it as a bearer token. The first Ctrl-C or SIGTERM
    finishes what was accepted, the second ends at once.
    """
    try:
        from patchscaler.service.app import create_app
        from patchscaler.service.metrics import Metrics
        from patchscaler.service.server import run
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'patchscaler[serve]'") from None
    from patchscaler.runtime.memory import parse_size
    from patchscaler.service.limits import Limits
    from patchscaler.service.upscaler import Upscaler

    token = os.environ.get("PATCHSCALER_TOKEN") or None
    if host not in LOCAL_HOSTS and token is None:
        warn(f"anyone who reaches {host} can use this service; set PATCHSCALER_TOKEN to ask for a token")
    limits = Limits(
        upload_bytes=parse_size(max_upload),
        pixels=round(max_megapixels * 1e6),
        output_pixels=round(max_output_megapixels * 1e6),
        waiting=queue,
        job_seconds=time_limit,
        keep_seconds=keep,
        batch_jobs=batch,
        memory=parse_size(memory_limit) if memory_limit else None,
    )
    metrics = Metrics()
    upscaler = Upscaler(load_pipeline(model, device, dtype.value), limits, metrics)
    run(create_app(upscaler, metrics, token), upscaler, host, port, grace=grace)
