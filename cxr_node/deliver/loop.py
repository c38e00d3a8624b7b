"""The deliver role: one thread for each destination, so that a PACS that is down delays only itself, and one for reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import structlog

from cxr_node.deliver.commitment import commitment_reporter
from cxr_node.deliver.worker import DeliveryWorker
from cxr_node.records import ResultKind
from cxr_node.settings import Settings
from cxr_node.store.database import open_database, querying
from cxr_node.store.queue import deliveries, leases, missing_deliveries
from cxr_node.store.views.peer_overview import without_destination

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_STOP_GRACE_S = 5.0


def _add_missing(engine: Engine, settings: Settings, stop: threading.Event) -> None:
    """Add deliveries that the settings ask for since they were changed."""
    try:
        added = missing_deliveries.add_at_start(engine, settings, stop.is_set)
        if added != missing_deliveries.Added():
            log.info(
                "the settings require more deliveries than before", deliveries_added=added.deliveries, jobs_done_again=added.jobs
            )
        with querying(engine) as query:
            nowhere = without_destination(query)
        for row in nowhere:
            log.warning("results go nowhere: no destination is set for their sender", **row)
    except Exception as error:  # existing deliveries continue
        log.error("missing deliveries not added", exc_info=error)


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the role until `stop` is set; claims that were not begun return to the queue.

    Raises:
        StoreError: it can't start.
    """
    with ExitStack() as opened:
        engine = open_database(settings)
        opened.callback(engine.dispose)
        leases.release_dead(engine, settings)
        workers = [opened.enter_context(closing(DeliveryWorker(settings, one))) for one in settings.destinations]
        _deliver(settings, engine, workers, stop, ready)


def _deliver(
    settings: Settings, engine: Engine, workers: Sequence[DeliveryWorker], stop: threading.Event, ready: Callable[[], None]
) -> None:
    threads = [threading.Thread(target=worker.run, args=(stop,), name=f"deliver-{worker.destination.name}") for worker in workers]
    reporter = commitment_reporter(settings, engine)
    threads.append(threading.Thread(target=reporter.run, args=(stop,), name="report"))
    for thread in threads:
        thread.start()
    ready()
    log.info("delivering", destinations=[worker.destination.name for worker in workers])
    adding = threading.Thread(target=_add_missing, args=(engine, settings, stop), name="missing")
    adding.start()
    note = (ResultKind.WITHDRAWAL,)
    asked = {one.name: one.send + (note if one.withdraw == "rejection_note" else ()) for one in settings.destinations}
    while not stop.is_set():
        try:
            if ended := deliveries.cancel_unrequested(engine, asked):
                log.warning("deliveries cancelled: the settings no longer require them", count=ended)
        except Exception as error:  # the next time will do
            log.warning("deliveries that the settings no longer require not cancelled", exc_info=error)
        if stop.wait(leases.DELIVERY_S / 4):
            break
        for worker in workers:
            try:
                worker.renew()
            except Exception as error:  # the next time will do
                log.warning("leases not renewed", exc_info=error)
    deadline = time.monotonic() + _STOP_GRACE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for cut_off, thread in zip([*(worker.cut_off for worker in workers), reporter.cut_off], threads, strict=True):
        if thread.is_alive():
            cut_off()
        thread.join()
    adding.join()
