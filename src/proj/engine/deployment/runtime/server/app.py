"""The routes of the server: it reads requests, and lets the pool answer them."""

import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from . import bodies
from .description import describe, request_body, response
from .metrics import CONTENT_TYPE, Metrics
from .pool import Pool
from .worker import fault_reply

PAGE = Path(__file__).with_name("page.html")
KEY_HEADER = "X-API-Key"
FAULTS = {
    400: "The body is not of its content type.",
    401: "The API key is missing or wrong.",
    413: "The body or the number of rows is larger than the server takes.",
    415: "The content type is one that this bundle does not take.",
    422: "Rows do not have the form of the training data.",
}
FAULT_SCHEMA = {
    "type": "object",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
                "required": ["loc", "msg", "type"],
            },
        }
    },
    "required": ["detail"],
}


def build_app(spec: Mapping[str, Any], pool: Pool, max_body: int, api_key: str | None) -> FastAPI:
    """Return the application.

    Args:
        spec: the content of ``bundle.json``.
        pool: the processes that predict.
        max_body: bytes that a body may have.
        api_key: what the header ``X-API-Key`` must be; None lets everybody predict.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await pool.start()
        yield
        await pool.close()

    metrics, description = Metrics(pool), describe(spec)
    app = FastAPI(title="Predictions of a model", lifespan=lifespan)
    document = partial(openapi, app, description, api_key is not None)
    app.openapi = document  # type: ignore[method-assign]

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        if has_key(request, api_key):
            try:
                status, content = await pool.ask(await read_request(request, max_body))
            except bodies.BodyError as error:
                status, content = fault_reply(error.status, error.faults)
            except ClientDisconnect:  # Nobody reads the reply; it is counted.
                status, content = fault_reply(400, [([], "the body has ended early")])
        else:
            status, content = fault_reply(401, [([], f"expected the API key in {KEY_HEADER}")])
        metrics.observe(status, time.perf_counter() - start)
        return Response(content, status, media_type="application/json")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics(request: Request) -> Response:
        if not has_key(request, api_key):
            return Response(f"expected the API key in {KEY_HEADER}\n", 401)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    add_status_routes(app, pool, description)
    return app


def has_key(request: Request, api_key: str | None) -> bool:
    """Return whether a request may predict."""
    given = request.headers.get(KEY_HEADER, "").encode()
    return api_key is None or hmac.compare_digest(given, api_key.encode())


def add_status_routes(app: FastAPI, pool: Pool, description: dict[str, Any]) -> None:
    """Add the routes that predict nothing and need no key."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "No process can answer yet."}})
    async def ready() -> Response:
        is_ready = pool.ready > 0 and not pool.is_draining
        content = json.dumps({"status": "ready" if is_ready else "not ready"})
        return Response(content, 200 if is_ready else 503, media_type="application/json")

    @app.get("/schema")
    async def schema() -> dict[str, Any]:
        return description

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE.read_text(encoding="utf-8"), media_type="text/html")


async def read_request(request: Request, max_body: int) -> bodies.Request:
    """Return the body of a request, or the files of a form.

    Raises:
        BodyError: for a content type that no bundle takes, and a body that is too large.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return bodies.Request("images", await _files(request, max_body))
    form = bodies.CONTENT_TYPES.get(content_type)
    if form is None and content_type.startswith("image/"):
        form = "images"
    if form is None:
        expected = ", ".join([*bodies.CONTENT_TYPES, "image/… or multipart/form-data"])
        message = f"expected the content type {expected}, got {content_type or 'none'}"
        raise bodies.BodyError(415, [([], message)])
    _check_size(int(request.headers.get("content-length", 0)), max_body)
    content = bytearray()
    async for part in request.stream():
        content += part
        _check_size(len(content), max_body)
    return bodies.Request(form, [bytes(content)])


async def _files(request: Request, max_body: int) -> list[bytes]:
    """Return the files of a form. Starlette keeps large ones on the disk."""
    if "content-length" not in request.headers:
        raise bodies.BodyError(411, [([], "expected the header Content-Length for a form")])
    _check_size(int(request.headers["content-length"]), max_body)
    try:
        async with request.form(max_files=10_000) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise bodies.BodyError(422, [([], "expected files of images in the form")])
            return [await file.read() for file in files]
    except HTTPException as error:
        raise bodies.BodyError(400, [([], f"expected a form: {error.detail}")]) from error


def _check_size(size: int, max_body: int) -> None:
    if size > max_body:
        message = f"expected at most {max_body:,} bytes; send the rows in several parts"
        raise bodies.BodyError(413, [([], message)])


def openapi(app: FastAPI, description: dict[str, Any], needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document with the columns of the bundle."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version="1", routes=app.routes)
        operation = document["paths"]["/predict"]["post"]
        operation["requestBody"] = request_body(description)
        faults = {"application/json": {"schema": FAULT_SCHEMA}}
        operation["responses"] = {"200": response(description)} | {
            str(status): {"description": text, "content": faults} for status, text in FAULTS.items()
        }
        if needs_key:
            scheme = {"type": "apiKey", "in": "header", "name": KEY_HEADER}
            document.setdefault("components", {})["securitySchemes"] = {"key": scheme}
            for path in ("/predict", "/metrics"):
                for route in document["paths"][path].values():
                    route["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
