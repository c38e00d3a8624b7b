"""Runs the web application in this process until it is stopped."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cxr_node.errors import SettingsError
from cxr_node.peer_address import endpoint, is_in, site_of
from cxr_node.settings import Settings
from cxr_node.store.accounts import users
from cxr_node.store.database import open_database
from cxr_node.web.app import close_app, create_app

log = structlog.get_logger()

_POLL_S = 0.2
_HEADERS_TIMEOUT_S = 20.0
_LEAST_BYTES_PER_S = 1000.0
"""At which an answer has to be read."""
_MOST_CONNECTIONS, _MOST_OF_ONE = 200, 64
"""In all, and of one address; a browser opens six. Proxies that the settings trust have no limit of their own."""


class _Patient(H11Protocol):
    """Disconnects clients that do not send a request whole, or do not read an answer: uvicorn would wait for them forever.

    One address has a share of the connections. Beyond it the one that has been idle for longest ends, or the new one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._since = self._answered_at = self.loop.time()
        self._unread_bytes, self._was_read = 0, False
        self.loop.call_later(_HEADERS_TIMEOUT_S, self._look)
        proxies = self.config.forwarded_allow_ips or ()
        peer = self._peer
        patient = (one for one in self.connections if isinstance(one, _Patient) and not one.transport.is_closing())
        same = [one for one in patient if one._peer == peer]
        if len(same) > _MOST_OF_ONE and not (self.client and is_in(self.client[0], tuple(proxies))):
            idle = [one for one in same if one is not self and (one.cycle is None or one.cycle.response_complete)]
            min(idle, key=lambda one: one._since, default=self).transport.close()

    @property
    def _peer(self) -> str:
        """Who the address counts as."""
        return site_of(self.client[0]) if self.client else ""

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, of which a first byte ends uvicorn's own wait."""
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._was_read = True
        super().resume_writing()

    def _look(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        read_bytes = self._unread_bytes - unread_bytes
        if (
            self._unread_bytes
            and not self._was_read
            and read_bytes < min(self._unread_bytes, _LEAST_BYTES_PER_S * _HEADERS_TIMEOUT_S)
        ):
            self.transport.abort()  # `close` would wait until all is read
            return
        self._unread_bytes, self._was_read = unread_bytes, False
        if self.transport.is_closing() and not unread_bytes:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.loop.time() - self._answered_at >= _HEADERS_TIMEOUT_S:
            self.transport.close()
        self.loop.call_later(_HEADERS_TIMEOUT_S, self._look)


def run(settings: Settings, stop: threading.Event, ready: Callable[..., None], config: Path | None = None) -> None:
    """Serve HTTP, or with web.certificate HTTPS, on web.host and web.port until `stop` is set; calls `ready` once it listens.

    Raises:
        SettingsError: it can't listen there, or the certificate can't be used.
        StoreError: the database can't be used.
    """
    engine = open_database(settings)
    with ExitStack() as opened:
        opened.callback(engine.dispose)
        app = create_app(settings, engine, config)
        opened.callback(close_app, app)
        listener = opened.enter_context(_listen(settings))
        server = uvicorn.Server(_options(settings, app))
        asyncio.run(_serve(settings, app, server, listener, stop, ready))


def _options(settings: Settings, app: FastAPI) -> uvicorn.Config:
    web = settings.web
    if web.key and not web.certificate:
        raise SettingsError("web.key needs web.certificate, the certificate that it belongs to.")
    proxies: list[str] = list(web.trusted_proxies)
    options = uvicorn.Config(
        app,
        http=_Patient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        lifespan="off",
        ssl_certfile=web.certificate,
        ssl_keyfile=web.key,
    )
    try:
        options.load()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"web.certificate, web.key: can't be used ({getattr(error, 'strerror', None) or error}): both have to be PEM files "
            "that this user may read, and belong together."
        ) from error
    return options


def _listen(settings: Settings) -> socket.socket:
    web = settings.web
    try:
        family = socket.getaddrinfo(web.host, web.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((web.host, web.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"web.host, web.port: can't listen on {endpoint(web.host, web.port)} ({error.strerror or error}). Is another program "
            "listening there? Choose another port, or 0 for any."
        ) from error


async def _serve(
    settings: Settings,
    app: FastAPI,
    server: uvicorn.Server,
    listener: socket.socket,
    stop: threading.Event,
    ready: Callable[..., None],
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    host, port = listener.getsockname()[:2]
    ready(host, port, address=_address(settings, app, host, port))
    while not stop.is_set() and not serving.done():
        await asyncio.sleep(_POLL_S)
    server.should_exit = True
    await serving


def _address(settings: Settings, app: FastAPI, host: str, port: int) -> str:
    """What to print: where the page is; while there are no users, the one-time link that leads in."""
    scheme = "https" if settings.web.certificate else "http"
    is_first = not users.are_there(app.state.engine) and not settings.web.oidc.issuer
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    if not is_first:
        return f"{scheme}://{shown}:{port}/"
    app.state.link_key = secrets.token_urlsafe(32)
    return f"{scheme}://{shown}:{port}/enter?key={app.state.link_key} (this link works once, on this machine)"
