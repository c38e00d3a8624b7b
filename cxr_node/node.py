"""The roles as processes: how one is run, and the supervisor that starts, watches and stops them in order.

Each child holds one end of a socket pair: over it it says that it is ready, and it stops when the other end closes,
which the system does even if the supervisor is killed. So no role outlives its supervisor.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import structlog

from cxr_node import limits, logs, routes
from cxr_node.errors import StoreError
from cxr_node.receive.processes import LONGEST_END_S
from cxr_node.records import AuditEvent, DataFolder
from cxr_node.settings import Settings
from cxr_node.store import audit, lock
from cxr_node.store.backup import check_integrity
from cxr_node.store.database import DatabaseTrouble, open_database, why_commits_may_be_lost
from cxr_node.store.instances import make_folders

log = structlog.get_logger()

ROLES = ("receive", "work", "deliver")
"""In the order in which they are stopped: first nothing new comes in, then what came is finished, then sent."""

_PIPE_VARIABLE = "CXR_NODE_SUPERVISOR_FD"
_HANDLES_AN_ASSOCIATION = 3
_STOP_GRACE_S = {"receive": LONGEST_END_S + 10.0, "work": 60.0, "deliver": 30.0}
"""Longer than each may take: the receivers of one that is killed would go on without it."""
_FIRST_RESTART_S, _LONGEST_RESTART_S, _STEADY_S = 0.5, 30.0, 60.0


def run_role(role: str, settings: Settings) -> None:
    """Run one role in this process until SIGTERM, SIGINT, or the end of its supervisor.

    Args:
        role: one of ROLES.
        settings: the settings tree.
    """
    logs.set_up(settings.node.log_level, role)
    routes.check_keywords(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pipe = _supervisor_pipe(stop)

    def ready(host: str = "", port: int = 0) -> None:
        if pipe is not None:
            with suppress(OSError):  # the supervisor is gone: `stop` is being set
                pipe.sendall(json.dumps({"host": host, "port": port}).encode() + b"\n")
        elif role == "receive":
            print(_ready_line(settings, host, port), flush=True)

    limits.have_file_handles(_HANDLES_AN_ASSOCIATION * settings.receive.max_associations if role == "receive" else 0)
    make_folders(DataFolder(settings.node.data_dir))
    with (
        lock.using(settings.node.data_dir),
        _house(settings, alone=pipe is None and role == "work"),
        _on_record(settings, role) if pipe is None else nullcontext(),
    ):
        if role == "receive":
            from cxr_node.receive import lean

            lean.leave_out()
            from cxr_node.receive import scp

            scp.run(settings, stop, ready)
        elif role == "work":
            from cxr_node import work

            work.run(settings, stop, ready)
        else:
            from cxr_node.deliver import loop

            loop.run(settings, stop, ready)


def serve(settings: Settings, config: Path | None) -> None:
    """Run all roles until SIGTERM or SIGINT, restarting one that dies; prints one line when ready to receive.

    Args:
        settings: the settings tree, already loaded from `config`.
        config: the settings file, handed on to the roles.

    Raises:
        StoreError: another node runs on this data folder, the folder can't be used, or the database is damaged.
    """
    logs.set_up(settings.node.log_level, "serve")
    routes.check_keywords(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    make_folders(DataFolder(settings.node.data_dir))
    with lock.serving(settings.node.data_dir), _house(settings, alone=True), _on_record(settings, "serve"):
        children = [Child(role, config) for role in ROLES]
        announced = _Announcement(settings)
        try:
            for child in children:
                child.start(announced if child.role == "receive" else None)
            while not stop.wait(0.2):
                for child in children:
                    child.watch(announced if child.role == "receive" else None)
        finally:
            for child in children:
                child.stop()


@contextmanager
def _house(settings: Settings, *, alone: bool) -> Iterator[None]:
    """Where no supervisor does it: see whether the database is whole, and keep house for the length of the block."""
    if not alone:
        yield
        return
    from cxr_node import housekeeping

    engine = open_database(settings)
    check_integrity(engine)
    if reason := why_commits_may_be_lost(engine):
        log.warning(reason)
    clock = housekeeping.start(settings, engine)
    try:
        yield
    finally:
        clock.shutdown(wait=False)
        engine.dispose()


@contextmanager
def _on_record(settings: Settings, what: str) -> Iterator[None]:
    """Have the audit log tell of the start and the stop, and of an end by an error; a kill leaves no stop."""
    try:
        version = metadata.version("cxr-node")
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "of no version"
    detail = f"cxr-node {version}, {what}"
    # a database that can't be used ends the start here, as it would a moment later; a full disk doesn't
    _record(settings, AuditEvent("node-started", user=_user(), host=socket.gethostname()[:255], detail=detail), DatabaseTrouble)
    outcome = "failure"
    try:
        yield
        outcome = "success"
    finally:
        event = AuditEvent("node-stopped", outcome, user=_user(), host=socket.gethostname()[:255], detail=detail)
        _record(settings, event, StoreError, DatabaseTrouble)


def _record(settings: Settings, event: AuditEvent, *forgiven: type[Exception]) -> None:
    try:
        engine = open_database(settings)
        try:
            audit.record(engine, event)
        finally:
            engine.dispose()
    except forgiven as error:
        log.error("start or stop not recorded", what=event.event, exc_info=error)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return f"uid {os.getuid()}"


@dataclass
class Child:
    """A role's process and what is needed to restart it."""

    role: str
    config: Path | None
    process: subprocess.Popen[bytes] | None = None
    pipe: socket.socket | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    restart_wait_s: float = field(default=_FIRST_RESTART_S)

    def start(self, on_ready: Callable[[str, int], None] | None) -> None:
        """Start the process; `on_ready` is called from a thread when it says that it is."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "cxr_node", self.role]
        if self.config is not None:
            command += ["--config", str(self.config)]
        self.pipe = ours
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, _PIPE_VARIABLE: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone, which stops in order
            )
        self.started_at = time.monotonic()
        threading.Thread(target=_await_ready, args=(ours, on_ready), daemon=True).start()

    def watch(self, on_ready: Callable[[str, int], None] | None) -> None:
        """Restart the process if it died, after a wait that grows while it keeps dying."""
        now = time.monotonic()
        if self.process is not None:
            if self.process.poll() is None:
                if now - self.started_at > _STEADY_S:
                    self.restart_wait_s = _FIRST_RESTART_S
                return
            log.error("a role died and is restarted", died=self.role, exit_status=self.process.returncode)
            self._close()
            self.process = None
            self.restart_at = now + self.restart_wait_s
            self.restart_wait_s = min(_LONGEST_RESTART_S, self.restart_wait_s * 2)
        if now >= self.restart_at:
            try:
                self.start(on_ready)
            except (OSError, RuntimeError) as error:  # no file handles, no process or no thread are to be had now
                log.error("a role can't be started and is tried again", role=self.role, reason=logs.explain(error))
                self._end_at_once()
                self.restart_at = now + self.restart_wait_s

    def stop(self) -> None:
        """End the process: politely, and after its grace with force (its leases make that harmless)."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_GRACE_S[self.role])
            except subprocess.TimeoutExpired:
                log.error("a role did not stop in time and is killed", killed=self.role)
                self.process.kill()
                self.process.wait()
        self._close()

    def _end_at_once(self) -> None:
        """After a start that came half way."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self._close()

    def _close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None


class _Announcement:
    """Prints the ready line, once, whatever is restarted later."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._done = False

    def __call__(self, host: str, port: int) -> None:
        if not self._done:
            self._done = True
            print(_ready_line(self._settings, host, port), flush=True)


def _ready_line(settings: Settings, host: str, port: int) -> str:
    return f"cxr-node is ready to receive: {settings.node.ae_title} on {host}:{port}"


def _await_ready(pipe: socket.socket, on_ready: Callable[[str, int], None] | None) -> None:
    try:
        with pipe.makefile("rb") as lines:
            line = lines.readline()
    except OSError:
        return
    if line and on_ready is not None:
        said = json.loads(line)
        on_ready(said["host"], said["port"])


def _supervisor_pipe(stop: threading.Event) -> socket.socket | None:
    """The end of the socket pair that the supervisor gave, watched for its closing; None for a role run alone."""
    descriptor = os.environ.pop(_PIPE_VARIABLE, None)
    if descriptor is None:
        return None
    pipe = socket.socket(fileno=int(descriptor))
    os.set_inheritable(pipe.fileno(), False)

    def watch() -> None:
        try:
            while pipe.recv(1):
                pass
        except OSError:
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    return pipe
