"""The work role: claim → decode → analyse → compose → finish, one batch after the other.

While a batch is analysed, the next one is decoded in threads, so that the device doesn't wait. A batch that fails as a
whole is tried image by image: an image that can't be analysed costs itself alone.

Over 300 lines: the ways a job can end stand side by side, so that none is forgotten.
"""

from __future__ import annotations

import faulthandler
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from cxr_node import faults, limits
from cxr_node.analyse.networks import Networks, load_networks, use_all_cores
from cxr_node.analyse.pipeline import analyse, classify_batch, segment_batch
from cxr_node.compose import DEFAULT_KINDS, compose_not_analysed, compose_results
from cxr_node.emulate import radiograph_from_image
from cxr_node.errors import Rejected
from cxr_node.logs import explain
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import DataFolder, Findings, Geometry, Job, Radiograph, Result, ResultKind
from cxr_node.settings import Settings
from cxr_node.source import Source, read_dicom, read_header, read_identity
from cxr_node.store import jobs, leases, predecessors
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import DatabaseTrouble, is_full, open_database
from cxr_node.store.instances import write_result

if TYPE_CHECKING:
    from pydicom import Dataset
    from sqlalchemy import Engine

log = structlog.get_logger()

_IDLE_WAIT_S = 0.05
_FIRST_TROUBLE_WAIT_S, _LONGEST_TROUBLE_WAIT_S = 1.0, 30.0


@dataclass(frozen=True)
class Claimed:
    """A job whose source is being read ahead."""

    job: Job
    source: Future[Source]


