"""Receiver processes, and how connections are handed to them: under one interpreter lock several associations are slow.

One process accepts (`scp`), and hands each connection over a socket pair to the receiver process that has the fewest. The
other end tells when a connection is over. Either end closes when its process dies, however it dies; for a receiver process
that means to end in order. The `nursery` forks them. What they share is the data folder and the database, as roles do, and
the memory of what the nursery has loaded.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from cxr_node.errors import StoreError
from cxr_node.receive.leftovers import remove_leftovers
from cxr_node.receive.nursery import Nursery
from cxr_node.records import DataFolder
from cxr_node.settings import Settings

log = structlog.get_logger()

STARTED, READY, ENDED = b"s", b"r", b"e"
"""What a receiver process says: its process ID, which follows; it can take connections; one of them is over, of the address
that follows."""
TAKE, REFUSE = b"t", b"x"
"""What it is told with a connection and its address; REFUSE: there are too many already."""
LONGEST_MESSAGE = 256
"""An address of IPv6 has at most 45 characters, and a scope."""
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
"""Longer than `Reception.end` takes."""
_NURSERY_END_TIMEOUT_S = 10.0
"""Its receivers have ended when it is told to."""
LONGEST_END_S = _END_TIMEOUT_S + _NURSERY_END_TIMEOUT_S
"""How long `Processes.end` may take; whoever stops the process that accepts has to wait longer."""
_PAUSE_AFTER_DEATH_S = 0.5


@dataclass(eq=False)
class _Receiver:
    """Our end of a process's socket pair, and the addresses of the connections that it has."""

    control: socket.socket
    pid: int = 0  # once it has said it
    connections: Counter[str] = field(default_factory=Counter)
    said: threading.Event = field(default_factory=threading.Event)  # that it is ready, or nothing before its end
    is_ready: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class Processes:
    """Takes connections as `Reception` does, in processes of their own; one that dies is replaced.

    Args:
        count: how many.
        ended: called with its address, once for each connection that was taken, when it is over; from any thread.
    """

    def __init__(self, count: int, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._lock = threading.Lock()
        self._count = count
        self._has_begun = self._is_ending = False
        self._folder: DataFolder | None = None
        self._receivers: list[_Receiver] = []
        self._nursery = Nursery()  # it loads what receivers need while the caller goes on

    def begin(self, settings: Settings, address: tuple[str, int]) -> None:
        """Tell the processes what to do, and wait until all are ready.

        Args:
            settings: the settings tree.
            address: where the node listens, host and port.

        Raises:
            StoreError: one of them can't be started, or ended instead; its own log line says why.
        """
        self._folder = DataFolder(settings.node.data_dir)
        self._nursery.tell(pickle.dumps((settings, address)))  # not JSON, which would lose the secrets
        try:
            receivers = [self._add() for _ in range(self._count)]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"A receiver process can't be started: {_in_words(error)}.") from error
        for receiver in receivers:
            receiver.said.wait(_START_TIMEOUT_S)
            if not receiver.is_ready:
                raise StoreError("A receiver process did not start; its own log lines say why.")
        self._has_begun = True

    def take(self, connection: socket.socket, host: str, *, is_beyond_limit: bool) -> None:
        """Hand a connection to the process that has the fewest, of those that have started if there are any."""
        with connection, self._lock:
            for receiver in sorted(self._receivers, key=lambda one: (not one.is_ready, one.connections.total())):
                order = (REFUSE if is_beyond_limit else TAKE) + host.encode()
                handle = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [connection.fileno()]))
                try:
                    # not `send_fds`, which forgets its flags, and would wait for one that is stopped
                    receiver.control.sendmsg([order], [handle], socket.MSG_DONTWAIT)
                except OSError:  # it has just died, or is too busy to look: the next one
                    continue
                receiver.connections[host] += 1
                return
        log.error("no receiver process takes a connection")
        self._ended(host)

    def end(self) -> None:
        """Let the processes end their associations and themselves."""
        with self._lock:
            self._is_ending = True
            receivers = list(self._receivers)
        for receiver in receivers:
            with suppress(OSError):
                receiver.control.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _END_TIMEOUT_S
        for receiver in receivers:
            if not receiver.ended.wait(max(0.0, deadline - time.monotonic())):
                log.error("a receiver process did not end in time and is killed")
                self._kill(receiver)
        self._nursery.end(_NURSERY_END_TIMEOUT_S)

    def _add(self) -> _Receiver:
        receiver = _Receiver(self._nursery.fork())
        with self._lock:
            self._receivers.append(receiver)
            if self._is_ending:  # and `end` has not seen this one
                with suppress(OSError):
                    receiver.control.shutdown(socket.SHUT_WR)
        try:
            threading.Thread(target=self._attend, args=(receiver,), daemon=True).start()
        except RuntimeError:  # no thread is to be had: without one nobody would see its end
            self._take_leave(receiver)
            raise
        return receiver

    def _attend(self, receiver: _Receiver) -> None:
        """Listen to a process until it ends; then see to its replacement, whatever goes wrong meanwhile."""
        left = 0
        try:
            self._listen(receiver)
        except Exception:
            log.exception("a receiver process is not understood and is given up")
            self._kill(receiver)
        finally:
            try:
                left = self._take_leave(receiver)
            finally:
                if (receiver.is_ready or self._has_begun) and not self._is_ending:
                    log.error("a receiver process died and is replaced", associations=left)
                    self._replace()

    def _listen(self, receiver: _Receiver) -> None:
        """Take in what a process says, until it ends or has not become ready in time."""
        receiver.control.settimeout(_START_TIMEOUT_S)
        while True:
            try:
                said = receiver.control.recv(LONGEST_MESSAGE)
            except TimeoutError:
                log.error("a receiver process did not start in time and is given up")
                self._kill(receiver)
                return
            except OSError:
                return
            if not said:
                return
            if said[:1] == STARTED:
                receiver.pid = int(said[1:])
            elif said == READY:
                receiver.control.settimeout(None)
                receiver.is_ready = True
                receiver.said.set()
            else:
                host = said[1:].decode()
                with self._lock:
                    receiver.connections[host] -= 1
                self._ended(host)

    def _kill(self, receiver: _Receiver) -> None:
        if receiver.pid:
            with suppress(ProcessLookupError):  # its end of the socket pair is open, so the ID is still its own
                os.kill(receiver.pid, signal.SIGKILL)
        else:  # it was never forked
            self._nursery.kill()

    def _take_leave(self, receiver: _Receiver) -> int:
        """Forget a process, and count its connections as ended; how many there were."""
        with self._lock:
            left, receiver.connections = list(receiver.connections.elements()), Counter()
            self._receivers.remove(receiver)
        receiver.control.close()
        receiver.ended.set()
        receiver.said.set()
        for host in left:
            self._ended(host)
        return len(left)

    def _replace(self) -> None:
        """Start another process, however often that has to be tried."""
        assert self._folder is not None
        is_replaced = False
        while not is_replaced:
            time.sleep(_PAUSE_AFTER_DEATH_S)  # one that keeps dying doesn't take the processor
            if self._is_ending:
                return
            try:
                removed = remove_leftovers(self._folder.incoming)
                if removed:
                    log.warning("half-received files of a receiver process removed", count=removed)
            except Exception:  # the next start removes them
                log.exception("half-received files of a receiver process not removed")
            try:
                self._add()
                is_replaced = True
            except Exception as error:  # no file handles, no process or no thread are to be had now
                log.error("a receiver process can't be started", reason=_in_words(error))


def _in_words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
