"""What has to be done now and then: retention, room on the disk, backup, leases of the dead. On APScheduler's clock.

Runs inside the supervisor, and in a `work` that runs alone; two at the same time do no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler

from cxr_node import tls
from cxr_node.errors import StoreError
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store import backup, differences, instances, leases, reports, retention
from cxr_node.store.blobs import LocalBlobs
from cxr_node.store.differences import Kind

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_REPORTS_DAYS = 30.0
_UNDER_WAY_S = 3600.0
"""Files younger than this may be about to get their row."""
_JUMP_S = 300.0
_DISTRUST_S = 86400.0
_MORE_THAN_ENOUGH = 1.5
"""Room is made below 1.25 times the least that must be free, and up to this many times."""


class Housekeeping:
    """Keeps the house of one node; its methods are called by the scheduler's threads.

    Args:
        settings: the settings tree.
        engine: the database.
        clock: what shows the time of day; `steady` what no one can set.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._folders = DataFolder(settings.node.data_dir)
        self._blobs = LocalBlobs(self._folders)
        self._clock, self._steady = clock, steady
        self._offset_s = clock() - steady()
        self._trusted_from = float("-inf")

    def watch_the_clock(self) -> None:
        """Notice that the clock was set. After a jump ahead nothing counts as past its time for a day."""
        offset_s = self._clock() - self._steady()
        jump_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(jump_s) < _JUMP_S:
            return
        log.warning("the clock was set", by_s=round(jump_s), consequence="retention waits for a day" if jump_s > 0 else "none")
        if jump_s > 0:
            self._trusted_from = self._steady() + _DISTRUST_S

    def keep_retention(self) -> None:
        """Remove what is past its time."""
        self.watch_the_clock()
        if self._steady() < self._trusted_from:
            return
        times = self._settings.retention
        received, results = retention.remove_expired(self._engine, times.received_days, times.results_days, self._remove)
        stale = instances.remove_stale(self._folders, times.unparsed_days)
        reports.forget_old(self._engine, _REPORTS_DAYS)
        log.info("retention", instances_removed=received, results_removed=results, others_removed=stale)

    def make_room(self) -> None:
        """Before the node has to refuse instances, remove what has served its purpose, oldest first."""
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
            path = backup.back_up(self._settings)
        except StoreError as error:
            log.error("backup failed", reason=str(error))
            return
        if path is not None:
            log.info("backup", file=path.name, size_bytes=path.stat().st_size)

    def sweep(self) -> None:
        """Mend what crashes leave: blobs that no row owns are entered if they may have been acknowledged, or removed."""
        from cxr_node import repair  # it reads DICOM, which the supervisor otherwise has no need of

        found = [
            item
            for item in differences.find_differences(self._engine, self._folders, _UNDER_WAY_S)
            if item.kind in (Kind.INSTANCE_WITHOUT_ROW, Kind.RESULT_WITHOUT_ROW, Kind.ORPHAN)
        ]
        if found:
            repair.mend(self._settings, self._engine, found, user="housekeeping")
            log.warning("files without an owner", mended=len(found))

    def _free(self) -> int:
        return instances.free_bytes(self._folders.root)

    def _remove(self, key: str) -> None:
        self._blobs.delete(key)


def _note_failure(event: JobExecutionEvent) -> None:
    """It is tried again when its time comes."""
    log.error("housekeeping failed", what=event.job_id, exc_info=event.exception)


def start(settings: Settings, engine: Engine) -> BackgroundScheduler:
    """Start the clock; the caller shuts it down."""
    scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600})
    keeper = Housekeeping(settings, engine)
    now = datetime.now(UTC)
    scheduler.add_job(keeper.keep_retention, "interval", id="retention", hours=1, next_run_time=now + timedelta(minutes=1))
    scheduler.add_job(keeper.sweep, "interval", id="sweep", hours=6, next_run_time=now + timedelta(minutes=5))
    scheduler.add_job(keeper.back_up, "interval", id="backup", hours=1, next_run_time=now + timedelta(minutes=2))
    scheduler.add_job(keeper.make_room, "interval", id="room", seconds=20, next_run_time=now)
    scheduler.add_job(keeper.watch_the_clock, "interval", id="clock", minutes=1)
    scheduler.add_job(
        tls.warn_of_ends, "interval", (settings,), id="certificates", hours=24, next_run_time=now + timedelta(minutes=1)
    )
    scheduler.add_job(leases.release_dead, "interval", (engine, settings), id="leases", seconds=15, next_run_time=now)
    scheduler.add_listener(_note_failure, EVENT_JOB_ERROR)
    scheduler.start()
    return scheduler