class Worker:
    """Holds what a worker needs from start to stop: networks, database, threads.

    Attributes:
        trouble: what keeps this node (a full disk, the database) from ending jobs; empty if nothing does.
        is_exhausted: a job found no memory. What it took may still be taken: the next one deserves a new process.
    """

    def __init__(self, settings: Settings, engine: Engine, networks: Networks) -> None:
        self._settings = settings
        self._engine = engine
        self._networks = networks
        self._folders = DataFolder(settings.node.data_dir)
        self._owner = leases.owner_name()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._composers = ThreadPoolExecutor(2, thread_name_prefix="compose")
        self._open: dict[int, Job] = {}
        self.trouble = ""
        self.is_exhausted = False

    def claim(self, before_reading: Callable[[], None] = lambda: None) -> list[Claimed]:
        """Take a batch of due jobs and begin to read them."""
        inference = self._settings.inference
        taken = jobs.claim(self._engine, self._owner, inference.max_batch, inference.lease_s, inference.max_attempts)
        self._open.update((job.id, job) for job in taken)
        if taken:
            before_reading()
        return [Claimed(job, self._readers.submit(self._read, job)) for job in taken]

    def renew(self, claimed: Sequence[Claimed]) -> None:
        """Keep what waited its turn, before it lapses."""
        jobs.renew(self._engine, self._owner, [item.job for item in claimed], self._settings.inference.lease_s)

    def give_back(self, claimed: Sequence[Claimed]) -> None:
        """Return what was claimed ahead and will not be begun."""
        for item in claimed:
            item.source.cancel()
        if claimed:
            jobs.give_back(self._engine, self._owner, [item.job for item in claimed])
            for item in claimed:
                self._open.pop(item.job.id, None)

    def give_back_all(self) -> None:
        """Return what was claimed and has come to no end, the attempt not counted; the trouble is over.

        Raises:
            DatabaseTrouble: not even that can be written yet; nothing must be claimed before it is.
        """
        if self._open:
            jobs.give_back(self._engine, self._owner, list(self._open.values()), self.trouble)
            self._open.clear()
        self.trouble = ""

    def process(self, claimed: Sequence[Claimed]) -> None:
        """Bring every job of a batch to its end: done, rejected, or failed and tried again."""
        if not claimed:
            return
        self.renew(claimed)
        readable: list[tuple[Job, Source]] = []
        for item in claimed:
            try:
                readable.append((item.job, item.source.result()))
            except Rejected as rejected:
                self._reject(item.job, rejected)
            except Exception as error:
                self._fail(item.job, "reading", error)
        images = [source.radiograph.network_image for _, source in readable]
        for job, _ in readable:
            faults.point("analysing", job.sop_instance_uid)
        try:
            outcomes = analyse(images, self._networks)
        except Exception as error:
            if len(readable) == 1:
                self._fail(readable[0][0], "analysing", error)
                return
            log.warning("batch failed, trying its images one by one", exc_info=error, images=len(readable))
            for item in claimed:
                if any(job is item.job for job, _ in readable):
                    self.process([item])
            return
        endings = [
            self._composers.submit(self._end, job, source, outcome)
            for (job, source), outcome in zip(readable, outcomes, strict=True)
        ]
        for ending in endings:
            ending.result()

    def close(self) -> None:
        """Stop the threads, after what they have begun."""
        self._readers.shutdown(cancel_futures=True)
        self._composers.shutdown()

    def _read(self, job: Job) -> Source:
        faults.point("reading", job.sop_instance_uid)
        return read_dicom(self._folders.root / job.path)

    def _end(self, job: Job, source: Source, outcome: Findings | Rejected) -> None:
        try:
            if isinstance(outcome, Rejected):
                self._reject(job, outcome)
            else:
                self._finish(job, source, outcome)
        except Exception as error:
            self._fail(job, "composing", error)

    def _finish(self, job: Job, source: Source, findings: Findings) -> None:
        started = time.perf_counter()
        destinations = {d.name: d.send for d in self._settings.destinations_for(job.calling_ae_title)}
        faults.point("composing", job.sop_instance_uid)
        composed = compose_results(
            source.ds,
            source.radiograph,
            findings,
            revision=job.revision,
            kinds={kind for kinds in destinations.values() for kind in kinds} or DEFAULT_KINDS,
            overlay=self._settings.overlay,
            predecessor=self._predecessor(job),
            now=datetime.now(UTC).astimezone(),
        )
        made = [write_result(self._folders, job, item) for item in composed]
        seconds = {"decode": source.decode_s, **findings.seconds, "compose": time.perf_counter() - started}
        seconds["total"] = sum(seconds.values())
        ended = jobs.finish(
            self._engine,
            self._owner,
            job,
            findings=as_json(findings, seconds),
            model_version=findings.model.version,
            made=made,
            destinations=destinations,
        )
        self._open.pop(job.id, None)
        log.info(
            "analysed" if ended else "lease lost, another worker has this job",
            sop_instance_uid=job.sop_instance_uid,
            label=findings.label,
            seconds=round(seconds["total"], 3),
        )

    def _predecessor(self, job: Job) -> Dataset | None:
        """The report of the image before it was corrected, which the new one replaces."""
        path = predecessors.report_before(self._engine, job) if job.revision else None
        return None if path is None else read_identity(self._folders.root / path)

    def _reject(self, job: Job, rejected: Rejected) -> None:
        destinations = {d.name: d.send for d in self._settings.destinations_for(job.calling_ae_title)}
        try:
            made = self._make_notices(job, rejected, {kind for kinds in destinations.values() for kind in kinds})
        except Exception as error:
            if limits.is_trouble_here(error) or isinstance(error, DatabaseTrouble):
                self.trouble = _in_words(error)
                return
            log.error("no notice of the rejection could be made", sop_instance_uid=job.sop_instance_uid, exc_info=error)
            made = []
        end = functools.partial(jobs.reject, self._engine, self._owner, job, rejected.reasons)
        self._write_end(job, lambda: end(made=made, destinations=destinations))
        log.info("rejected", sop_instance_uid=job.sop_instance_uid, reasons=rejected.reasons)

    def _make_notices(self, job: Job, rejected: Rejected, wanted: set[ResultKind]) -> list[Result]:
        """What tells the reader why there is no result, where the settings ask for it."""
        kinds = wanted.intersection(self._settings.not_analysed.kinds)
        source = read_header(self._folders.root / job.path) if kinds else None
        if source is None:
            return []
        composed = compose_not_analysed(
            source,
            rejected.reasons,
            self._networks.model,
            revision=job.revision,
            kinds=kinds,
            predecessor=self._predecessor(job),
            now=datetime.now(UTC).astimezone(),
        )
        return [write_result(self._folders, job, item) for item in composed]

    def _fail(self, job: Job, doing: str, error: Exception) -> None:
        log.error("job failed", sop_instance_uid=job.sop_instance_uid, doing=doing, exc_info=error)
        reason = f"While {doing}: {explain(error)}"
        if limits.is_trouble_here(error) or isinstance(error, DatabaseTrouble):
            self.trouble = _in_words(error)
            return
        self.is_exhausted |= isinstance(error, MemoryError) or "memory" in str(error)  # the latter is how torch says it
        most = self._settings.inference.max_attempts
        self._write_end(job, lambda: jobs.fail(self._engine, self._owner, job, reason, max_attempts=most))

    def _write_end(self, job: Job, write: Callable[[], bool]) -> None:
        try:
            write()
        except DatabaseTrouble as error:
            log.error("the end of a job can't be written", sop_instance_uid=job.sop_instance_uid, exc_info=error)
            self.trouble = _in_words(error)
        else:
            self._open.pop(job.id, None)


