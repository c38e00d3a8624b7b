"""The receive role: a Storage and Verification SCP, from listening to an orderly shutdown."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import structlog

from cxr_node.dicom.passcode import check_senders
from cxr_node.dicom.tls import listening_context
from cxr_node.errors import SettingsError
from cxr_node.peer_address import endpoint, plain_address
from cxr_node.receive.transport.pending_connections import PendingConnections
from cxr_node.receive.transport.processes import Processes
from cxr_node.receive.transport.rejections import RejectionWriter
from cxr_node.records import DataFolder
from cxr_node.security import openness
from cxr_node.settings import Settings
from cxr_node.store.database import open_database
from cxr_node.store.files.leftovers import remove_leftovers

if TYPE_CHECKING:
    from cxr_node.receive.transport.reception import Reception

log = structlog.get_logger()

_MOST_PROCESSES = 4
"""Where the settings leave their number to the node: the disk, not the processor, is the limit of more."""
_WAITING_CONNECTIONS = 128
_LOOK_FOR_STOP_S = 0.2
_PAUSE_WITHOUT_HANDLES_S = 0.1
_PLAIN, _SPEAKS_TLS = "plain", "TLS"
"""Marks of the sockets that listen, where the selector has a number for each pending connection."""


def run(settings: Settings, stop: threading.Event, ready: Callable[[str, int, int | None], None]) -> None:
    """Receive until `stop` is set.

    1. bring the database up to date and remove what a receiver that died left half-received
    2. listen, and say so: `ready(host, port, tls_port)`; the last is None unless TLS has a port of its own
    3. hand each connection that asks for an association on, to one of several processes or to this one (`pending_connections`)
    4. on stop: listen no more, let associations end for some seconds, abort those that don't

    A C-STORE that is being answered at the stop is stored and answered first; one that is still arriving is dropped
    without a response, so its sender keeps it.

    Raises:
        StoreError: the data folder or the database can't be used.
        SettingsError: the node can't listen where the settings say, or a file that [tls] or [[senders]] names is unfit.
    """
    openness.check(settings)
    for severity, text in openness.exposure_notices(settings):
        (log.warning if severity == "warning" else log.info)(text)
    count = settings.receive.processes or min(_MOST_PROCESSES, os.cpu_count() or 1)
    selector = selectors.DefaultSelector()
    rejections = RejectionWriter(settings)
    pending = PendingConnections(settings, selector, rejections)
    handler: Processes | Reception | None = Processes(count, pending) if count > 1 else None
    try:
        open_database(settings).dispose()
        removed = remove_leftovers(DataFolder(settings.node.data_dir).incoming)
        if removed:
            log.warning("half-received files of an earlier run removed", count=removed)
        if settings.tls.listen:
            listening_context(settings.tls)  # what is wrong with its files is said here, once
        check_senders(settings)
        with ExitStack() as open_sockets, selector:
            listening = open_sockets.enter_context(_listen(settings, "node.port", settings.node.port))
            selector.register(
                listening, selectors.EVENT_READ, _SPEAKS_TLS if settings.tls.listen and settings.tls.port is None else _PLAIN
            )
            address, tls_port = listening.getsockname(), None
            if settings.tls.listen and settings.tls.port is not None:
                over_tls = open_sockets.enter_context(_listen(settings, "tls.port", settings.tls.port))
                selector.register(over_tls, selectors.EVENT_READ, _SPEAKS_TLS)
                tls_port = over_tls.getsockname()[1]
            if isinstance(handler, Processes):
                handler.begin(settings, address)
            else:
                from cxr_node.receive.transport.reception import Reception  # this process needs none of it if it only hands on

                handler = Reception(settings, address, pending)
            pending.handler = handler
            ready(settings.node.host, address[1], tls_port)
            while not stop.is_set():
                _take_turn(selector, pending)
            pending.close()
    finally:
        if handler is not None:
            handler.end()
        rejections.end()


def _take_turn(selector: selectors.BaseSelector, pending: PendingConnections) -> None:
    """See to what has come, those that are pending first: who waits there came first."""
    ready = selector.select(_LOOK_FOR_STOP_S)
    for key, _ in ready:
        if key.data not in (_PLAIN, _SPEAKS_TLS):
            pending.on_readable(key.data)
    for key, _ in ready:
        if key.data in (_PLAIN, _SPEAKS_TLS):
            connection, host = _accept(cast("socket.socket", key.fileobj))
            if connection is None:
                continue
            try:
                pending.add(connection, host, over_tls=key.data == _SPEAKS_TLS)
            except OSError as error:  # the peer has gone again, or no file handle is left
                log.error("connection not accepted", reason=str(error))
                connection.close()
    pending.close_expired()


def _listen(settings: Settings, key: str, port: int) -> socket.socket:
    try:
        # a name such as "localhost" is looked up
        family, _, _, _, address = socket.getaddrinfo(settings.node.host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_WAITING_CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"node.host, {key}: can't listen on {endpoint(settings.node.host, port)} ({error.strerror or error}). "
            "Is another program listening there? Ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)."
        ) from error
    listening.setblocking(False)  # a peer may have gone again between the selector's word and `accept`
    return listening


def _accept(listening: socket.socket) -> tuple[socket.socket | None, str]:
    """A connection and the address that it comes from, if there is one."""
    try:
        connection, address = listening.accept()
    except BlockingIOError:
        return None, ""
    except OSError as error:  # no file handle is left, or the peer has gone again
        log.error("connection not accepted", reason=str(error))
        time.sleep(_PAUSE_WITHOUT_HANDLES_S)
        return None, ""
    connection.setblocking(True)
    return connection, plain_address(str(address[0]))
