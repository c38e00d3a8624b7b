"""The work role: claim → decode → analyse → compose → finish, one batch after the other.

While a batch is analysed, threads decode the next one and compose the results of the one before. A batch that fails is tried
image by image, so that a bad image affects no other.

Over 300 lines: all endings of a job stay in one file, so that none is forgotten.
"""

from __future__ import annotations

import faulthandler
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import analyse, classify_batch, segment_batch
from cxr_node.compose import (
    DEFAULT_KINDS,
    compose_not_analysed,
    compose_rejection_note,
    compose_results,
    pixel_aspect,
    shrink_for_overlay,
)
from cxr_node.compose.identity import content_key
from cxr_node.compose.notes import warnings
from cxr_node.compose.sides import marker_text, side_name, turned
from cxr_node.dicom import routes
from cxr_node.errors import DiskFull, Rejected
from cxr_node.logs import exception_text
from cxr_node.prepare.header import name_in
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.prepare.source import Source, read_content_digest, read_dicom, read_identity, read_unanalysed_header
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS, SIDES, DataFolder, Findings, Geometry, Job, Model, Radiograph, Result, ResultKind
from cxr_node.security import limits
from cxr_node.settings import Settings
from cxr_node.store import faults
from cxr_node.store.backoff import backoff_s
from cxr_node.store.commit_watch import CommitWatch
from cxr_node.store.database import DatabaseTrouble, is_full, open_database
from cxr_node.store.files.disk_space import DiskSpace
from cxr_node.store.files.instances import write_result
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import confirmations, corrections, jobs, leases, missing_deliveries, previous_report
from cxr_node.store.views.names import keep as keep_names

if TYPE_CHECKING:
    from pydicom import Dataset
    from sqlalchemy import Engine

log = structlog.get_logger()

_IDLE_WAIT_S = 0.05
"""Between two looks for due jobs where nothing tells of a commit."""
_FIRST_TROUBLE_WAIT_S, _LONGEST_TROUBLE_WAIT_S = 1.0, 30.0
_NO_ROOM = "Too little free disk space for results (receive.min_free_mb)."
_CHANGED = "Another image with the same SOP instance UID arrived before, and receive.changed_instance refuses changed images."


@dataclass(frozen=True)
class Claimed:
    """A claimed job whose source is being read."""

    job: Job
    source: Future[Source]