def _in_words(trouble: Exception) -> str:
    what = "the disk is full" if is_full(trouble) else explain(trouble)
    return f"The node is in trouble, and this job goes on by itself when that is over: {what}"


def as_json(findings: Findings, seconds: dict[str, float]) -> dict[str, Any]:
    """Findings as they stand in the database and in `results.json`."""
    return {
        "label": findings.label,
        "indeterminate": findings.indeterminate,
        "indeterminate_reason": findings.indeterminate_reason,
        "probabilities": {label: round(value, 6) for label, value in findings.probabilities.items()},
        "heat_in_lungs": round(findings.heat_in_lungs, 4),
        "heat_by_lung": {side: round(value, 4) for side, value in findings.heat_by_lung.items()},
        "heat_by_zone": {" ".join(place): round(value, 4) for place, value in findings.heat_by_zone.items()},
        "lung_area_fraction": round(findings.lung_area_fraction, 4),
        "greys_inverted": findings.greys_inverted,
        "model": {"name": findings.model.name, "version": findings.model.version},
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
    }


def warm_up(networks: Networks) -> None:
    """Run everything once on an empty image: the first use of the networks and of the composer costs seconds."""
    size = NETWORK_SIZE_PX
    empty = np.zeros((size, size), np.uint8)
    lungs = np.ones((size, size), np.bool_)
    segment_batch([empty], networks)
    (findings,) = classify_batch([empty], [lungs], networks)
    radiograph = Radiograph(empty.astype(np.float32), empty, Geometry(size, size))
    compose_results(radiograph_from_image(empty), radiograph, findings, kinds=tuple(ResultKind), now=datetime.now(UTC))


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the role until `stop` is set; what was claimed and not begun goes back to the queue.

    Raises:
        WeightsError, SettingsError, StoreError: it can't start.
    """
    engine = open_database(settings)
    use_all_cores()
    networks = load_networks(settings.inference)
    leases.release_dead(engine)
    worker = Worker(settings, engine, networks)
    faulthandler.enable()  # a decoder that crashes tells the log where
    warm_up(networks)
    ready()
    on = {"device": str(networks.device), "engine": settings.inference.engine, "precision": networks.precision}
    log.info("working", model=networks.model.version, **on)
    limits.limit_memory(settings.inference.job_memory_mb)
    try:
        _work(settings, worker, stop)
        if worker.is_exhausted:
            raise SystemExit("out of memory: the worker ends, and another one takes its place")
    finally:
        worker.close()
        engine.dispose()


def _work(settings: Settings, worker: Worker, stop: threading.Event) -> None:
    def set_limit() -> None:
        limits.end_after(settings.inference.job_timeout_s)

    ahead: list[Claimed] = []
    troubles = 0
    while not (stop.is_set() or worker.is_exhausted):
        try:
            if worker.trouble:
                worker.give_back_all()
            current, ahead = ahead or worker.claim(set_limit), []
            if not current:
                stop.wait(_IDLE_WAIT_S)
                continue
            set_limit()
            worker.renew(current)  # else the next claim could take it a second time
            if all(item.job.attempts == 1 for item in current):  # what may have killed a worker is done alone
                ahead = worker.claim(set_limit)
            worker.process(current)
            if not ahead:  # whose reading is under way
                limits.end_no_more()
        except DatabaseTrouble as error:
            log.error("the database is in trouble, trying again", exc_info=error)
            worker.trouble = worker.trouble or _in_words(error)
        troubles = troubles + 1 if worker.trouble else 0
        if worker.trouble:
            limits.end_no_more()
            ahead = []  # it goes back with the rest
            stop.wait(backoff_s(troubles, _FIRST_TROUBLE_WAIT_S, _LONGEST_TROUBLE_WAIT_S))
    try:
        worker.give_back_all()
    except DatabaseTrouble as error:  # the next start finds that this process is gone, and takes its jobs back
        log.error("claimed jobs could not be given back", exc_info=error)
