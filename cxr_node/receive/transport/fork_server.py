"""The fork server: a process that has imported what receivers need and forks them, so that they share that memory.

It has one thread, and no lock, database connection or association: a fork would not copy these consistently. Each order arrives
over a socket pair and contains the new receiver's end of another socket pair. No other process keeps that end, so its closing
signals the death of exactly one receiver. The fork server ends when its parent process ends, and its receivers end after it.

Two receivers that share memory take about 70 MB less than two that do not (`benchmarks.receive --parts`).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import structlog

log = structlog.get_logger()

_FORK = b"f"
_LOOK_FOR_DEAD_S = 1.0


class ForkServer:
    """The fork server's handle in the accepting process; a dead one is restarted when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = b""
        self._is_ending = False
        self._start()

    def tell(self, told: bytes) -> None:
        """Say what each receiver process is given; once, before the first `fork`."""
        self._told = told
        self._tell()

    def fork(self) -> socket.socket:
        """Order a receiver process: our end of its socket pair, which closes when it ends, or if it can't be started.

        Raises:
            OSError: there are no file handles, or no process, to be had.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            try:
                self._order(theirs)
            except OSError:
                ours.close()
                raise
        return ours

    def _order(self, theirs: socket.socket) -> None:
        if self._is_ending:
            return
        if self._process.poll() is None:
            with suppress(ConnectionError):  # it is just dying
                socket.send_fds(self._control, [_FORK], [theirs.fileno()])
                return
            self._process.kill()
        log.error("the fork server of receiver processes died and is restarted", exit_status=self._process.wait())
        self._control.close()
        self._start()
        self._tell()
        socket.send_fds(self._control, [_FORK], [theirs.fileno()])

    def kill(self) -> None:
        """End one that doesn't do what it was ordered; the next order starts another, and its receivers live on."""
        with self._lock:
            self._process.kill()

    def end(self, timeout_s: float) -> None:
        """Let it end, which it does after its receivers: end these first."""
        with self._lock:
            self._is_ending = True
        with suppress(OSError):
            self._stdin.close()
        self._control.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("the fork server of receiver processes did not end in time and is killed")
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cxr_node.receive.transport", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C in a terminal reaches the one that accepts alone, which stops in order
            )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin

    def _tell(self) -> None:
        with suppress(OSError), self._stdin:  # of its death, `fork` sees to it
            self._stdin.write(self._told)


def fork_on_order(control: socket.socket) -> socket.socket | None:
    """In the fork server: fork whenever it is ordered. Call it once everything is loaded, and before any thread starts.

    Args:
        control: the fork server's end of its socket pair.

    Returns:
        in each receiver process, its end of its own socket pair; in the fork server None, when all is over.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # it goes when the process that accepts does, after its receivers
        signal.signal(number, signal.SIG_IGN)
    control.settimeout(_LOOK_FOR_DEAD_S)
    gc.collect()
    gc.freeze()  # collecting garbage writes to what it looks at, and what is written to is shared no longer
    while True:
        _reap(os.WNOHANG)
        try:
            order, descriptors, _, _ = socket.recv_fds(control, len(_FORK), 1)
        except TimeoutError:
            continue
        except OSError:
            order = b""
        if not order:
            break
        if not descriptors:  # this process can open no more files; the orderer sees the socket pair close
            continue
        try:
            pid = os.fork()
        except OSError as error:
            log.error("a receiver process can't be started", reason=error.strerror)
            pid = -1
        if pid == 0:
            control.close()
            return socket.socket(fileno=descriptors[0])
        os.close(descriptors[0])
    control.close()
    _reap(0)
    return None


def _reap(options: int) -> None:
    """Take note of receiver processes that have ended: of all until now, or with 0 wait for each."""
    with suppress(ChildProcessError):  # there is none, or none any more
        while (ended := os.waitpid(-1, options))[0]:
            status = os.waitstatus_to_exitcode(ended[1])
            if status:
                log.error("a receiver process ended", pid=ended[0], exit_status=status)
