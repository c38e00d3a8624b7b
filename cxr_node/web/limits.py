"""Limits of every request: body size, arrival time and encoding; and the headers of every response."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_node.web.problems import CutOff, problem_body

_SMALL_BODY_BYTES = 1 << 20
_CHARSETS = (b"", b"utf-8", b"us-ascii")
"""What a form may be written in. Python knows many more, of which some take minutes for a megabyte (punycode)."""
UPLOADS = ("/try", "/api/v1/analyze")
"""Where files are sent; every other body is small."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; manifest-src 'self'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class _TooLargeError(CutOff):
    pass


class _TooSlowError(CutOff):
    pass


class Limits:
    """ASGI middleware.

    Args:
        app: what it wraps.
        max_upload_bytes: of a body sent to one of UPLOADS.
        upload_timeout_s: how long a body may take to arrive.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int, upload_timeout_s: float) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._timeout_s = upload_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901 - of three functions that share state
        """Pass a request on, within its limits."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if scope["path"].startswith(UPLOADS) else _SMALL_BODY_BYTES
        state: dict[str, Any] = {"started": False, "bytes": 0, "ended": False}
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def bounded() -> Message:
            if state["ended"]:
                return await receive()  # waits for the disconnection alone
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                state["why"] = _TooSlowError
                raise _TooSlowError from None
            state["bytes"] += len(message.get("body", b""))
            if state["bytes"] > limit:
                state["why"] = _TooLargeError
                raise _TooLargeError
            state["ended"] = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if "why" in state and not state.get("ours"):
                    return  # what others make of our exception; ours follows
                state["started"] = True
                _add_headers(message, scope)
            elif "why" in state and not state.get("ours"):
                return
            await send(message)

        if _said_length(scope) > limit:
            state["ours"] = True
            await _answer(413, _too_large(limit), with_headers)
            return
        if _said_charset(scope) not in _CHARSETS:
            state["ours"] = True
            await _answer(400, "Send forms in UTF-8.", with_headers)
            return
        with suppress(CutOff):
            await self._app(scope, bounded, with_headers)
        if "why" in state and not state["started"]:
            state["ours"] = True
            if state["why"] is _TooLargeError:
                await _answer(413, _too_large(limit), with_headers)
            else:
                await _answer(408, f"The request's body took longer than {self._timeout_s:g} s to arrive.", with_headers)


def _too_large(limit: int) -> str:
    return f"The request is larger than {limit / 2**20:g} MB; web.max_upload_mb bounds files."


def _said_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            try:
                return int(value)
            except ValueError:
                return 0
    return 0


def _said_charset(scope: Scope) -> bytes:
    """The character set that a form names, as it is read by the library that decodes its texts with it."""
    given = b"".join(value for name, value in scope["headers"] if name == b"content-type")
    return parse_options_header(given)[1].get(b"charset", b"").lower()


def _add_headers(message: MutableMapping[str, Any], scope: Scope) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if not scope["path"].startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")
    if scope["scheme"] == "https":
        headers.setdefault("Strict-Transport-Security", "max-age=31536000")


async def _answer(status: int, detail: str, send: Send) -> None:
    body = problem_body(status, detail)
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
