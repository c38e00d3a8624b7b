"""Sends the audit log to its repositories: one thread for each, in chain order, from its last position.

Nothing is kept in memory: after a crash a thread continues from the position in the database.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from cxr_node.audit.messages import MessageSource, audit_message, event_time
from cxr_node.audit.syslog import send, syslog_message
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.settings import RepositorySettings, Settings
from cxr_node.store import lock
from cxr_node.store.audit_log import audit_chain, audit_repositories
from cxr_node.store.database import DatabaseTrouble
from cxr_node.store.queue import leases
from cxr_node.store.queue.host_leases import HostLeases

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

BATCH = 200
"""Messages that are confirmed together, and sent again together if they aren't."""

_CHECK_INTERVAL_S = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 60.0
_LAST_WORDS_S = 5.0
"""How long a stopping node continues to send."""


class RepositorySender:
    """Threads that send to all repositories of the settings, until `stop`."""

    def __init__(self, settings: Settings, engine: Engine, host_leases: HostLeases | None = None) -> None:
        self._settings, self._engine = settings, engine
        self._leases = host_leases or HostLeases(engine, leases.owner_name(settings.node.data_dir))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(repository,), name=f"audit to {repository.name}", daemon=True)
            for repository in settings.audit.repositories
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have each send what is left, for some seconds, and end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_LAST_WORDS_S + 1)

    def _run(self, repository: RepositorySettings) -> None:
        root = self._settings.node.data_dir
        with ExitStack() as held:
            while True:  # one process at a time sends to a repository
                try:
                    held.enter_context(lock.sending_audit(root, self._settings.audit.repositories.index(repository)))
                    break
                except StoreError:
                    if self._stop.wait(_CHECK_INTERVAL_S):
                        return
            wait_s = 0.0
            trouble = ""
            while not self._stop.wait(wait_s or _CHECK_INTERVAL_S):
                wait_s, trouble = self._send(repository, wait_s, trouble)
            if not wait_s:
                self._say_last_words(repository)

    def _send(self, repository: RepositorySettings, waited_s: float, trouble: str) -> tuple[float, str]:
        """Send all there is; how long to wait after trouble, and which it is."""
        try:
            while self._is_mine(repository) and send_batch(self._engine, self._settings, repository) and not self._stop.is_set():
                pass
        except (CxrNodeError, DatabaseTrouble) as error:
            if str(error) != trouble:
                log.warning("audit log not sent", repository=repository.name, reason=str(error))
                self._note(repository, str(error))
            return min(_LONGEST_WAIT_S, waited_s * 2 or _FIRST_WAIT_S), str(error)
        except Exception as error:  # whatever it is, the log has to go on
            if str(error) != trouble:
                log.exception("audit log not sent", repository=repository.name)
                self._note(repository, f"an error of the node ({type(error).__name__}), whose log has more")
            return min(_LONGEST_WAIT_S, waited_s * 2 or _FIRST_WAIT_S), str(error)
        if trouble:
            log.info("audit log sent again", repository=repository.name)
        return 0.0, ""

    def _say_last_words(self, repository: RepositorySettings) -> None:
        ends_at = time.monotonic() + _LAST_WORDS_S
        try:
            while time.monotonic() < ends_at and self._is_mine(repository):
                if not send_batch(self._engine, self._settings, repository):
                    return
        except (CxrNodeError, DatabaseTrouble) as error:  # what is left is sent after the next start
            log.warning("audit log not sent", repository=repository.name, reason=str(error))

    def _is_mine(self, repository: RepositorySettings) -> bool:
        return self._leases.holds(f"audit to {repository.name}")

    def _note(self, repository: RepositorySettings, reason: str) -> None:
        try:
            audit_repositories.note_trouble(self._engine, repository.name, reason)
        except DatabaseTrouble:
            log.exception("trouble with a repository not recorded", repository=repository.name)


def send_batch(engine: Engine, settings: Settings, repository: RepositorySettings) -> int:
    """Send the next messages, and note that the repository has them; how many.

    Raises:
        RepositoryError: it didn't confirm that it has them.
        SettingsError: certificates are missing or unfit.
    """
    after = audit_repositories.position(engine, repository.name)
    found = list(islice(audit_chain.links(engine, after, after + BATCH), BATCH))
    if not found:
        return 0
    origin = MessageSource.of(settings)
    messages = [
        syslog_message(audit_message(one.row, origin), event_time(one.row), one.seq) for one in found if one.row is not None
    ]
    send(settings, repository, messages)
    audit_repositories.note_sent(engine, repository.name, found[-1].seq, len(messages))
    return len(found)
