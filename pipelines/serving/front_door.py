"""HTTP with the contract of MLflow's scoring server: POST /invocations, GET /ping, /health and /version.

A request may bring its id in X-Request-Id; the answer names it, and who answered, in its headers.
"""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.servable import refusal
from pipelines.serving.backend import Unanswered
from pipelines.serving.report import step_reports
from pipelines.serving.requests import MAX_BYTES, Request, request_id
from pipelines.serving.router import Reply
from pipelines.serving.service import Service
from validation.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi import Request as HttpRequest

_JSON = "application/json"

Current = Callable[[], Service]
"""The service of the moment: the release log may put another one in its place between two requests."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where it cannot, before anything else is started."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror}; give another one") from None


def serve(current: Current, listener: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        make_app(current), log_level="warning", access_log=False, timeout_graceful_shutdown=5, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listener])


def make_app(current: Current) -> "FastAPI":
    """The routes around a running service."""
    from importlib.metadata import version

    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def ping() -> Response:
        return Response("\n", media_type=_JSON)

    app.get("/ping")(ping)
    app.get("/health")(ping)

    @app.get("/version")
    async def mlflow_version() -> Response:
        return Response(version("mlflow"), media_type=_JSON)

    @app.get("/ladder")
    def ladder() -> list[dict]:
        return [report.model_dump(mode="json") for report in step_reports(current())]

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        try:
            identity = request_id(request.headers.get("x-request-id"))
            body = await _body(request)
        except ValueError as error:
            return Response(refusal("BAD_REQUEST", str(error)), 400, media_type=_JSON)
        status, content, by = await run_in_threadpool(_answer, current, identity, body)
        headers = {"X-Request-Id": identity, "X-Answered-By": by}
        return Response(content, status, headers, media_type=_JSON)

    return app


async def _body(request: "HttpRequest") -> bytes:
    """Raises ValueError on what is not JSON by its own word, or too long."""
    if request.headers.get("content-type", "").split(";")[0].strip() != _JSON:
        raise ValueError(f"content type: send {_JSON}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise ValueError(f"request: longer than {MAX_BYTES} bytes; send fewer sequences at once")
    return bytes(body)


def _answer(current: Current, identity: str, body: bytes) -> tuple[int, bytes, str]:
    """Status, body and version that answered."""
    service = current()
    try:
        reply: Reply = service.router.answer(Request(identity, body))
    except Unanswered as error:
        if current() is not service:  # replaced meanwhile: its successor answers
            return _answer(current, identity, body)
        return 503, refusal("TEMPORARILY_UNAVAILABLE", f"no model can answer ({error})").encode(), "nobody"
    version = service.incumbent if reply.by == "incumbent" else service.candidate
    assert version is not None
    return reply.status, reply.body, f"{reply.by}, version {version.version}"
