"""Processes storage commitment requests in the background: which instances are safe here.

Each instance is read completely, which takes minutes for the thousands that a request may list. The response to a request
therefore only confirms that it is recorded; a thread of the same process then works through the requests one by one. `reporting`
processes the requests that a process leaves open when it ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from cxr_node.commitment import reports
from cxr_node.commitment.reports import Report, UndecidedRequest
from cxr_node.errors import CxrNodeError
from cxr_node.peer_address import site_of
from cxr_node.settings import Settings
from cxr_node.store.files.storage import blobs_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_LEFT_TO_ASSOCIATION_S = 60.0
_DAY_S = 86400.0
_END_TIMEOUT_S = 5.0


class _EndedError(CxrNodeError):
    """The process ends."""


class RequestWorker:
    """Decides on requests; `put` leaves one to its thread, which runs while there are any.

    Args:
        settings: the settings tree.
        engine: the database.
        has_free_space: whether the disk has room for what is to be kept.
    """

    def __init__(self, settings: Settings, engine: Engine, has_free_space: Callable[[], bool]) -> None:
        self._settings = settings
        self._engine = engine
        self._blobs = blobs_of(settings)
        self._has_free_space = has_free_space
        self._waiting: deque[tuple[UndecidedRequest, Callable[[Report], None]]] = deque()
        self._last_site = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def put(self, asked: UndecidedRequest, then: Callable[[Report], None]) -> None:
        """Leave a request to the thread, which calls `then` with the report that is owed."""
        with self._lock:
            self._waiting.append((asked, then))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Leave to others what is not decided yet."""
        self._ending.set()
        thread = self._thread
        if thread is not None:
            thread.join(_END_TIMEOUT_S)

    def decide(self, asked: UndecidedRequest) -> Report | None:
        """Find out what of a request is safe here; the report that is owed, or None if another process decides, or
        will since this one ends.

        Where its modality listens, the report is due at once, otherwise it is left to the association of the request for a while.
        """
        is_listening = self._settings.listening_sender(asked.ae_title, asked.host) is not None
        try:
            return reports.decide(
                self._engine,
                self._blobs,
                asked,
                keep_s=self._settings.retention.received_days * _DAY_S,
                has_room=self._has_free_space,
                wait_s=0 if is_listening else _LEFT_TO_ASSOCIATION_S,
                between=self._go_on,
            )
        except _EndedError:
            return None

    def _go_on(self) -> None:
        if self._ending.is_set():
            raise _EndedError("The process ends before a storage commitment request is processed.")

    def _next(self) -> tuple[UndecidedRequest, Callable[[Report], None]]:
        """The oldest request of another address than the last one's, if there is one: many of one keep nobody waiting."""
        place = next((place for place, (one, _) in enumerate(self._waiting) if site_of(one.host) != self._last_site), 0)
        chosen = self._waiting[place]
        del self._waiting[place]
        self._last_site = site_of(chosen[0].host)
        return chosen

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._ending.is_set():
                    self._thread = None
                    return
                asked, then = self._next()
            try:
                report = self.decide(asked)
                if report is not None:
                    log.info(
                        "storage commitment decided",
                        transaction_uid=report.transaction_uid,
                        committed=len(report.committed),
                        failed=len(report.failed),
                    )
                    then(report)
            except Exception:  # its row remains, and `reporting` continues
                log.exception("storage commitment request not processed")