class Worker:
    """Holds what a worker needs from start to stop: networks, database, threads.

    Attributes:
        trouble: why this node (a full disk, the database) can't finish jobs; empty if it can.
        is_exhausted: a job ran out of memory, which may not be released: the next job needs a new process.
    """

    def __init__(self, settings: Settings, engine: Engine, networks: Networks) -> None:
        self._settings = settings
        self._engine = engine
        self._networks = networks
        self._blobs = blobs_of(settings)
        self._owner = leases.owner_name(settings.node.data_dir)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._composers = ThreadPoolExecutor(2, thread_name_prefix="compose")
        self._endings: list[Future[None]] = []
        self._commits = CommitWatch(engine)
        self._open: dict[int, Job] = {}
        self._disk_space = DiskSpace(settings.node.data_dir, settings.receive.min_free_mb, "work", _log_disk_space)
        self.trouble = ""
        self.is_exhausted = False

    def claim(self, before_reading: Callable[[], None] = lambda: None, *, only_new: bool = False) -> list[Claimed]:
        """Take a batch of due jobs and begin to read them; none while the disk has no room for results.

        Args:
            before_reading: called if there are any.
            only_new: none that was tried before (`jobs.claim`).
        """
        if not self._disk_space.is_available():
            return []
        inference = self._settings.inference
        most = min(inference.max_attempts, inference.max_worker_deaths)
        spool = self._blobs.spool if self._settings.storage.url else None
        taken = jobs.claim(self._engine, self._owner, inference.max_batch, inference.lease_s, most, spool, only_new=only_new)
        self._open.update((job.id, job) for job in taken)
        if taken:
            before_reading()
        return [Claimed(job, self._readers.submit(self._read, job)) for job in taken]

    def wait(self, stop: threading.Event) -> None:
        """Wait until there may be a job that is due, or until `stop` is set."""
        self._commits.wait(stop, _IDLE_WAIT_S)

    def renew(self, claimed: Sequence[Claimed]) -> None:
        """Renew the leases of claims that waited."""
        jobs.renew(self._engine, self._owner, [item.job for item in claimed], self._settings.inference.lease_s)

    def give_back(self, claimed: Sequence[Claimed]) -> None:
        """Release claims that will not be begun."""
        for item in claimed:
            item.source.cancel()
        if claimed:
            jobs.give_back(self._engine, self._owner, [item.job for item in claimed])
            for item in claimed:
                self._open.pop(item.job.id, None)

    def release_all(self) -> None:
        """Release claims without an ending, the attempt not counted; called when the trouble is over.

        Raises:
            DatabaseTrouble: that can't be written yet; nothing must be claimed before it is.
        """
        self.finish()
        if self._open:
            jobs.give_back(self._engine, self._owner, list(self._open.values()), self.trouble)
            self._open.clear()
        self.trouble = ""

    def process(self, claimed: Sequence[Claimed]) -> None:
        """Finish every job of a batch: done, rejected, or failed and retried."""
        self.analyse(claimed)
        self.finish()

    def finish(self) -> None:
        """Wait until every job that was analysed has its results."""
        endings, self._endings = self._endings, []
        for ending in endings:
            ending.result()

    def analyse(self, claimed: Sequence[Claimed]) -> None:
        """Analyse a batch, wait for the results of the one before, and begin to compose those of this one."""
        if not claimed:
            return
        self.renew(claimed)
        readable: list[tuple[Job, Source]] = []
        found_names: dict[int, str] = {}
        for item in claimed:
            try:
                source = item.source.result()
                found_names[item.job.instance_id] = name_in(source.ds)
                if not self._settle_known(item.job, source.content_digest):
                    readable.append((item.job, source))
            except Rejected as rejected:
                found_names[item.job.instance_id] = self._name_of(item.job)
                self._reject(item.job, rejected)
            except Exception as error:
                self._fail(item.job, "reading", error)
        self._keep_names(found_names)
        images = [source.radiograph.network_image for _, source in readable]
        for job, _ in readable:
            faults.point("analysing", job.sop_instance_uid)
        try:
            said = [source.radiograph.geometry.sides_said for _, source in readable]
            outcomes = analyse(images, self._networks, said, [source.radiograph.letters for _, source in readable])
        except Exception as error:
            if len(readable) == 1:
                self._fail(readable[0][0], "analysing", error)
                return
            log.warning("batch failed, trying its images one at a time", exc_info=error, images=len(readable))
            for item in claimed:
                if any(job is item.job for job, _ in readable):
                    self.process([item])
            return
        self.finish()
        self._endings = [
            self._composers.submit(self._end, job, source, outcome)
            for (job, source), outcome in zip(readable, outcomes, strict=True)
        ]

    def close(self) -> None:
        """Stop the threads, after what they have begun."""
        self._readers.shutdown(cancel_futures=True)
        self._composers.shutdown()
        self._commits.close()

    def _read(self, job: Job) -> Source:
        faults.point("reading", job.sop_instance_uid)
        with self._blobs.fetch(job.path) as path:
            source = read_dicom(path)
        # three batches are in memory at once: keep only the pixels that an overlay needs
        shown = shrink_for_overlay(source.radiograph.pixels, self._settings.overlay.max_side_px, pixel_aspect(source.ds))
        return replace(source, radiograph=replace(source.radiograph, pixels=shown))

    def _name_of(self, job: Job) -> str:
        """The patient's name in an image that was rejected; empty if it can't be read."""
        try:
            with self._blobs.fetch(job.path) as path:
                header = read_unanalysed_header(path)
        except OSError:
            return ""
        return "" if header is None else name_in(header)

    def _keep_names(self, found: dict[int, str]) -> None:
        """For people's searches; an analysis doesn't fail for want of it."""
        try:
            keep_names(self._engine, found)
        except DatabaseTrouble as error:
            log.warning("patients' names can't be kept for searches", reason=type(error).__name__)

    def _digest_of(self, key: str) -> str:
        try:
            with self._blobs.fetch(key) as path:
                return read_content_digest(path)
        except OSError:
            return ""

    def _settle_known(self, job: Job, content_digest: str) -> bool:
        """End a job whose image is an earlier one in another encoding, or a changed one that isn't to be taken.

        Raises:
            Rejected: the latter.
        """
        if not job.revision:
            return False
        same = corrections.same_image(self._engine, job, content_digest, self._digest_of) if content_digest else None
        if same is not None:
            merged = corrections.merge(self._engine, self._owner, job, same, self._blobs)
            self._open.pop(job.id, None)
            if merged:
                missing_deliveries.add_for_merged(self._engine, self._settings, same)
            log.info(
                "image already stored in another encoding" if merged else "lease lost, another worker has this job",
                sop_instance_uid=job.sop_instance_uid,
            )
            return True
        if job.is_unconfirmed:
            confirmations.hold(self._engine, self._owner, job)
            self._open.pop(job.id, None)
            return True
        if self._settings.receive.changed_instance == "refuse":
            corrections.refuse(self._engine, job)
            raise Rejected(_CHANGED)
        return False

    def _end(self, job: Job, source: Source, outcome: Findings | Rejected) -> None:
        try:
            if isinstance(outcome, Rejected):
                self._reject(job, outcome, source.content_digest)
            else:
                self._finish(job, source, outcome)
        except Exception as error:
            self._fail(job, "composing", error)

    def _finish(self, job: Job, source: Source, findings: Findings) -> None:
        started = time.perf_counter()
        senders = missing_deliveries.senders_of(self._engine, job)
        destinations = missing_deliveries.wanted(self._settings, senders, source.ds)
        faults.point("composing", job.sop_instance_uid)
        if not self._disk_space.is_available():
            raise DiskFull(_NO_ROOM)
        begun_at = self._begin(job, source.content_digest, findings.model)
        if begun_at is None:
            self._lose(job)
            return
        kinds = {kind for kinds in destinations.values() for kind in kinds} or DEFAULT_KINDS
        composed = compose_results(
            source.ds,
            source.radiograph,
            findings,
            content_digest=source.content_digest,
            kinds=kinds,
            overlay=self._settings.overlay,
            predecessor=self._predecessor(job),
            now=begun_at,
        )
        made = [write_result(self._blobs, job, item) for item in composed] + self._withdraw(job)
        seconds = {"decode": source.decode_s, **findings.seconds, "compose": time.perf_counter() - started}
        seconds["total"] = sum(seconds.values())
        ended = jobs.finish(
            self._engine,
            self._owner,
            job,
            findings=as_json(findings, seconds, source.radiograph.geometry)
            | {"not_composed": sorted(set(kinds) - {item.kind for item in composed})},
            model_version=findings.model.version,
            made=made,
            destinations=destinations,
            content_digest=source.content_digest,
            blobs=self._blobs,
        )
        self._open.pop(job.id, None)
        if ended and missing_deliveries.senders_of(self._engine, job) != senders:  # it arrived over another route meanwhile
            missing_deliveries.add_for_job(self._engine, self._settings, job)
        elif ended and not any(destinations.values()):
            where = {"sop_instance_uid": job.sop_instance_uid, "calling_ae_title": job.calling_ae_title}
            log.warning("results go nowhere: no destination is set for their sender", **where)
        log.info(
            "analysed" if ended else "lease lost, another worker has this job",
            sop_instance_uid=job.sop_instance_uid,
            answer=findings.answer,
            likeliest=findings.likeliest,
            indeterminate_reason=findings.indeterminate_reason,
            warnings=warnings(findings),
            seconds=round(seconds["total"], 3),
        )

    def _begin(self, job: Job, content_digest: str, model: Model) -> datetime | None:
        """The date of a job's results: when the analysis of this content first began; None: the lease is lost."""
        settings = (self._settings.overlay.model_dump_json(), self._settings.not_analysed.model_dump_json())
        key = content_key(model, content_digest, *settings)
        begun_at = jobs.begin_analysis(self._engine, self._owner, job, key)
        return None if begun_at is None else datetime.fromtimestamp(begun_at, UTC).astimezone()

    def _destinations(self, job: Job) -> dict[str, tuple[ResultKind, ...]]:
        """Destinations of a job's notices, by the routes of all senders of its image."""
        with self._blobs.fetch(job.path) as path:
            header = routes.read_route_header(path, self._settings)
        return missing_deliveries.wanted(self._settings, missing_deliveries.senders_of(self._engine, job), header)

    def _withdraw(self, job: Job) -> list[Result]:
        """Rejection notes for the results of the image before its correction, for destinations that ask for them."""
        wanting = [one.name for one in self._settings.destinations if one.withdraw == "rejection_note"]
        sent = corrections.sent_before(self._engine, job, wanting) if job.revision and wanting else []
        to_whom: dict[tuple[corrections.SentResult, ...], list[str]] = {}
        for name in wanting:
            if theirs := tuple(replace(one, destination="") for one in sent if one.destination == name):
                to_whom.setdefault(theirs, []).append(name)
        made = []
        for theirs, names in to_whom.items():
            headers = []
            for one in theirs:
                with self._blobs.fetch(one.key) as path:
                    headers.append(read_unanalysed_header(path))
            note = compose_rejection_note(
                [header for header in headers if header is not None],
                datetime.fromtimestamp(job.created_at, UTC).astimezone(),
                sent_as={one.sop_instance_uid: one.sent_as for one in theirs if one.sent_as is not None},
            )
            made.append(replace(write_result(self._blobs, job, note), only_to=tuple(names)))
        return made

    def _lose(self, job: Job) -> None:
        self._open.pop(job.id, None)
        log.info("lease lost, another worker has this job", sop_instance_uid=job.sop_instance_uid)

    def _predecessor(self, job: Job) -> Dataset | None:
        """The report of the image before it was corrected, which the new one replaces."""
        key = previous_report.report_before(self._engine, job) if job.revision else None
        if key is None:
            return None
        with self._blobs.fetch(key) as path:
            return read_identity(path)

    def _reject(self, job: Job, rejected: Rejected, content_digest: str = "") -> None:
        destinations: dict[str, tuple[ResultKind, ...]] = {}
        try:
            destinations = self._destinations(job)
            if not content_digest:  # it was rejected before its pixels were decoded
                content_digest = self._digest_of(job.path)
                if rejected.reasons != (_CHANGED,) and self._settle_known(job, content_digest):
                    return
            wanted = {kind for kinds in destinations.values() for kind in kinds}
            made = self._make_notices(job, rejected, wanted, content_digest) + self._withdraw(job)
        except Rejected as changed:
            self._reject(job, changed)
            return
        except Exception as error:
            if _is_trouble(error):
                self.trouble = _failure_text(error)
                return
            log.error("notice of rejection not made", sop_instance_uid=job.sop_instance_uid, exc_info=error)
            made = []
        end = functools.partial(jobs.reject, self._engine, self._owner, job, rejected.reasons)
        self._write_end(job, lambda: end(made=made, destinations=destinations, content_digest=content_digest, blobs=self._blobs))
        # the reasons show what stands in the header, which may be anything: `cxr-node queue show` has them
        log.info("rejected", sop_instance_uid=job.sop_instance_uid, job=job.id, reasons=len(rejected.reasons))

    def _make_notices(self, job: Job, rejected: Rejected, wanted: set[ResultKind], content_digest: str) -> list[Result]:
        """Notices that say why there is no result, if the settings ask for them."""
        kinds = wanted.intersection(self._settings.not_analysed.kinds)
        if not kinds:
            return []
        with self._blobs.fetch(job.path) as path:
            source = read_unanalysed_header(path)
        begun_at = None if source is None else self._begin(job, content_digest, self._networks.model)
        if source is None or begun_at is None:
            return []
        composed = compose_not_analysed(
            source,
            rejected.reasons,
            self._networks.model,
            content_digest=content_digest or job.path,
            kinds=kinds,
            predecessor=self._predecessor(job),
            now=begun_at,
        )
        return [write_result(self._blobs, job, item) for item in composed]

    def _fail(self, job: Job, doing: str, error: Exception) -> None:
        log.error("job failed", sop_instance_uid=job.sop_instance_uid, doing=doing, exc_info=error)
        reason = f"While {doing}: {exception_text(error)}"
        if _is_trouble(error):
            self.trouble = _failure_text(error)
            return
        found_no_memory = isinstance(error, MemoryError) or "memory" in str(error)  # the latter is how torch says it
        self.is_exhausted |= found_no_memory
        inference = self._settings.inference
        most = min(inference.max_attempts, inference.max_worker_deaths) if found_no_memory else inference.max_attempts
        self._write_end(job, lambda: jobs.fail(self._engine, self._owner, job, reason, max_attempts=most))

    def _write_end(self, job: Job, write: Callable[[], bool]) -> None:
        try:
            write()
        except DatabaseTrouble as error:
            log.error("end of a job not written", sop_instance_uid=job.sop_instance_uid, exc_info=error)
            self.trouble = _failure_text(error)
        else:
            self._open.pop(job.id, None)


