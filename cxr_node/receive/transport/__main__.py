"""The fork server of receiver processes, and a receiver process: associations on connections from `processes.Processes`.

Started by the node only.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from cxr_node.errors import CxrNodeError
from cxr_node.receive.transport import skipped_imports

if TYPE_CHECKING:
    from cxr_node.settings import Settings


def main() -> None:
    """Load what receivers need, hear what they are given, and fork them until the process that accepts ends."""
    skipped_imports.skip_imports()
    from cxr_node import logs
    from cxr_node.receive.transport import (
        fork_server,
        reception,  # noqa: F401 - reception is loaded here for every receiver
    )
    from cxr_node.security import limits

    control = socket.socket(fileno=int(sys.argv[1]))
    told = sys.stdin.buffer.read()
    if not told:  # the one that accepts has not come so far
        return
    settings, address = pickle.loads(told)  # noqa: S301 - from the process that started this one
    logs.set_up(settings.node.log_level, "receive")
    own = fork_server.fork_on_order(control)
    if own is not None:
        status = 0
        try:
            _receive(own, settings, address)
        except CxrNodeError as error:
            print(f"cxr-node: {error}", file=sys.stderr)
            status = 2
        limits.end_now(status)


def _receive(control: socket.socket, settings: Settings, address: tuple[str, int]) -> None:
    """Be a receiver: take connections until the other end of the socket pair closes, or SIGTERM; then end in order."""
    from cxr_node.receive.transport.processes import ENDED, LONGEST_MESSAGE, NO, READY, STARTED, TAKE_TLS, YES
    from cxr_node.receive.transport.reception import Reception
    from cxr_node.receive.transport.remote_limiter import RemoteLimiter
    from cxr_node.security import limits
    from cxr_node.store import lock

    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: control.shutdown(socket.SHUT_RD))

    def say(message: bytes) -> None:
        with suppress(OSError):  # nobody listens any more
            control.send(message)

    limiter = RemoteLimiter(say)
    say(STARTED + str(os.getpid()).encode())
    with lock.using(settings.node.data_dir):  # until it ends, which may be long after its parent
        reception = Reception(settings, address, limiter)
        try:
            limits.set_oom_priority()
            say(READY)
            while True:
                try:
                    order, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
                except ConnectionResetError:  # its parent was killed with messages of this process unread
                    break
                if not order:
                    break
                if order[:1] in (YES, NO):
                    limiter.answer(int(order[1:]), is_yes=order[:1] == YES)
                    continue
                number, host = order[1:].decode().split(" ", 1)
                if not descriptors:  # this process may open no more files
                    say(ENDED + number.encode())
                    continue
                with socket.socket(fileno=descriptors[0]) as connection:
                    reception.take(int(number), connection, host, over_tls=order[:1] == TAKE_TLS, is_crowded=False)
        finally:
            reception.end()


if __name__ == "__main__":
    main()
