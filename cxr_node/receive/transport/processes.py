"""Receiver processes, and the distribution of connections to them: one interpreter lock is too slow for many associations.

One process accepts (`scp`) and passes each connection over a socket pair to the receiver process with the fewest. The receiver
reports when a connection has ended. Either end of the pair closes when its process dies, however it dies; a receiver process
then shuts down in order. The fork server forks the receivers. They share the data folder and the database, as roles do, and the
memory of what the fork server has imported.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from cxr_node.errors import StoreError
from cxr_node.peer_address import site_of
from cxr_node.receive.transport.fork_server import ForkServer
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store.files.leftovers import remove_leftovers

log = structlog.get_logger()

STARTED, READY, ENDED = b"s", b"r", b"e"
"""What a receiver process says: its process ID, which follows; it can take connections; the one whose number follows is over."""
ASK, ASK_PROVEN, REPLACE = b"a", b"p", b"i"
"""What it asks of a connection, whose number follows: whether its association has a place; likewise, and its sender has shown
a certificate or passcode; whether it may come in the place of an idle one of the same address, which is ending."""
TAKE, TAKE_TLS, YES, NO = b"t", b"T", b"y", b"n"
"""Messages to a receiver: a connection with its number and address, plain or over TLS; an answer with its number."""
LONGEST_MESSAGE = 256
"""An address of IPv6 has at most 45 characters, and a scope."""
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
"""Longer than `Reception.end` takes."""
_FORK_SERVER_END_TIMEOUT_S = 10.0
"""The limit for its receivers to end."""
LONGEST_END_S = _END_TIMEOUT_S + _FORK_SERVER_END_TIMEOUT_S
"""How long `Processes.end` may take; the supervisor of the accepting process has to wait longer."""
_PAUSE_AFTER_DEATH_S = 0.5


class AssociationLimiter(Protocol):
    """What counts associations: `PendingConnections`, or `RemoteLimiter` in a receiver process."""

    def admit(self, number: int, *, has_proven: bool = False, in_anothers_place: bool = False) -> bool:
        """Whether the association that a connection asks for has a place; if so, it is counted."""

    def ended(self, number: int) -> None:
        """A connection is over."""


@dataclass(eq=False)
class _Receiver:
    """Our end of a process's socket pair, and the addresses of the connections that it has."""

    control: socket.socket
    pid: int = 0  # once it has said it
    connections: dict[int, str] = field(default_factory=dict)  # number: address
    said: threading.Event = field(default_factory=threading.Event)  # that it is ready, or nothing before its end
    is_ready: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class Processes:
    """Takes connections as `Reception` does, in processes of their own; one that dies is replaced.

    Args:
        count: how many.
        limiter: admits each association, and is notified when a connection that was taken ends; from any
            thread.
    """

    def __init__(self, count: int, limiter: AssociationLimiter) -> None:
        self._limiter = limiter
        self._lock = threading.Lock()
        self._count = count
        self._has_begun = self._is_ending = False
        self._folder: DataFolder | None = None
        self._receivers: list[_Receiver] = []
        self._fork_server = ForkServer()  # it imports what receivers need while the caller continues

    def begin(self, settings: Settings, address: tuple[str, int]) -> None:
        """Tell the processes what to do, and wait until all are ready.

        Args:
            settings: the settings tree.
            address: where the node listens, host and port.

        Raises:
            StoreError: one of them can't be started, or ended instead; its own log line says why.
        """
        self._folder = DataFolder(settings.node.data_dir)
        self._fork_server.tell(pickle.dumps((settings, address)))  # not JSON, which would lose the secrets
        try:
            receivers = [self._add() for _ in range(self._count)]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"A receiver process can't be started: {_reason_of(error)}.") from error
        for receiver in receivers:
            receiver.said.wait(_START_TIMEOUT_S)
            if not receiver.is_ready:
                raise StoreError("A receiver process did not start; its own log lines say why.")
        self._has_begun = True

    def take(self, number: int, connection: socket.socket, host: str, *, over_tls: bool, is_crowded: bool) -> None:
        """Hand a connection to the process that has the fewest, of those that have started if there are any.

        Where its address has no place left it goes to the process that has most of that: an idle one there may end for it.
        """

        def rank(one: _Receiver) -> tuple[bool, int, int]:
            from_there = sum(site_of(other) == site_of(host) for other in one.connections.values()) if is_crowded else 0
            return not one.is_ready, -from_there, len(one.connections)

        with self._lock:
            for receiver in sorted(self._receivers, key=rank):
                order = (TAKE_TLS if over_tls else TAKE) + f"{number} {host}".encode()
                handle = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [connection.fileno()]))
                try:
                    # not `send_fds`, which forgets its flags, and would wait for one that is stopped
                    receiver.control.sendmsg([order], [handle], socket.MSG_DONTWAIT)
                except OSError:  # it has just died, or is too busy to look: the next one
                    continue
                receiver.connections[number] = host
                return
        log.error("no receiver process accepts a connection")
        self._limiter.ended(number)

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
        self._fork_server.end(_FORK_SERVER_END_TIMEOUT_S)

    def _add(self) -> _Receiver:
        receiver = _Receiver(self._fork_server.fork())
        with self._lock:
            self._receivers.append(receiver)
            if self._is_ending:  # and `end` has not seen this one
                with suppress(OSError):
                    receiver.control.shutdown(socket.SHUT_WR)
        try:
            threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
        except RuntimeError:  # no thread is to be had: without one nobody would see its end
            self._forget(receiver)
            raise
        return receiver

    def _watch(self, receiver: _Receiver) -> None:
        """Listen to a process until it ends; then see to its replacement, whatever goes wrong meanwhile."""
        left = 0
        try:
            self._listen(receiver)
        except Exception:
            log.exception("a receiver process sends invalid messages and is killed")
            self._kill(receiver)
        finally:
            try:
                left = self._forget(receiver)
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
                log.error("a receiver process did not start in time and is killed")
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
            elif said[:1] == ENDED:
                with self._lock:
                    receiver.connections.pop(int(said[1:]), None)
                self._limiter.ended(int(said[1:]))
            else:
                self._answer(receiver, said[:1], int(said[1:]))

    def _answer(self, receiver: _Receiver, question: bytes, number: int) -> None:
        has_free_slot = self._limiter.admit(number, has_proven=question == ASK_PROVEN, in_anothers_place=question == REPLACE)
        with suppress(OSError):  # it has just died; where it is too busy to look, it doesn't wait for the answer for long
            receiver.control.sendmsg([(YES if has_free_slot else NO) + str(number).encode()], [], socket.MSG_DONTWAIT)

    def _kill(self, receiver: _Receiver) -> None:
        if receiver.pid:
            with suppress(ProcessLookupError):  # its end of the socket pair is open, so the ID is still its own
                os.kill(receiver.pid, signal.SIGKILL)
        else:  # it was never forked
            self._fork_server.kill()

    def _forget(self, receiver: _Receiver) -> int:
        """Forget a process, and count its connections as ended; how many there were."""
        with self._lock:
            left, receiver.connections = list(receiver.connections), {}
            self._receivers.remove(receiver)
        receiver.control.close()
        receiver.ended.set()
        receiver.said.set()
        for number in left:
            self._limiter.ended(number)
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
                log.error("a receiver process can't be started", reason=_reason_of(error))


def _reason_of(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