def _is_trouble(error: Exception) -> bool:
    """Whether an error is this node's, and not the job's."""
    return limits.is_resource_error(error) or isinstance(error, DatabaseTrouble | DiskFull)


def _log_disk_space(is_available: bool) -> None:
    if is_available:
        log.info("the disk has space again: analysis continues")
    else:
        log.warning("too little free disk space: analysis is paused")


def _failure_text(trouble: Exception) -> str:
    what = "the disk is full" if is_full(trouble) else exception_text(trouble)
    return f"The node has a problem; this job continues by itself when the problem is solved: {what}"


def as_json(findings: Findings, seconds: dict[str, float], geometry: Geometry) -> dict[str, Any]:
    """Findings as they stand in the database and in `results.json`.

    Args:
        findings: of one image.
        seconds: by stage.
        geometry: how the image lies in its source: lungs whose side isn't known are named by the side of the picture.
    """
    sides = findings.sides
    names = {side: side_name(side, sides, turned(geometry, sides)) for side in SIDES}
    return {
        "answer": findings.answer,
        "likeliest": findings.likeliest,
        "label": findings.label,
        "indeterminate": findings.indeterminate,
        "indeterminate_reason": findings.indeterminate_reason,
        "probabilities": {label: round(value, 6) for label, value in findings.probabilities.items()},
        "heat_in_lungs": round(findings.heat_in_lungs, 4),
        "heat_by_lung": {names[side]: round(value, 4) for side, value in findings.heat_by_lung.items()},
        "heat_by_zone": {f"{names[side]} {zone}": round(value, 4) for (side, zone), value in findings.heat_by_zone.items()},
        "lung_area_fraction": round(findings.lung_area_fraction, 4),
        "greys_inverted": findings.greys_inverted,
        "sides": {
            "by": sides.by,
            "mirrored": sides.mirrored,
            "log_odds": round(sides.log_odds, 2),
            "marker": marker_text(sides, geometry),
        },
        "warnings": warnings(findings),
        "model": {"name": findings.model.name, "version": findings.model.version},
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
    }


