"""The receive role: a Storage and Verification SCP, from listening to an orderly end."""

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

from cxr_node.errors import SettingsError
from cxr_node.passcode import check_senders
from cxr_node.receive.guard import Place, Places
from cxr_node.receive.leftovers import remove_leftovers
from cxr_node.receive.processes import Processes
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store.database import open_database
from cxr_node.tls import listening_context

if TYPE_CHECKING:
    from cxr_node.receive.reception import Reception

log = structlog.get_logger()

_MOST_PROCESSES = 4
"""Where the settings leave their number to the node: the disk, not the processor, is the limit of more."""
_WAITING_CONNECTIONS = 128
_LOOK_FOR_STOP_S = 0.2
_PAUSE_WITHOUT_HANDLES_S = 0.1


def run(settings: Settings, stop: threading.Event, ready: Callable[[str, int, int | None], None]) -> None:
    """Receive until `stop` is set.

    1. bring the database up to date and remove what a receiver that died left half-received
    2. listen, and say so: `ready(host, port, tls_port)`; the last is None unless TLS has a port of its own
    3. hand each connection on, to one of several processes or to this one
    4. on stop: listen no more, let associations end for some seconds, abort those that don't

    A C-STORE that is being answered at the stop is stored and answered first; one that is still arriving is dropped
    without a response, so its sender keeps it.

    Raises:
        StoreError: the data folder or the database can't be used.
        SettingsError: the node can't listen where the settings say, or a file that [tls] or [[senders]] names is unfit.
    """
    places = Places(settings.receive)
    count = settings.receive.processes or min(_MOST_PROCESSES, os.cpu_count() or 1)
    takers: Processes | Reception | None = Processes(count, places.leave) if count > 1 else None
    try:
        open_database(settings).dispose()
        removed = remove_leftovers(DataFolder(settings.node.data_dir).incoming)
        if removed:
            log.warning("half-received files of an earlier run removed", count=removed)
        if settings.tls.listen:
            listening_context(settings.tls)  # what is wrong with its files is said here, once
        check_senders(settings)
        with ExitStack() as open_sockets, selectors.DefaultSelector() as selector:
            listening = open_sockets.enter_context(_listen(settings, "node.port", settings.node.port))
            selector.register(listening, selectors.EVENT_READ, settings.tls.listen and settings.tls.port is None)
            address, tls_port = listening.getsockname(), None
            if settings.tls.listen and settings.tls.port is not None:
                over_tls = open_sockets.enter_context(_listen(settings, "tls.port", settings.tls.port))
                selector.register(over_tls, selectors.EVENT_READ, True)
                tls_port = over_tls.getsockname()[1]
            if isinstance(takers, Processes):
                takers.begin(settings, address)
            else:
                from cxr_node.receive.reception import Reception  # this process needs none of it if it only hands on

                takers = Reception(settings, address, places.leave)
            ready(settings.node.host, address[1], tls_port)
            while not stop.is_set():
                for key, _ in selector.select(_LOOK_FOR_STOP_S):
                    connection, host = _accept(cast("socket.socket", key.fileobj))
                    if connection is None:
                        continue
                    place = places.enter(host)
                    if place is Place.NONE:
                        log.warning("connection closed: there are too many", host=host)
                        connection.close()
                    else:
                        takers.take(connection, host, over_tls=key.data, is_beyond_limit=place is Place.TO_BE_REFUSED)
    finally:
        if takers is not None:
            takers.end()


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
            f"node.host, {key}: can't listen on {settings.node.host}:{port} ({error.strerror or error}). "
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
    return connection, str(address[0])
