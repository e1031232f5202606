"""The HTTP API: routes and nothing else."""

import asyncio
import mimetypes
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from patchscaler._version import __version__
from patchscaler.errors import InputError
from patchscaler.service import documents
from patchscaler.service.job import UpscaleJob
from patchscaler.service.metrics import Metrics
from patchscaler.service.middleware import CountRequests
from patchscaler.service.options import RequestOptions, first_line
from patchscaler.service.queue import BusyError, ClosedError
from patchscaler.service.replies import STATUS, Job, describe, event, headers
from patchscaler.service.upload import read_upload
from patchscaler.service.upscaler import TooLargeError, Upscaler

_POLL_SECONDS = 0.1
_PING_SECONDS = 15


def _find(request: Request, id: str) -> UpscaleJob:
    job = request.app.state.upscaler.jobs.get(id)
    if job is None:
        raise HTTPException(404, "no such job")
    return job


_Found = Annotated[UpscaleJob, Depends(_find)]


def create_app(upscaler: Upscaler, metrics: Metrics, token: str | None = None) -> FastAPI:
    """The API of an upscaler.

    Args:
        upscaler: not started yet; the app starts it, and at the end lets it finish what was accepted.
        metrics: the upscaler's observer.
        token: what clients must send as `Authorization: Bearer TOKEN`; None lets everyone in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        upscaler.start()
        yield
        await run_in_threadpool(upscaler.close)

    app = FastAPI(
        title="PatchScaler", version=__version__, description=documents.INTRODUCTION, lifespan=lifespan
    )
    metrics.gauge("jobs_waiting", "Jobs in the queue.", lambda: len(upscaler.queue))
    metrics.gauge("jobs_kept", "Jobs known, with their results.", lambda: len(upscaler.jobs))
    app.add_middleware(CountRequests, counter=metrics.requests)
    app.state.upscaler, app.state.uploads = upscaler, 0
    allowed = [Depends(_guard(token))] if token else []
    refusals = documents.refusals(401) if token else {}

    @app.post(
        "/v1/upscale",
        tags=["upscale"],
        dependencies=allowed,
        response_class=Response,
        responses={**documents.UPSCALE, **refusals},
        openapi_extra=documents.UPSCALE_BODY,
    )
    async def upscale(
        request: Request,
        options: Annotated[RequestOptions, Query()],
    ) -> Response:
        """Upscale an image.

        The image is the body itself, or the field `image` of a form; options go into the query or into the form. The
        answer is the image, in the format of the input if nothing else is asked for, with the record of how it was
        made in `X-Patchscaler-Record`. With `async=1` the answer is a job, to be asked for, followed and deleted
        under `/v1/jobs`.
        """
        upscaler.check_room()
        job = await _accept(upscaler, request, options)
        if options.wants_job:
            where = f"/v1/jobs/{job.id}"
            return JSONResponse(describe(job, upscaler).model_dump(), 202, {"Location": where})
        ended = asyncio.wrap_future(job.ended)
        while not (await asyncio.wait([ended], timeout=5 * _POLL_SECONDS))[0]:
            if await request.is_disconnected():
                upscaler.drop(job)
                return Response(status_code=499)
        if job.state != "done":
            upscaler.drop(job)
            raise _failure(job)
        return _file(job, job.job.output, BackgroundTask(upscaler.drop, job))

    missing = {**documents.refusals(404, 422), **refusals}

    @app.get("/v1/jobs/{id}", tags=["jobs"], dependencies=allowed, responses=missing)
    async def show(job: _Found) -> Job:
        """The state of a job."""
        return describe(job, upscaler)

    @app.delete("/v1/jobs/{id}", tags=["jobs"], dependencies=allowed, status_code=204, responses=missing)
    async def delete(job: _Found) -> None:
        """Stop a job if it has not ended, and forget its result."""
        await run_in_threadpool(upscaler.drop, job)

    @app.get(
        "/v1/jobs/{id}/result",
        tags=["jobs"],
        dependencies=allowed,
        response_class=Response,
        responses={**documents.RESULT, **missing},
    )
    async def result(job: _Found) -> Response:
        """The upscaled image of a job; 409 while it is not done."""
        if job.state != "done":
            raise _failure(job)
        return _file(job, job.job.output)

    @app.get(
        "/v1/jobs/{id}/map",
        tags=["jobs"],
        dependencies=allowed,
        response_class=Response,
        responses={**documents.MAP, **missing},
    )
    async def map(job: _Found) -> Response:
        """The difficulty map of a job that was asked for with `map=1`, as PNG."""
        if job.job.map is None:
            raise HTTPException(404, "this job has no map; ask for it with map=1")
        if job.state != "done":
            raise _failure(job)
        return _file(job, job.job.map)

    @app.get(
        "/v1/jobs/{id}/events",
        tags=["jobs"],
        dependencies=allowed,
        response_class=StreamingResponse,
        responses={**documents.EVENTS, **missing},
    )
    async def events(job: _Found) -> Response:
        """Server-sent events: `progress` whenever the job moves, then one of `done`, `failed`, `cancelled`."""
        return StreamingResponse(_events(job, upscaler), media_type="text/event-stream")

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], responses=documents.refusals(503))
    async def readyz() -> dict[str, str]:
        """Whether the model is loaded and jobs are accepted."""
        if not upscaler.is_ready:
            raise HTTPException(503, "shutting down" if upscaler.queue.closed else "the model is loading")
        return {"status": "ready"}

    @app.get(
        "/metrics",
        tags=["service"],
        dependencies=allowed,
        response_class=Response,
        responses={**documents.METRICS, **refusals},
    )
    async def show_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_exception_handler(RequestValidationError, _invalid)
    for kind, status in ((TooLargeError, 413), (InputError, 422), (BusyError, 429), (ClosedError, 503)):
        app.add_exception_handler(kind, _refusal(status, upscaler))
    return app


async def _accept(upscaler: Upscaler, request: Request, query: RequestOptions) -> UpscaleJob:
    limits = upscaler.limits
    state = request.app.state
    if state.uploads >= limits.waiting:
        raise BusyError(f"{state.uploads} uploads are coming in; try again later")
    folder = upscaler.new_folder()
    state.uploads += 1
    try:
        source = folder / "upload"
        fields = await read_upload(request, source, most=limits.upload_bytes, seconds=limits.upload_seconds)
        options = query.merged(fields)
        return await run_in_threadpool(
            upscaler.submit, source, options.call, options.size, options.output,
            format=options.format, with_map=options.map,
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        state.uploads -= 1


def _guard(token: str) -> Any:
    """A dependency that lets in who knows the token."""
    scheme = HTTPBearer(auto_error=False)

    def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        given = credentials.credentials if credentials else ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    return check


def _file(job: UpscaleJob, path: Path, after: BackgroundTask | None = None) -> Response:
    kind = mimetypes.guess_type(path.name)[0] or f"image/{path.suffix[1:]}"
    return FileResponse(path, media_type=kind, headers=headers(job, path.name), background=after)


def _failure(job: UpscaleJob) -> HTTPException:
    """Why a job has no result."""
    if job.state == "failed":
        return HTTPException(STATUS[job.reason], job.error)
    if job.state == "cancelled":
        return HTTPException(410, "the job was cancelled")
    return HTTPException(409, f"the job is {job.state}; ask again when it is done")


async def _events(job: UpscaleJob, upscaler: Upscaler) -> AsyncIterator[str]:
    last, quiet = None, 0.0
    while not job.is_final:
        now = describe(job, upscaler)
        if now != last or quiet >= _PING_SECONDS:
            yield event("progress", now)
            last, quiet = now, 0.0
        await asyncio.sleep(_POLL_SECONDS)
        quiet += _POLL_SECONDS
    yield event(job.state, describe(job, upscaler))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": first_line(error.errors())}, 422)


def _refusal(status: int, upscaler: Upscaler) -> Any:
    async def answer(_: Request, error: Exception) -> Response:
        wait = {"Retry-After": str(upscaler.retry_after())} if status in (429, 503) else None
        return JSONResponse({"detail": str(error)}, status, wait)

    return answer
