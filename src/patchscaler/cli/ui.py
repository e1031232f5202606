"""`patchscaler ui`: a page in the browser."""

from __future__ import annotations

from pathlib import Path
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


def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    model: ModelOption = None,
    examples: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Photographs to choose from on the page.")
    ] = None,
    max_upload: Annotated[str, typer.Option(metavar="SIZE", help="Largest upload.")] = "64M",
    max_megapixels: Annotated[float, typer.Option(min=0.001, max=134, help="Largest input.")] = 16.8,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory to hold on the device, such as 3G.")
    ] = None,
) -> None:
    """Open a page on this machine: drop an image, compare before and after, see what was hard, download.

    It needs no network. Ctrl-C ends it.
    """
    try:
        from patchscaler.ui.page import EXAMPLES, build_page, launch
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'patchscaler[ui]'") from None
    from patchscaler.runtime.memory import parse_size
    from patchscaler.service.limits import Limits
    from patchscaler.service.upscaler import Upscaler

    if examples is not None and not examples.is_dir():
        raise InputError(f"{examples}: no such folder")
    if host not in LOCAL_HOSTS:
        warn(f"anyone who reaches {host} can use this page")
    pipeline = load_pipeline(model, device, dtype.value)
    pipeline()
    limits = Limits(
        upload_bytes=parse_size(max_upload),
        pixels=round(max_megapixels * 1e6),
        keep_seconds=3600,
        memory=parse_size(memory_limit) if memory_limit else None,
    )
    upscaler = Upscaler(pipeline, limits)
    upscaler.start()
    try:
        page = build_page(upscaler, examples or EXAMPLES)
        typer.echo(f"PatchScaler is at http://{host}:{port}", err=True)
        launch(page, upscaler, host=host, port=port, examples=examples or EXAMPLES)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; --port chooses another") from None
    finally:
        upscaler.close(finish=False)
