"""One receiver process: associations on the connections that `processes.Processes` hands over. Not for people to start."""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from contextlib import suppress

from cxr_node.errors import CxrNodeError
from cxr_node.receive import lean


def main() -> None:
    """Take connections until the other end of the socket pair closes, or SIGTERM; then end in order."""
    lean.leave_out()
    from cxr_node import logs
    from cxr_node.receive.processes import ENDED, LONGEST_MESSAGE, READY, REFUSE
    from cxr_node.receive.reception import Reception

    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: control.shutdown(socket.SHUT_RD))
    told = sys.stdin.buffer.read()
    if not told:  # the one that accepts has not come so far
        return
    settings, address = pickle.loads(told)  # noqa: S301 - from the process that started this one
    logs.set_up(settings.node.log_level, "receive")

    def ended(host: str) -> None:
        with suppress(OSError):  # nobody counts any more
            control.send(ENDED + host.encode())

    reception = Reception(settings, address, ended)
    try:
        with suppress(OSError):
            control.send(READY)
        while True:
            order, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
            if not order:
                break
            host = order[1:].decode()
            if not descriptors:  # this process may open no more files
                ended(host)
                continue
            reception.take(socket.socket(fileno=descriptors[0]), host, is_beyond_limit=order[:1] == REFUSE)
    finally:
        reception.end()


if __name__ == "__main__":
    try:
        main()
    except CxrNodeError as error:
        print(f"cxr-node: {error}", file=sys.stderr)
        sys.exit(2)
