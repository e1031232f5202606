"""What the OpenAPI document says beyond the routes' signatures: bodies, answers, examples."""

from __future__ import annotations

from typing import Any

from patchscaler.service.options import Options
from patchscaler.service.replies import Error, Job

INTRODUCTION = """\
Enlarges photographs with PatchScaler (arXiv 2405.17158), by 4 or to any size up to 8 times as large.

    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/v1/upscale' -o large.jpg
    curl -F image=@photo.jpg -F quality=best 'http://127.0.0.1:8000/v1/upscale?async=1'

Every refusal is JSON with one line in `detail`.
"""

_BINARY = {"type": "string", "format": "binary"}
_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/tiff", "image/avif")
_WHY: dict[int, str] = {
    400: "The request is not well-formed.",
    401: "The bearer token is absent or wrong.",
    404: "There is no such job, or no such result.",
    408: "The upload took too long.",
    409: "The job is not done.",
    410: "The job was cancelled.",
    413: "The upload, the image or the output is too large.",
    415: "The body is neither an image nor a form.",
    422: "The image cannot be used, or an option is not as it must be.",
    429: "Too many jobs wait, or too many results are kept; `Retry-After` says when to come back.",
    500: "The job failed twice.",
    503: "The service is not ready.",
    504: "The job was not done within its time limit.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's answers for statuses that come with an `Error`."""
    return {status: {"model": Error, "description": _WHY[status]} for status in statuses}


def _image(description: str, kinds: tuple[str, ...] = _IMAGES) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": _BINARY} for kind in kinds}}


def _fields() -> dict[str, Any]:
    """The options as fields of a form, which cannot be null."""
    fields = Options.model_json_schema()["properties"]
    for field in fields.values():
        field |= field.pop("anyOf", ({},))[0]
        if field["default"] is None:
            del field["default"]
    return fields


def _text(description: str, kind: str, example: str) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": description, "content": content}}


_RECORD = {
    "input_size": [128, 128], "output_size": [512, 512], "quality": "balanced", "seed": 0,
    "groups": {"simple": 0.5, "medium": 0.25, "hard": 0.25}, "mean_steps": 2.5, "not_kept": [],
}  # fmt: skip
_JOB = {"id": "hV2Qm0tXoVLW3p4e", "state": "waiting", "position": 3, "progress": None, "error": None}

UPSCALE: dict[int | str, dict[str, Any]] = {
    200: {
        **_image("The upscaled image."),
        "headers": {
            "X-Patchscaler-Record": {
                "description": "How it was made, as JSON.",
                "schema": {"type": "string"},
                "example": str(_RECORD),
            }
        },
    },
    202: {
        "model": Job,
        "description": "The job that was accepted, with `async=1`.",
        "content": {"application/json": {"example": _JOB}},
        "headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}},
    },
    **refusals(400, 408, 410, 413, 415, 422, 429, 500, 503, 504),
}
UPSCALE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The image itself, or a form with the image and options.",
        "content": {
            **{kind: {"schema": _BINARY} for kind in (*_IMAGES, "application/octet-stream")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": _BINARY, **_fields()},
                    "additionalProperties": False,
                },
                "examples": {
                    "twice as large": {"value": {"image": "(the file)", "quality": "best", "scale": 2}}
                },
            },
        },
    }
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: _image("The upscaled image."),
    **refusals(409, 410, 500, 504),
}
MAP: dict[int | str, dict[str, Any]] = {
    200: _image("The difficulty map.", ("image/png",)),
    **refusals(409, 410, 500, 504),
}
EVENTS = _text(
    "Events until the job ends.",
    "text/event-stream",
    'event: progress\ndata: {"id": "hV2Qm0tXoVLW3p4e", "state": "running", "position": 0,'
    ' "progress": {"stage": "sample", "done": 32, "total": 128}}\n\n',
)
METRICS = _text("Counters.", "text/plain", "patchscaler_jobs_accepted_total 12.0\n")
