"""Runs one role in a process, and the supervisor that starts, watches and stops all roles in order.

Each child holds one end of a socket pair. It reports over it that it is ready, and stops when the other end closes, which
happens even if the supervisor is killed. So no role outlives its supervisor.

Over 300 lines: the processes of a node, from their start to their end, on both sides.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import structlog

from cxr_node import logs
from cxr_node.dicom import routes
from cxr_node.errors import SettingsError, StoreError
from cxr_node.peer_address import endpoint
from cxr_node.receive.transport.processes import LONGEST_END_S
from cxr_node.records import AuditEvent, DataFolder
from cxr_node.security import limits, openness
from cxr_node.settings import Settings
from cxr_node.store import lock
from cxr_node.store.audit_log import audit
from cxr_node.store.backup import check_integrity
from cxr_node.store.database import DatabaseTrouble, open_database, why_commits_may_be_lost
from cxr_node.store.files.instances import make_folders
from cxr_node.store.files.leftovers import remove_leftovers
from cxr_node.store.files.spool_id import has_spool
from cxr_node.store.files.storage import near_folder
from cxr_node.store.views import presence

log = structlog.get_logger()

ROLES = ("receive", "upload", "work", "deliver", "web")
"""In the order in which they are stopped: reception, the emptying of its spool, analysis, delivery, the page."""
_WEB_NEEDS = ("argon2", "authlib", "fastapi", "httpx2", "jinja2", "multipart", "prometheus_client", "uvicorn")

_PIPE_VARIABLE = "CXR_NODE_SUPERVISOR_FD"
_HANDLES_AN_ASSOCIATION = 6
"""Three of its own, and those of the pending connections for each."""
_STOP_GRACE_S = {"receive": LONGEST_END_S + 10.0, "upload": 30.0, "work": 60.0, "deliver": 30.0, "web": 15.0}
"""Longer than each may take: the receivers of one that is killed would go on without it."""
_FIRST_RESTART_S, _LONGEST_RESTART_S, _STEADY_S = 0.5, 30.0, 60.0


def run_role(role: str, settings: Settings, config: Path | None = None) -> None:
    """Run one role in this process until SIGTERM, SIGINT, or the end of its supervisor.

    Args:
        role: one of ROLES.
        settings: the settings tree.
        config: the settings file.

    Raises:
        SettingsError: the role is `web`, and what it needs isn't installed.
    """
    if role == "web" and (reason := why_no_web(settings)):
        raise SettingsError(reason)
    logs.set_up(settings.node.log_level, role)
    limits.disable_core_dumps()
    routes.check_keywords(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pipe = _supervisor_pipe(stop)

    def ready(host: str = "", port: int = 0, tls_port: int | None = None, address: str = "") -> None:
        shown.enter_context(presence.showing(settings.node.data_dir, role))
        limits.set_oom_priority()
        if role == "receive":
            _record(settings, _port_event("network-attached", host, port, tls_port), StoreError, DatabaseTrouble)
        if pipe is not None:
            with suppress(OSError):  # the supervisor is gone: `stop` is being set
                said = {"host": host, "port": port, "tls_port": tls_port, "address": address}
                pipe.sendall(json.dumps(said).encode() + b"\n")
        elif role == "receive":
            print(_ready_line(settings, host, port, tls_port), flush=True)
        elif role == "web":
            print(_web_line(address), flush=True)

    _clear_up(settings)
    limits.raise_file_limit(_HANDLES_AN_ASSOCIATION * settings.receive.max_associations if role == "receive" else 0)
    make_folders(DataFolder(settings.node.data_dir))
    with (
        lock.using(settings.node.data_dir),
        _housekeeping(settings, alone=pipe is None and role == "work"),
        _on_record(settings, role) if pipe is None else nullcontext(),
        ExitStack() as shown,
    ):
        if role == "receive":
            from cxr_node.receive.transport import skipped_imports

            skipped_imports.skip_imports()
            from cxr_node.receive import scp

            try:
                scp.run(settings, stop, ready)
            finally:
                _record(settings, _port_event("network-detached", settings.node.host), StoreError, DatabaseTrouble)
        elif role == "work":
            from cxr_node.node import work

            work.run(settings, stop, ready)
        elif role == "upload":
            from cxr_node.node import upload

            upload.run(settings, stop, ready)
        elif role == "web":
            from cxr_node.web import server

            server.run(settings, stop, ready, config)
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
    limits.disable_core_dumps()
    routes.check_keywords(settings)
    openness.check(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    make_folders(DataFolder(settings.node.data_dir))
    with lock.serving(settings.node.data_dir), _housekeeping(settings, alone=True), _on_record(settings, "serve"):
        children = [Child(role, config) for role in roles_to_run(settings)]
        announcement = _Announcement(settings)
        announced = {"receive": announcement.receives, "web": announcement.shows}
        try:
            for child in children:
                child.start(announced.get(child.role))
            while not stop.wait(0.2):
                for child in children:
                    child.watch(announced.get(child.role))
        finally:
            for child in children:
                child.stop()


def _clear_up(settings: Settings) -> None:
    """Remove copies of objects of the bucket that a role which died had fetched."""
    if settings.storage.url:
        remove_leftovers(near_folder(settings))


def roles_to_run(settings: Settings) -> tuple[str, ...]:
    """What `serve` starts: `upload` where there is a spool; `web` unless it is turned off, or can't run, as the log tells."""
    reason = why_no_web(settings)
    if reason and settings.web.enabled:
        log.warning("the role web is not started", reason=reason)
    left_out = {"web"} if reason else set()
    if not has_spool(settings):
        left_out.add("upload")
    return tuple(role for role in ROLES if role not in left_out)


