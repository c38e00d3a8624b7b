"""Receiver processes, and how connections are handed to them: under one interpreter lock several associations are slow.

One process accepts (`scp`), and hands each connection over a socket pair to the receiver process that has the fewest. The
other end tells when a connection is over. Either end closes when its process dies, however it dies; for a receiver process
that means to end in order. What the processes share is the data folder and the database, as roles do.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from cxr_node.errors import StoreError
from cxr_node.receive.leftovers import remove_leftovers
from cxr_node.records import DataFolder
from cxr_node.settings import Settings

log = structlog.get_logger()

READY, ENDED = b"r", b"e"
"""What a receiver process says: it can take connections; one of them is over, of the address that follows."""
TAKE, REFUSE = b"t", b"x"
"""What it is told with a connection and its address; REFUSE: there are too many already."""
LONGEST_MESSAGE = 256
"""An address of IPv6 has at most 45 characters, and a scope."""
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
"""Longer than `Reception.end` takes."""
_PAUSE_AFTER_DEATH_S = 0.5


@dataclass(eq=False)
class _Receiver:
    """A process, our end of its socket pair, and the addresses of the connections that it has."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    connections: Counter[str] = field(default_factory=Counter)
    said: threading.Event = field(default_factory=threading.Event)  # that it is ready, or nothing before its end
    is_ready: bool = False


class Processes:
    """Takes connections as `Reception` does, in processes of their own; one that dies is replaced.

    Args:
        count: how many.
        ended: called with its address, once for each connection that was taken, when it is over; from any thread.
    """

    def __init__(self, count: int, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._lock = threading.Lock()
        self._is_ending = False
        self._folder: DataFolder | None = None
        self._told = b""
        self._receivers = [_start() for _ in range(count)]  # they import what they need while the caller goes on

    def begin(self, settings: Settings, address: tuple[str, int]) -> None:
        """Tell the processes what to do, and wait until all are ready.

        Args:
            settings: the settings tree.
            address: where the node listens, host and port.

        Raises:
            StoreError: one of them ended instead; its own log line says why.
        """
        self._folder = DataFolder(settings.node.data_dir)
        self._told = pickle.dumps((settings, address))  # not JSON, which would lose the secrets
        for receiver in self._receivers:
            self._watch(receiver)
        for receiver in self._receivers:
            receiver.said.wait(_START_TIMEOUT_S)
            if not receiver.is_ready:
                raise StoreError("A receiver process did not start; its own log lines say why.")

    def take(self, connection: socket.socket, host: str, *, is_beyond_limit: bool) -> None:
        """Hand a connection to the process that has the fewest, of those that have started if there are any."""
        with connection, self._lock:
            for receiver in sorted(self._receivers, key=lambda one: (not one.is_ready, one.connections.total())):
                order = (REFUSE if is_beyond_limit else TAKE) + host.encode()
                try:
                    socket.send_fds(receiver.control, [order], [connection.fileno()])
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
            with suppress(OSError):
                receiver.process.stdin.close()  # type: ignore[union-attr] # it is a pipe; one that was told nothing reads on
        deadline = time.monotonic() + _END_TIMEOUT_S
        for receiver in receivers:
            try:
                receiver.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("a receiver process did not end in time and is killed")
                receiver.process.kill()
                receiver.process.wait()
            receiver.control.close()

    def _watch(self, receiver: _Receiver) -> None:
        threading.Thread(target=self._attend, args=(receiver,), daemon=True).start()

    def _attend(self, receiver: _Receiver) -> None:
        """Listen to a process until it ends; then see to its replacement."""
        with suppress(OSError), receiver.process.stdin as instructions:  # type: ignore[union-attr] # it is a pipe
            instructions.write(self._told)
        with suppress(OSError):
            while said := receiver.control.recv(LONGEST_MESSAGE):
                if said == READY:
                    receiver.is_ready = True
                    receiver.said.set()
                else:
                    host = said[1:].decode()
                    with self._lock:
                        receiver.connections[host] -= 1
                    self._ended(host)
        receiver.said.set()
        status = receiver.process.wait()
        with self._lock:
            left, receiver.connections = list(receiver.connections.elements()), Counter()
            self._receivers.remove(receiver)
        for host in left:
            self._ended(host)
        if receiver.is_ready and not self._is_ending:
            log.error("a receiver process died and is replaced", exit_status=status, associations=len(left))
            receiver.control.close()
            self._replace()

    def _replace(self) -> None:
        time.sleep(_PAUSE_AFTER_DEATH_S)  # one that keeps dying doesn't take the processor
        assert self._folder is not None
        removed = remove_leftovers(self._folder.incoming)
        if removed:
            log.warning("half-received files of a receiver process removed", count=removed)
        with self._lock:
            if self._is_ending:
                return
            receiver = _start()
            self._receivers.append(receiver)
        self._watch(receiver)


def _start() -> _Receiver:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "cxr_node.receive", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # Ctrl-C in a terminal reaches the one that accepts alone, which stops in order
        )
    return _Receiver(process, ours)
