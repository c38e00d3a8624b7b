"""What has to be done now and then: retention. Runs inside the supervisor, on APScheduler's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from cxr_node import tls
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store import instances, leases, retention

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()


def start(settings: Settings, engine: Engine) -> BackgroundScheduler:
    """Start the clock; the caller shuts it down."""
    scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600})
    soon = datetime.now(UTC) + timedelta(minutes=1)
    scheduler.add_job(keep_retention, "interval", (settings, engine), hours=1, next_run_time=soon)
    scheduler.add_job(tls.warn_of_ends, "interval", (settings,), hours=24, next_run_time=datetime.now(UTC) + timedelta(minutes=1))
    scheduler.add_job(leases.release_dead, "interval", (engine,), seconds=15)
    scheduler.start()
    return scheduler


def keep_retention(settings: Settings, engine: Engine) -> None:
    """Remove what is past its time."""
    folders = DataFolder(settings.node.data_dir)
    received, results = retention.remove_expired(
        engine,
        settings.retention.received_days,
        settings.retention.results_days,
        lambda path: instances.remove(folders, path),
    )
    log.info("retention", instances_removed=received, results_removed=results)
