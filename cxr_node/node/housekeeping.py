"""Periodic tasks on APScheduler: retention, free disk space, backup, leases of dead processes.

Runs in the supervisor, and in a `work` that runs alone. Of several hosts, one at a time does the shared tasks (`host_leases`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler

from cxr_node.audit import chain
from cxr_node.audit.keeper import AuditMaintenance
from cxr_node.commitment import reports
from cxr_node.dicom import certificates
from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent, DataFolder
from cxr_node.settings import Settings
from cxr_node.store import backup
from cxr_node.store.audit_log import audit
from cxr_node.store.files import consistency, instances, retention
from cxr_node.store.files.blobs import discard
from cxr_node.store.files.consistency import DifferenceKind
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import leases
from cxr_node.store.queue.host_leases import HOUSEKEEPING, HostLeases

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_REPORTS_DAYS = 30.0
_UNDER_WAY_S = 3600.0
"""Younger files may not have their row yet."""
_JUMP_S = 300.0
_DISTRUST_S = 86400.0
_MORE_THAN_ENOUGH = 1.5
"""Cleanup starts below 1.25 times `min_free_mb` and stops at this many times."""


class Housekeeping:
    """The periodic tasks of one node; the scheduler's threads call its methods.

    Args:
        settings: the settings tree.
        engine: the database.
        host_leases: whose turn it is; None: of this process alone.
        clock: the time of day; `steady`: a clock that nobody can set.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        host_leases: HostLeases | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._folders = DataFolder(settings.node.data_dir)
        self._blobs = blobs_of(settings)
        self._clock, self._steady = clock, steady
        self._offset_s = clock() - steady()
        self._leases = host_leases or HostLeases(engine, leases.owner_name(settings.node.data_dir))
        self._trusted_from = float("-inf")

    def check_clock(self) -> None:
        """Notice that the clock was set. After a jump forward, retention removes nothing for a day."""
        offset_s = self._clock() - self._steady()
        jump_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(jump_s) < _JUMP_S:
            return
        log.warning("the clock was set", by_s=round(jump_s), consequence="retention waits for a day" if jump_s > 0 else "none")
        if jump_s > 0:
            self._trusted_from = self._steady() + _DISTRUST_S

    def apply_retention(self) -> None:
        """Remove what retention allows: on this machine, and for all hosts if it is this one's turn."""
        self.check_clock()
        if self._steady() < self._trusted_from:
            return
        times = self._settings.retention
        stale = instances.remove_stale(self._folders, times.unparsed_days)
        if not self._leases.holds(HOUSEKEEPING):
            return
        received, results = retention.remove_expired(self._engine, times.received_days, times.results_days, self._remove)
        reports.forget_old(self._engine, _REPORTS_DAYS)
        log.info("retention", instances_removed=received, results_removed=results, others_removed=stale)

    def make_room(self) -> None:
        """Remove finished images and results, oldest first, before the node must refuse instances.

        Not where they lie in a bucket: that would make no room on this disk.
        """
        if self._settings.storage.url:
            return
        least = self._settings.receive.min_free_mb * 2**20
        if self._free() >= 1.25 * least:
            return
        received, results = retention.make_room(self._engine, lambda: self._free() >= _MORE_THAN_ENOUGH * least, self._remove)
        log.warning("little free disk", free_bytes=self._free(), instances_removed=received, results_removed=results)

    def back_up(self) -> None:
        """Copy the database, unless the disk has no room for it."""
        found = backup.backups(self._settings)
        size_bytes = found[0].stat().st_size if found else 0
        if self._free() < self._settings.receive.min_free_mb * 2**20 + 2 * size_bytes:
            log.warning("no backup: too little free disk", newest=found[0].name if found else None)
            return
        try:
            chain.checkpoint(self._engine, self._settings)  # so that the copy can be verified to its end
            path = backup.back_up(self._settings)
        except StoreError as error:
            log.error("backup failed", reason=str(error))
            return
        if path is not None:
            log.info("backup", file=path.name, size_bytes=path.stat().st_size)
            audit.record(self._engine, AuditEvent("database-backed-up", detail=path.name))

    def sweep(self) -> None:
        """Repair what crashes leave: blobs without a row are entered if they may have been acknowledged, otherwise removed."""
        if not self._leases.holds(HOUSEKEEPING):
            return
        from cxr_node.node import repair  # imported here: the supervisor needs no DICOM otherwise

        found = [
            item
            for item in consistency.find_differences(self._engine, self._blobs, _UNDER_WAY_S)
            if item.kind in (DifferenceKind.INSTANCE_WITHOUT_ROW, DifferenceKind.RESULT_WITHOUT_ROW, DifferenceKind.ORPHAN)
        ]
        if found:
            repair.mend(self._settings, self._engine, found, user="housekeeping")
            log.warning("files without an owner", mended=len(found))

    def _free(self) -> int:
        return instances.free_bytes(self._folders.root)

    def _remove(self, key: str) -> None:
        discard(self._blobs, [key])


def _note_failure(event: JobExecutionEvent) -> None:
    """It runs again at its next time."""
    log.error("housekeeping failed", what=event.job_id, exc_info=event.exception)


def start(settings: Settings, engine: Engine, auditor: AuditMaintenance) -> BackgroundScheduler:
    """Start the scheduler; the caller shuts it down.

    Args:
        settings: the settings tree.
        engine: the database.
        auditor: keeps the audit log.
    """
    scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600})
    keeper = Housekeeping(settings, engine, auditor.host_leases)
    now = datetime.now(UTC)
    scheduler.add_job(keeper.apply_retention, "interval", id="retention", hours=1, next_run_time=now + timedelta(minutes=1))
    scheduler.add_job(keeper.sweep, "interval", id="sweep", hours=6, next_run_time=now + timedelta(minutes=5))
    scheduler.add_job(keeper.back_up, "interval", id="backup", hours=1, next_run_time=now + timedelta(minutes=2))
    scheduler.add_job(keeper.make_room, "interval", id="room", seconds=20, next_run_time=now)
    scheduler.add_job(keeper.check_clock, "interval", id="clock", minutes=1)
    scheduler.add_job(
        certificates.warn_of_ends, "interval", (settings,), id="certificates", hours=24, next_run_time=now + timedelta(minutes=1)
    )
    scheduler.add_job(auditor.seal, "interval", id="audit", seconds=2, next_run_time=now)
    scheduler.add_job(auditor.sign, "interval", id="audit-sign", minutes=1, next_run_time=now + timedelta(seconds=5))
    scheduler.add_job(auditor.check, "interval", id="audit-check", hours=24, next_run_time=now + timedelta(seconds=10))
    scheduler.add_job(auditor.archive_old, "interval", id="audit-archive", hours=24, next_run_time=now + timedelta(hours=1))
    scheduler.add_job(leases.release_dead, "interval", (engine, settings), id="leases", seconds=15, next_run_time=now)
    scheduler.add_listener(_note_failure, EVENT_JOB_ERROR)
    scheduler.start()
    return scheduler
