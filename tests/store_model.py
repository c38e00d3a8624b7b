"""A model of what the store promises, for Hypothesis to break: receptions, duplicates, corrections of those who may and who
may not, encodings, retention, room, commitment, analyses, deliveries, retries, damage, doctor, restore, and crashes between any
two steps of these.

The store is the real one, files and database; a crash is an exception at one of the program's own fault points, after
which nothing of the step goes on. What is analysed and composed are texts, under UIDs that the program's own functions derive.

Over 300 lines: one state machine, whose rules and invariants are read together.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydicom import uid
from sqlalchemy import create_engine, inspect, select, text

from cxr_node.commitment import reports
from cxr_node.compose.identity import content_key
from cxr_node.dicom.uids import derived_uid
from cxr_node.node import repair
from cxr_node.prepare.source import read_content_digest
from cxr_node.receive.intake.header import read_header
from cxr_node.receive.transport.incoming import file_meta
from cxr_node.records import ComposedObject, DataFolder, DeliveryState, JobState, Model, ResultKind, Sender
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store import backup, faults
from cxr_node.store.database import open_database, write
from cxr_node.store.files import consistency, retention
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.files.digests import Digest, file_digest
from cxr_node.store.files.instances import keep_instance, write_result
from cxr_node.store.queue import admissions, changes, confirmations, corrections, deliveries, jobs, leases
from cxr_node.store.queue.admissions import Admission, Arrival
from cxr_node.store.queue.selection import Selection
from cxr_node.store.schema import metadata
from cxr_node.store.views import overview
from tests.receiver import encoded, radiograph
from tests.store import lay_database

DX = uid.DigitalXRayImageStorageForPresentation
UIDS = ("1.2.1", "1.2.2")
CONTENTS, STUDIES = (0, 1), ("1.5.1", "1.5.2")
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
KINDS = (ResultKind.OVERLAY, ResultKind.REPORT)
DESTINATIONS = {"pacs": KINDS}
CRASHES = (
    *("instance-received", "instance-kept", "instance-admitted", "jobs-claimed", "result-kept", "instance-merged", "job-ended"),
    *("job-finished", "deliveries-claimed", "object-stored", "delivery-noted", "removal-noted"),
)
MEMORY = Path("/dev/shm")
"""A disk that flushes at once: what is tried here is the order of steps, which a slow flush doesn't change."""


class Crash(BaseException):
    """The process dies here."""


@cache
def data_set(sop_instance_uid: str, content: int, study: str, syntax: uid.UID) -> bytes:
    ds = radiograph(
        SOPInstanceUID=sop_instance_uid,
        StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.1",
        StudyDescription=f"content {content}",
        Rows=4,
        Columns=4,
    )
    ds.PixelData = bytes(32)
    return encoded(ds, syntax)


@contextmanager
def crashing(at: str):
    """Die at a fault point, if one is named; afterwards the process is a new one."""

    def point(name: str, _uid: str = "") -> None:
        if name == at:
            raise Crash

    before, faults.point = faults.point, point
    try:
        yield
    except Crash:
        pass
    finally:
        faults.point = before


