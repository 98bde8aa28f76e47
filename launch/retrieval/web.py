"""The service over HTTP: FastAPI routes around something that answers queries, whatever it runs on.

    POST /search              an image file as body -> Answer          GET /            the page
    GET  /search/SAMPLE_ID    an indexed image      -> Answer          GET /health      is anything there to answer
    GET  /images/SAMPLE_ID    a small picture                          GET /metrics     for Prometheus

A body is read up to its limit and no further; what cannot be answered gets a sentence in `detail`. With a token
everything but the page (which holds no data) and /health wants it; without one see launch/listening.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from launch.listening import brings, is_for_loopback, page_rules
from launch.retrieval import answer
from launch.retrieval.answer import Answer, Refused
from launch.retrieval.originals import Originals

MEDIA_TYPES = ("image/jpeg", "image/png", "image/bmp", "application/dicom", "application/octet-stream")
_BODY = {
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES},
    "required": True,
}
_SENTENCE = {"application/json": {"schema": {"properties": {"detail": {"type": "string"}}}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": _SENTENCE}
    for status, words in (
        (400, "the image cannot be used"),
        (401, "the token is missing or wrong"),
        (404, "no such image or group"),
        (408, "the body took too long to arrive"),
        (413, "the body is too large"),
        (415, "not a media type of an image"),
        (503, "too many requests, or no replica is alive"),
    )
}


class Busy(Exception):
    """Nobody can answer now; the text says why."""


@dataclass(frozen=True)
class Service:
    """What the routes stand on.

    `ask` answers a query or raises Refused or Busy, `alive` tells whether anybody could, `page` takes a nonce.
    """

    ask: Callable[[answer.Query], Awaitable[Answer]]
    alive: Callable[[], bool]
    originals: Originals
    page: Callable[[str], str]
    token: str = ""
    max_bytes: int = 32 << 20
    body_timeout_s: float = 30.0


class Meters:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self._requests = Counter("subspace_requests", "Requests answered.", labels, registry=self.registry)
        self._seconds = Histogram(
            "subspace_request_seconds", "From the request to its answer.", ("route",), registry=self.registry
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


Neighbours = Annotated[int, Query(ge=1, le=1000, description="how many neighbours")]
Subspaces = Annotated[
    str,
    Query(pattern=r"^(\d{1,5}(,\d{1,5})*)?$", max_length=4096, description="rank by these only: 0,2; empty: by all"),
]
Exclude = Annotated[Literal["none", "group"], Query(description="group: without images of the query's own patient")]
Group = Annotated[
    str, Query(max_length=1024, description="which patient that is, where the image is not indexed itself")
]
Pictures = Annotated[bool, Query(description="also return the picture and its attention map")]


def make_app(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="Subspace retrieval", docs_url=None, redoc_url=None)  # both pages load scripts from elsewhere
    meters = Meters()
    _add_guards(app, service, meters)
    _add_errors(app)
    _add_searches(app, service)
    _add_pages(app, service, meters)
    return app


def _add_searches(app: FastAPI, service: Service) -> None:
    allowed = [Depends(_token_check(service.token))]

    @app.post(
        "/search", dependencies=allowed, response_model=Answer, responses=_ERRORS, openapi_extra={"requestBody": _BODY}
    )
    async def search(
        request: Request,
        k: Neighbours = 10,
        subspaces: Subspaces = "",
        exclude: Exclude = "none",
        group: Group = "",
        pictures: Pictures = True,
    ) -> Answer:
        """Find the indexed images that are nearest to the one in the body: JPEG, PNG, BMP or DICOM, told by content."""
        image = await _body(request, service)
        query = answer.Query(image, None, k, _numbers(subspaces), exclude, group, pictures)
        return await service.ask(query)

    @app.get("/search/{sample_id}", dependencies=allowed, response_model=Answer, responses=_ERRORS)
    async def search_indexed(
        sample_id: int,
        k: Neighbours = 10,
        subspaces: Subspaces = "",
        exclude: Exclude = "none",
        pictures: Pictures = True,
    ) -> Answer:
        """Find the images that are nearest to an indexed one, without that one."""
        return await service.ask(answer.Query(b"", sample_id, k, _numbers(subspaces), exclude, "", pictures))


def _add_pages(app: FastAPI, service: Service, meters: Meters) -> None:
    allowed = [Depends(_token_check(service.token))]

    @app.get("/images/{sample_id}", dependencies=allowed, responses=_ERRORS, response_class=Response)
    def image(sample_id: int) -> Response:
        """Return a small picture of an indexed image."""
        content, kind = service.originals.thumbnail(sample_id)
        return Response(content, media_type=f"image/{kind}", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/health")
    def health() -> Response:
        """Tell whether a replica is there to answer."""
        alive = service.alive()
        return JSONResponse({"status": "ok" if alive else "no replica is alive"}, 200 if alive else 503)

    @app.get("/metrics", dependencies=allowed)
    def metrics() -> Response:
        """Return counters and latencies in the text format of Prometheus."""
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(service.page(nonce), headers={"Content-Security-Policy": page_rules(nonce)})


def _add_guards(app: FastAPI, service: Service, meters: Meters) -> None:
    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        started, status = time.perf_counter(), 500
        try:
            if service.token or is_for_loopback(request.headers.get("host", "")):
                response = await call(request)
            else:
                response = _refusal(403, "this service answers requests for a loopback host only; it has no token")
            response.headers["X-Content-Type-Options"] = "nosniff"
            status = response.status_code
            return response
        finally:
            meters.count(getattr(request.scope.get("route"), "path", "other"), status, time.perf_counter() - started)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(error.status, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return _refusal(503, str(error), {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _refusal(422, f"{first['loc'][-1]}: {first['msg']}")


def _refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": sentence}, status, headers)


def _token_check(token: str) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        if not brings(token, request.headers.get("authorization", "")):
            raise Refused("send the token of this service: Authorization: Bearer TOKEN", 401)

    return check


async def _body(request: Request, service: Service) -> bytes:
    """Return the body. Raises Refused for another media type, and once it is known to be too large or too slow."""
    kind = request.headers.get("content-type", MEDIA_TYPES[-1]).partition(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        raise Refused(f"send the image file itself as the body, as one of {', '.join(MEDIA_TYPES)}", 415)
    too_large = Refused(f"the body is larger than {service.max_bytes >> 20} MiB", 413)
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 15 or int(stated) > service.max_bytes:
        raise too_large
    received = bytearray()

    async def receive() -> None:
        async for chunk in request.stream():
            received.extend(chunk)
            if len(received) > service.max_bytes:
                raise too_large

    try:
        await asyncio.wait_for(receive(), service.body_timeout_s)
    except asyncio.TimeoutError:  # not yet TimeoutError in Python 3.10
        raise Refused(f"the body did not arrive within {service.body_timeout_s:g} s", 408) from None
    except ClientDisconnect:
        raise Refused("the body did not arrive", 400) from None
    if not received:
        raise Refused("the body is empty: send an image file")
    return bytes(received)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)
