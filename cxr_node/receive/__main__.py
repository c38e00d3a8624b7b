"""The nursery of receiver processes, and each of these: associations on connections that `processes.Processes` hands over.

Not for people to start.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from cxr_node.errors import CxrNodeError
from cxr_node.receive import lean

if TYPE_CHECKING:
    from cxr_node.settings import Settings


def main() -> None:
    """Load what receivers need, hear what they are given, and fork them until the process that accepts ends."""
    lean.leave_out()
    from cxr_node import logs
    from cxr_node.receive import nursery, reception  # noqa: F401 - reception is loaded here for every receiver

    control = socket.socket(fileno=int(sys.argv[1]))
    told = sys.stdin.buffer.read()
    if not told:  # the one that accepts has not come so far
        return
    settings, address = pickle.loads(told)  # noqa: S301 - from the process that started this one
    logs.set_up(settings.node.log_level, "receive")
    own = nursery.fork_on_order(control)
    if own is not None:
        status = 0
        try:
            _receive(own, settings, address)
        except CxrNodeError as error:
            print(f"cxr-node: {error}", file=sys.stderr)
            status = 2
        _end_with(status)


def _receive(control: socket.socket, settings: Settings, address: tuple[str, int]) -> None:
    """Be a receiver: take connections until the other end of the socket pair closes, or SIGTERM; then end in order."""
    from cxr_node.receive.processes import ENDED, LONGEST_MESSAGE, READY, REFUSE, STARTED
    from cxr_node.receive.reception import Reception
    from cxr_node.store import lock

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: control.shutdown(socket.SHUT_RD))

    def say(message: bytes) -> None:
        with suppress(OSError):  # nobody listens any more
            control.send(message)

    say(STARTED + str(os.getpid()).encode())
    with lock.using(settings.node.data_dir):  # until its own end, which may come long after that of whoever started it
        reception = Reception(settings, address, lambda host: say(ENDED + host.encode()))
        try:
            say(READY)
            while True:
                order, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
                if not order:
                    break
                host = order[1:].decode()
                if not descriptors:  # this process may open no more files
                    say(ENDED + order[1:])
                    continue
                reception.take(socket.socket(fileno=descriptors[0]), host, is_beyond_limit=order[:1] == REFUSE)
        finally:
            reception.end()


def _end_with(status: int) -> NoReturn:
    """End without Python's tidying up, which writes to all that is shared and so takes memory and time."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