def warm_up(networks: Networks) -> None:
    """Run everything once on an empty image: the first use of networks and composer takes seconds."""
    size = NETWORK_SIZE_PX
    empty = np.zeros((size, size), np.uint8)
    lungs = np.ones((size, size), np.bool_)
    segment_batch([empty], networks)
    (findings,) = classify_batch([empty], [lungs], networks)
    radiograph = Radiograph(empty.astype(np.float32), empty, Geometry(size, size))
    compose_results(radiograph_from_image(empty), radiograph, findings, kinds=ANALYSIS_KINDS, now=datetime.now(UTC))


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the role until `stop` is set; claims that were not begun return to the queue.

    Raises:
        WeightsError, SettingsError, StoreError: it can't start.
    """
    engine = open_database(settings)
    try:
        converted = DataFolder(settings.node.data_dir).converted
        networks = load_networks(settings.inference, stay=True, all_cores=True, converted=converted)
        leases.release_dead(engine, settings)
        with closing(Worker(settings, engine, networks)) as worker:
            faulthandler.enable()  # a decoder that crashes tells the log where
            warm_up(networks)
            ready()
            on = {"device": str(networks.engine.device), "engine": networks.engine.name, "precision": networks.engine.precision}
            log.info("working", model=networks.model.version, **on)
            limits.limit_memory(settings.inference.job_memory_mb)
            _work(settings, worker, stop)
            if worker.is_exhausted:
                raise SystemExit("out of memory: the worker ends and is replaced")
    finally:
        engine.dispose()


def _work(settings: Settings, worker: Worker, stop: threading.Event) -> None:
    def set_limit() -> None:
        limits.exit_after(settings.inference.job_timeout_s)

    ahead: list[Claimed] = []
    troubles = 0
    while not (stop.is_set() or worker.is_exhausted):
        try:
            if worker.trouble:
                worker.release_all()
            if not ahead:
                worker.finish()  # a job that may have killed a worker runs alone
                limits.cancel_exit()
            current, ahead = ahead or worker.claim(set_limit), []
            if not current:
                worker.wait(stop)
                continue
            set_limit()
            worker.renew(current)  # otherwise the next claim could take it again
            if all(item.job.attempts == 1 for item in current):
                ahead = worker.claim(set_limit, only_new=True)
            worker.analyse(current)
        except DatabaseTrouble as error:
            log.error("database error, trying again", exc_info=error)
            worker.trouble = worker.trouble or _failure_text(error)
        troubles = troubles + 1 if worker.trouble else 0
        if worker.trouble:
            worker.finish()
            limits.cancel_exit()
            ahead = []  # it goes back with the rest
            stop.wait(backoff_s(troubles, _FIRST_TROUBLE_WAIT_S, _LONGEST_TROUBLE_WAIT_S))
    try:
        worker.release_all()
    except DatabaseTrouble as error:  # the next start finds that this process is gone, and takes its jobs back
        log.error("claimed jobs not released", exc_info=error)