class StoreModel(RuleBasedStateMachine):
    """What is sent, what was acknowledged for it, and what a PACS has been given."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cxr-model-", dir=MEMORY if MEMORY.is_dir() else None))
        self.settings = Settings(node=NodeSettings(data_dir=self.root / "var"), database=DatabaseSettings(url=self.url))
        if self.url:
            self._empty()
        lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.folders = DataFolder(self.settings.node.data_dir)
        self.blobs = LocalBlobs(self.folders)
        self.acknowledged: dict[str, list[tuple[int, str]]] = {}  # in the order in which they came: content and study
        self.promised: set[tuple[str, str]] = set()  # SOP instance UID and content digest
        self.rotten: set[str] = set()
        self.pacs: dict[str, bytes] = {}
        self.shown, self.processes = 0, 0
        self.backup: Path | None = None

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            self.come_to_rest()
        finally:
            self.engine.dispose()
            shutil.rmtree(self.root)

    @rule(
        where=st.sampled_from(UIDS),
        content=st.sampled_from(CONTENTS),
        study=st.sampled_from((*STUDIES[:1] * 4, STUDIES[1])),
        syntax=st.sampled_from((*SYNTAXES[:1] * 2, SYNTAXES[1])),
        ae_title=st.sampled_from(("MODALITY", "ROUTER")),
        keep=st.sampled_from((False,) * 5 + (True,)),
        may_correct=st.sampled_from((True,) * 4 + (False,)),
        at=st.sampled_from(("",) * 6 + CRASHES[:3]),
    )
    def receive(self, where, content, study, syntax, ae_title, keep, may_correct, at) -> None:
        with crashing(at):
            admission = self._receive(where, content, study, syntax, ae_title, keep, may_correct)
            assert admission in Admission
            self._acknowledge(where, content, study)

    def _receive(self, where, content, study, syntax, ae_title, keep=False, may_correct=True) -> Admission:
        meta = file_meta(DX, where, syntax, ae_title)
        temporary = self.folders.incoming / "arriving"
        temporary.write_bytes(meta + data_set(where, content, study, syntax))
        header, _ = read_header(temporary, len(meta), syntax)
        stored = keep_instance(self.blobs, temporary, header, file_digest(temporary))
        sender = Sender(ae_title, "NODE", "127.0.0.1")
        arrival = Arrival(self.blobs, stored, sender, analyse=True, analyse_changed=not keep, may_correct=may_correct)
        return admissions.admit_all(self.engine, [arrival])[0]

    def _acknowledge(self, where, content, study) -> None:
        known = self.acknowledged.setdefault(where, [])
        if (content, study) not in known:
            known.append((content, study))

    @rule(at=st.sampled_from(("",) * 6 + CRASHES[3:8]), many=st.booleans())
    def work(self, at, many) -> None:
        with crashing(at):
            self._work(8 if many else 1)

    def _work(self, limit: int) -> int:
        self.processes += 1
        owner = f"worker {self.processes}"
        self._lapse("jobs")
        claimed = jobs.claim(self.engine, owner, limit, 60, 1000)
        for job in claimed:
            path = self.folders.root / job.path
            if not path.exists():
                jobs.fail(self.engine, owner, job, "its file is gone", max_attempts=2)
                continue
            digest = read_content_digest(path)
            same = corrections.same_image(self.engine, job, digest, lambda key: read_content_digest(self.folders.root / key))
            if job.revision and same is not None:
                corrections.merge(self.engine, owner, job, same, self.blobs)
                continue
            if job.is_unconfirmed:
                confirmations.hold(self.engine, owner, job)
                continue
            self._analyse(owner, job, digest)
        return len(claimed)

    def _analyse(self, owner, job, digest) -> None:
        model = Model("model", "1")
        begun_at = jobs.begin_analysis(self.engine, owner, job, content_key(model, digest, str(self.shown)))
        if begun_at is None:
            return
        date = datetime.fromtimestamp(begun_at, UTC).isoformat()
        made = []
        for kind in KINDS:
            result_uid = derived_uid("instance", job.sop_instance_uid, content_key(model, digest, date, str(self.shown)), kind)
            content = json.dumps([job.sop_instance_uid, digest, date, self.shown, kind]).encode()
            made.append(write_result(self.blobs, job, ComposedObject(kind, result_uid, "1.2", SYNTAXES[0], content)))
        jobs.finish(
            *(self.engine, owner, job),
            findings={"label": "healthy"},
            model_version="1",
            made=made,
            destinations=DESTINATIONS,
            content_digest=digest,
            blobs=self.blobs,
        )

    @rule(at=st.sampled_from(("",) * 6 + CRASHES[8:11]), fails=st.booleans())
    def deliver(self, at, fails) -> None:
        with crashing(at):
            self._deliver(fails)

    def _deliver(self, fails: bool = False) -> int:
        self.processes += 1
        self._lapse("deliveries")
        claimed = deliveries.claim(self.engine, "pacs", f"deliver {self.processes}", 8, 60)
        for delivery in claimed:
            path = self.folders.root / delivery.path
            if not path.exists() or fails:
                deliveries.mark_failed(self.engine, delivery, "no", 1000, hold=not path.exists())
                continue
            content = path.read_bytes()
            assert self.pacs.setdefault(delivery.sop_instance_uid, content) == content, "one UID, two contents"
            self._is_current(json.loads(content))
            faults.point("object-stored")
            deliveries.mark_sent(self.engine, delivery, 0)
        return len(claimed)

    def _is_current(self, said) -> None:
        """No report of an image goes out after its correction, in the same study, was acknowledged."""
        source, digest = said[0], said[1]
        newest = self._newest_analysed(source)
        told_apart = not self.rotten and "" not in newest.values()  # what the disk changed is analysed as what it is now
        assert digest in newest.values() or not told_apart, ("a superseded result was sent", said, newest)

    def _newest_analysed(self, source: str, *, done: bool = False) -> dict[str, str]:
        """By study, the content digest of the newest revision that has a job; of those done alone, if its results were made."""
        found: dict[str, str] = {}
        states = {job.instance_id: job.state for job in self._rows("jobs")}
        for row in sorted(self._rows("instances"), key=lambda row: row.revision):
            if row.sop_instance_uid == source and row.id in states and not row.unconfirmed:
                digest = row.content_digest or (
                    read_content_digest(self.folders.root / row.path) if row.removed_at is None else ""
                )
                found[row.study_instance_uid] = digest
                if done and states[row.id] != JobState.DONE:
                    del found[row.study_instance_uid]
        return found

    @rule(
        at=st.sampled_from(("",) * 4 + CRASHES[11:]),
        duplicate=st.sampled_from((None, *UIDS)),
        received_days=st.sampled_from((-1, -1, 1e6)),
    )
    def apply_retention(self, at, duplicate, received_days) -> None:
        """Everything is past its time, or results alone; a duplicate may be acknowledged between decision and deletion."""
        with crashing(at):
            retention.remove_expired(self.engine, received_days, -1, self._removing(duplicate))

    @rule(at=st.sampled_from(("",) * 4 + CRASHES[11:]), duplicate=st.sampled_from((None, *UIDS)))
    def make_room(self, at, duplicate) -> None:
        with crashing(at):
            retention.make_room(self.engine, lambda: False, self._removing(duplicate))

    def _removing(self, where):
        pending = [where]

        def remove(key: str) -> None:
            source = pending.pop() if pending else None
            if source is not None and self.acknowledged.get(source):
                content, study = self.acknowledged[source][-1]
                self._receive(source, content, study, SYNTAXES[0], "MODALITY")
            self.blobs.delete(key)

        return remove

    @rule(where=st.sampled_from(UIDS), has_room=st.sampled_from((True, True, True, False)))
    def commit(self, where, has_room) -> None:
        committed, failed = reports.promise_to_keep(self.engine, self.blobs, [(DX, where)], 1e6, lambda: has_room)
        assert len(committed) + len(failed) == 1
        if committed:
            assert has_room
            confirmed = [row for row in self._rows("instances") if row.sop_instance_uid == where and not row.unconfirmed]
            newest = max(confirmed, key=lambda row: row.revision)
            assert newest.path not in self.rotten, "promised to keep what isn't what was received"
            self.promised.add((where, read_content_digest(self.folders.root / newest.path)))

    @rule(where=st.sampled_from(UIDS))
    def rot(self, where) -> None:
        """The disk changes a byte of the newest revision."""
        there = [row for row in self._rows("instances") if row.sop_instance_uid == where and row.removed_at is None]
        if there and there[-1].path not in self.rotten and where not in {source for source, _ in self.promised}:
            path = self.folders.root / there[-1].path
            content = bytearray(path.read_bytes())
            content[-1] ^= 0xFF
            path.write_bytes(content)
            self.rotten.add(there[-1].path)

    @rule(number=st.integers(1, 6), action=st.sampled_from(("retry_job", "retry_delivery")))
    def retry(self, number, action) -> None:
        """A person tries again what a correction didn't end, and whose file is there."""
        if action == "retry_job":
            gone = {row.id for row in self._rows("instances") if row.removed_at is not None} | self._replaced()
            if any(row.id == number and row.superseded_by is None and row.instance_id not in gone for row in self._rows("jobs")):
                overview.retry_job(self.engine, number, "person")
            return
        replaced = {row.id for row in self._rows("jobs") if row.instance_id in self._replaced()}
        gone = {row.id for row in self._rows("results") if row.removed_at is not None or row.job_id in replaced}
        if any(row.id == number and row.superseded_by is None and row.result_id not in gone for row in self._rows("deliveries")):
            overview.retry_delivery(self.engine, number, "person")

    def _replaced(self) -> set[int]:
        """Instances after which another came in the same study under the same UID."""
        confirmed = sorted((row for row in self._rows("instances") if not row.unconfirmed), key=lambda row: row.revision)
        newest = {(row.sop_instance_uid, row.study_instance_uid): row.id for row in confirmed}
        return {row.id for row in confirmed} - set(newest.values())

    @rule(number=st.integers(1, 6))
    def accept(self, number) -> None:
        """A person takes as a correction what came from one who may not correct."""
        changes.accept_jobs(self.engine, Selection(numbers=(number,)), "person")

    @rule()
    def change_settings(self) -> None:
        """What results show is another from here on."""
        self.shown += 1

    @rule(number=st.integers(1, 3))
    def analyse_again(self, number) -> None:
        """After a change of settings, and send what comes of it."""
        self.change_settings()
        self.retry(number, "retry_job")
        self._work(8)
        self._deliver()

    @rule(pick=st.integers(0, 7))
    def lose_result(self, pick) -> None:
        found = sorted(self.folders.results.rglob("*.dcm"))
        if found:
            found[pick % len(found)].unlink()

    @rule()
    def doctor(self) -> None:
        found = consistency.find_differences(self.engine, self.blobs, 0)
        repair.mend(self.settings, self.engine, found, "person")
        assert {item.kind for item in consistency.find_differences(self.engine, self.blobs, 0)} <= {
            consistency.DifferenceKind.RESULT_WITHOUT_ROW
        }

    @precondition(lambda self: not self.url)
    @rule()
    def back_up(self) -> None:
        made = backup.back_up(self.settings)
        assert made is not None
        self.backup = self.root / "backup.sqlite3"  # others are thinned out by the clock
        shutil.copy(made, self.backup)

    @precondition(lambda self: getattr(self, "backup", None) is not None)
    @rule()
    def restore(self) -> None:
        """What was promised or removed since is not in the backup: the modality asks again."""
        rows = self._rows("instances")
        there = {row.digest for row in rows if row.removed_at is None and row.path not in self.rotten}
        self.engine.dispose()
        backup.restore(self.settings, self.backup)
        self.engine = open_database(self.settings)
        leases.end_all(self.engine)
        self.promised.clear()
        self.doctor()
        known = {row.digest for row in self._rows("instances")}
        assert there <= known, "restore lost what was there"
        for where, contents in self.acknowledged.items():
            contents[:] = [one for one in contents if known.intersection(self._digest(where, *one, each) for each in SYNTAXES)]

    @invariant()
    def rows_own_their_blobs(self) -> None:
        if not hasattr(self, "engine"):
            return
        for row in self._rows("instances"):
            if row.removed_at is None:
                assert self.blobs.size(row.path) == row.size_bytes, "a row without its file, or with another"
                intact = file_digest(self.folders.root / row.path) == row.digest
                assert intact or row.path in self.rotten
        paths = [row.path for table in ("instances", "results") for row in self._rows(table)]
        assert len(paths) == len(set(paths)), "a blob with two owners"

    @invariant()
    def what_was_promised_is_there(self) -> None:
        if not hasattr(self, "engine") or not self.promised:
            return
        there = [row for row in self._rows("instances") if row.removed_at is None]
        kept = {(row.sop_instance_uid, read_content_digest(self.folders.root / row.path)) for row in there}
        assert self.promised <= kept, "promised to a modality, and gone"

    @invariant()
    def what_was_acknowledged_is_known(self) -> None:
        """A row tells of each content; its file is there, or was removed after its job had come to an end."""
        if not hasattr(self, "engine"):
            return
        open_jobs = {row.instance_id for row in self._rows("jobs") if row.state in (JobState.NEW, JobState.RUNNING)}
        by_digest = {row.digest: row for row in self._rows("instances")}
        for where, contents in self.acknowledged.items():
            for content, study in contents:
                of_any_encoding = [self._digest(where, content, study, syntax) for syntax in SYNTAXES]
                rows = [by_digest[digest] for digest in of_any_encoding if digest in by_digest]
                assert rows, "acknowledged, and nothing tells of it"
                assert all(row.removed_at is None for row in rows if row.id in open_jobs), "removed before it was analysed"

    def come_to_rest(self) -> None:
        """Everything goes on by itself: each newest image ends with one set of results where it was to go."""
        self.doctor()
        for _ in range(200):
            if not self._work(8) + self._deliver():
                break
        else:
            raise AssertionError("it never comes to rest")
        self.doctor()
        assert consistency.find_differences(self.engine, self.blobs, 0) == []
        images_gone = any(row.removed_at is not None for row in self._rows("instances"))
        at_rest = {DeliveryState.SENT, DeliveryState.CANCELLED, *([DeliveryState.HELD] if images_gone else [])}
        assert {row.state for row in self._rows("deliveries")} <= at_rest
        for row in self._rows("jobs"):
            (its,) = (one for one in self._rows("instances") if one.id == row.instance_id)
            waits_for_a_person = its.removed_at is not None or its.unconfirmed
            assert row.state in (JobState.DONE, JobState.CANCELLED) or (waits_for_a_person and row.state == JobState.HELD), row
        told = {tuple(json.loads(content)[:2]) for content in self.pacs.values()}
        for where in self.acknowledged:
            for digest in self._newest_analysed(where, done=True).values():
                assert not digest or self.rotten or (where, digest) in told, "analysed, and its result is missing"

    @staticmethod
    @cache
    def _digest(where, content, study, syntax) -> str:
        digest = Digest()
        digest.update(data_set(where, content, study, syntax))
        return str(digest)

    def _rows(self, table: str):
        with self.engine.connect() as connection:
            columns = metadata.tables[table]
            return connection.execute(select(columns).order_by(columns.c.id)).all()

    def _lapse(self, table: str) -> None:
        """Time passes: waits are over, and leases of processes that died have ended."""
        with write(self.engine) as connection:
            connection.execute(text(f"UPDATE {table} SET not_before = 0, lease_until = 0"))

    def _empty(self) -> None:
        engine = create_engine(self.url)
        with engine.begin() as connection:
            if inspect(connection).has_table("jobs"):
                names = ", ".join(table.name for table in metadata.sorted_tables)
                connection.execute(text("SET session_replication_role = replica"))  # the audit log refuses it otherwise
                connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
        engine.dispose()
