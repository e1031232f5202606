"""Request bodies, read piece by piece into a file of ours, never beyond the limits."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

if TYPE_CHECKING:
    from starlette.types import Message, Receive

_RAW = re.compile(r"image/[\w.+-]+|application/octet-stream")
_FORM = "multipart/form-data"
_OVERHEAD = 2**16
"""What a form may hold beside the image, bytes."""


async def read_upload(request: Request, target: Path, *, most: int, seconds: float) -> dict[str, str]:
    """Write the image of a request to `target`; gives the other fields of a form.

    Raises:
        HTTPException: 408 too slow, 413 too large, 415 neither an image nor a form, 422 no image in the form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM and not _RAW.fullmatch(kind):
        raise HTTPException(415, f"send an image as image/* or application/octet-stream, or {_FORM}")
    bounded = Request(request.scope, _counting(request.receive, most + _OVERHEAD * (kind == _FORM), most))
    try:
        return await asyncio.wait_for(_read(bounded, target, kind, most), seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} s") from None


async def _read(request: Request, target: Path, kind: str, most: int) -> dict[str, str]:
    if kind != _FORM:
        with target.open("wb") as file:
            async for piece in request.stream():
                file.write(piece)
        return {}
    fields: dict[str, str] = {}
    async with request.form(max_files=1, max_fields=32, max_part_size=_OVERHEAD) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise HTTPException(422, "the form has no file named image")
        for name, value in form.multi_items():
            if name in fields:
                raise HTTPException(422, f"{name} is given twice")
            if isinstance(value, str):
                fields[name] = value
        size = 0
        with target.open("wb") as file:
            while piece := await image.read(2**20):
                size += len(piece)
                file.write(piece)
    if size > most:
        raise _too_large(most)
    return fields


def _counting(receive: Receive, bound: int, most: int) -> Any:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > bound:
            raise _too_large(most)
        return message

    return counted


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the upload is too large; at most {most / 2**20:.3g} MiB")