def why_no_web(settings: Settings) -> str:
    """Why the role `web` can't run here, for a person; empty: it can."""
    if not settings.web.enabled:
        return "web.enabled is false in the settings: set it to true for the page, REST and metrics."
    missing = [name for name in _WEB_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return f"Not installed: {', '.join(missing)}. Install the extra `web` (pip install 'cxr-node[web]')."
    return ""


@contextmanager
def _housekeeping(settings: Settings, *, alone: bool) -> Iterator[None]:
    """Check the database, and run housekeeping for the length of the block, where no supervisor does."""
    if not alone:
        yield
        return
    from cxr_node.audit.keeper import AuditMaintenance
    from cxr_node.node import housekeeping

    engine = open_database(settings)
    with ExitStack() as ending:
        ending.callback(engine.dispose)
        check_integrity(engine)
        if reason := why_commits_may_be_lost(engine):
            log.warning(reason)
        auditor = AuditMaintenance(settings, engine)
        clock = housekeeping.start(settings, engine, auditor)
        ending.callback(clock.shutdown)  # waits for a task that is running: it uses the database
        auditor.start()
        ending.callback(auditor.stop)
        ending.callback(clock.pause)  # before that, so that no other task begins
        yield


@contextmanager
def _on_record(settings: Settings, what: str) -> Iterator[None]:
    """Audit the start and the stop, also a stop by an error; a kill leaves no stop event."""
    try:
        version = metadata.version("cxr-node")
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "of no version"
    detail = f"cxr-node {version}, {what}"
    # a database that can't be used ends the start here, as it would a moment later; a full disk doesn't
    _record(settings, AuditEvent("node-started", user=_user(), host=socket.gethostname()[:255], detail=detail), DatabaseTrouble)
    _note_settings(settings)
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


def _port_event(event: str, host: str, port: int = 0, tls_port: int | None = None) -> AuditEvent:
    ports = [f"port {port}" if port else "", f"TLS on port {tls_port}" if tls_port else ""]
    return AuditEvent(event, user=_user(), host=host[:255], detail=", ".join(filter(None, ports)))


def _note_settings(settings: Settings) -> None:
    """Have the audit log tell which settings are not as they were at the last start."""
    from cxr_node.audit.keeper import note_settings

    try:
        engine = open_database(settings)
        try:
            note_settings(engine, settings, _user())
        finally:
            engine.dispose()
    except (StoreError, DatabaseTrouble, OSError) as error:
        log.error("settings not compared with those of the last start", exc_info=error)


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

    def start(self, on_ready: Callable[[dict[str, Any]], None] | None) -> None:
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

    def watch(self, on_ready: Callable[[dict[str, Any]], None] | None) -> None:
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
            except (OSError, RuntimeError) as error:  # no file handle, process or thread is available now
                log.error("a role can't be started and is tried again", role=self.role, reason=logs.exception_text(error))
                self._end_at_once()
                self.restart_at = now + self.restart_wait_s

    def stop(self) -> None:
        """End the process: by SIGTERM, and after its grace period by SIGKILL, which its leases make harmless."""
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
        """After a start that failed halfway."""
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
    """Prints the ready line, once, whatever is restarted later; and then where the page is, whenever that is started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._done = False
        self._address = ""

    def receives(self, said: dict[str, Any]) -> None:
        """The role `receive` is ready."""
        with self._lock:
            if not self._done:
                self._done = True
                print(_ready_line(self._settings, said["host"], said["port"], said["tls_port"]), flush=True)
                if self._address:
                    print(_web_line(self._address), flush=True)

    def shows(self, said: dict[str, Any]) -> None:
        """The role `web` is ready; a one-time link in its address is valid for this start of it alone."""
        with self._lock:
            self._address = str(said["address"])
            if self._done:
                print(_web_line(self._address), flush=True)


def _ready_line(settings: Settings, host: str, port: int, tls_port: int | None) -> str:
    over_tls = "" if tls_port is None else f", over TLS on {endpoint(host, tls_port)}"
    return f"cxr-node is ready to receive: {settings.node.ae_title} on {endpoint(host, port)}{over_tls}"


def _web_line(address: str) -> str:
    return f"cxr-node serves its web pages at {address}"


def _await_ready(pipe: socket.socket, on_ready: Callable[[dict[str, Any]], None] | None) -> None:
    try:
        with pipe.makefile("rb") as lines:
            line = lines.readline()
    except OSError:
        return
    if line and on_ready is not None:
        on_ready(json.loads(line))


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
