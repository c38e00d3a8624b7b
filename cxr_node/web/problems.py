"""Errors as RFC 9457 problem details under /api, and as a page or a redirect elsewhere."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from cxr_node.errors import CxrNodeError
from cxr_node.store.database import DatabaseTrouble

log = structlog.get_logger()


class NotSignedIn(Exception):  # noqa: N818 - an answer, not a fault
    """Who asks has no session and no token."""


class CutOff(Exception):  # noqa: N818
    """A request's body is larger or slower than it may be; `limits` answers."""


def is_api(request: Request) -> bool:
    """Whether a program asks, which gets problem details."""
    return request.url.path.startswith("/api/")


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """A problem detail (RFC 9457). `detail` tells the person what to do next and holds no patient data."""
    return JSONResponse(_content(status, detail) | more, status, headers, media_type="application/problem+json")


def problem_body(status: int, detail: str) -> bytes:
    """The same as bytes."""
    return json.dumps(_content(status, detail)).encode()


def _content(status: int, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def install(app: FastAPI) -> None:  # noqa: C901 - of the handlers in it
    """Have the application answer errors so."""

    @app.exception_handler(NotSignedIn)
    async def not_signed_in(request: Request, _error: NotSignedIn) -> Response:
        if is_api(request):
            return problem(401, "Send an API token as `Authorization: Bearer …`.", {"WWW-Authenticate": "Bearer"})
        if "hx-request" in request.headers:
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        if request.method not in ("GET", "HEAD"):
            return RedirectResponse("/login", 303)
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='/')}", 303)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if is_api(request):
            return problem(error.status_code, str(error.detail), headers)
        return PlainTextResponse(f"{error.detail}\n", error.status_code, headers)

    @app.exception_handler(CxrNodeError)
    async def ours(request: Request, error: CxrNodeError) -> Response:
        if is_api(request):
            return problem(409, str(error))
        return PlainTextResponse(f"{error}\n", 409)

    @app.exception_handler(DatabaseTrouble)
    async def database(request: Request, error: Exception) -> Response:
        log.error("the database can't be used", exc_info=error)
        said = "The database can't be used now; the node's log says why. Try again in a moment."
        return problem(503, said, {"Retry-After": "5"}) if is_api(request) else PlainTextResponse(f"{said}\n", 503)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        if not isinstance(error, CutOff):
            log.error("a request failed", route=str(getattr(request.scope.get("route"), "path", "")), exc_info=error)
        said = "Something went wrong here; the node's log says where."
        return problem(500, said) if is_api(request) else PlainTextResponse(f"{said}\n", 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in error.errors()]
        said = "; ".join(f"{one['where']}: {one['what']}" for one in errors)
        if "json" not in request.headers.get("content-type", "") and any(one["where"] == "body" for one in errors):
            said = "Send the body as JSON, with the header Content-Type: application/json."
        if is_api(request):
            return problem(422, said, errors=errors)
        return PlainTextResponse(f"{said}\n", 422)
