"""The queue on a real SQLite file and on a PostgreSQL server: admissions, claims, leases, endings, deliveries."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import update

from cxr_node.records import AuditEvent, DeliveryState, JobState, ResultKind
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.files import retention
from cxr_node.store.queue import admissions, deliveries, jobs
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.views import overview
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


def test_the_same_content_twice_is_one_job(store):
    assert store.receive() == admissions.Admission.QUEUED
    assert store.receive() == admissions.Admission.DUPLICATE
    assert len(store.claim()) == 1


def test_other_content_under_the_same_uid_is_a_revision_with_a_job_of_its_own(store):
    store.receive(content=b"first")
    store.finish(store.claim()[0])
    assert store.receive(content=b"corrected") == admissions.Admission.REVISION
    (job,) = store.claim()
    assert job.revision == 1
    assert (store.folders.root / job.path).read_bytes() == b"corrected"
    assert sorted(path.read_bytes() for path in store.folders.instances.rglob("*.dcm")) == [b"corrected", b"first"]


def test_what_is_not_to_be_analysed_is_kept_without_a_job(store):
    assert store.receive(analyse=False, note="own result") == admissions.Admission.KEPT
    assert store.claim() == []
    assert overview.count_states(store.engine)["received"]["kept_unanalysed"] == 1


def test_two_workers_never_hold_the_same_job(store):
    for n in range(40):
        store.receive(uid=f"1.2.{n}", content=str(n).encode())
    taken: list[int] = []
    lock = threading.Lock()

    def work(owner):
        while claimed := store.claim(owner, limit=3):
            with lock:
                taken.extend(job.id for job in claimed)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 40


def test_a_lapsed_lease_returns_the_job_and_the_late_worker_changes_nothing(store):
    store.receive()
    (first,) = store.claim("slow")
    store.lapse()
    (second,) = store.claim("quick")
    assert second.id == first.id
    assert not store.finish(first, "slow")
    assert store.finish(second, "quick")
    assert len(overview.list_deliveries(store.engine)) == 2


def test_a_job_whose_worker_dies_each_time_is_held(store):
    store.receive()
    for _ in range(3):
        (job,) = store.claim()
        store.lapse()
    assert store.claim() == []
    assert store.state_of(job) == JobState.HELD
    assert overview.retry_job(store.engine, job.id, "admin")
    assert len(store.claim()) == 1


def test_a_failure_waits_and_is_held_after_the_last_attempt(store):
    store.receive()
    for attempt in range(1, 4):
        (job,) = store.claim()
        assert jobs.fail(store.engine, "w", job, "no luck", max_attempts=3)
        assert store.state_of(job) == (JobState.HELD if attempt == 3 else JobState.NEW)
        if attempt == 1:
            assert store.claim() == []  # it waits
        store.lapse()


def test_a_finished_job_leaves_one_delivery_for_each_result_and_destination(store):
    store.receive()
    (job,) = store.claim()
    assert store.finish(job)
    claimed = deliveries.claim(store.engine, "pacs", "d", 10, 60)
    assert [delivery.kind for delivery in claimed] == [ResultKind.OVERLAY, ResultKind.REPORT]
    assert deliveries.claim(store.engine, "elsewhere", "d", 10, 60) == []


def test_a_retried_job_doubles_neither_results_nor_deliveries(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    with write(store.engine) as connection:
        connection.execute(update(jobs_table).values(state=JobState.HELD))
    assert overview.retry_job(store.engine, job.id, "admin")
    (again,) = store.claim()
    assert store.finish(again)
    assert len(overview.list_deliveries(store.engine)) == 2


def test_a_sent_delivery_is_never_due_again(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    for delivery in deliveries.claim(store.engine, "pacs", "d", 10, 60):
        deliveries.mark_sent(store.engine, delivery, 0)
    store.lapse()
    assert deliveries.claim(store.engine, "pacs", "d", 10, 60) == []


def test_a_delivery_whose_sender_died_is_due_again_and_the_dead_change_nothing(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    (first, _) = deliveries.claim(store.engine, "pacs", "dead", 10, 60)
    store.lapse()
    (second, _) = deliveries.claim(store.engine, "pacs", "alive", 10, 60)
    deliveries.mark_failed(store.engine, first, "late", 5)
    assert overview.list_deliveries(store.engine)[0]["state"] == DeliveryState.SENDING
    deliveries.mark_sent(store.engine, second, 0)
    assert overview.list_deliveries(store.engine)[0]["state"] == DeliveryState.SENT


def test_a_delivery_is_held_after_its_last_attempt_and_can_be_retried(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    for _ in range(2):
        delivery = deliveries.claim(store.engine, "pacs", "d", 1, 60)[0]
        deliveries.mark_failed(store.engine, delivery, "refused", max_attempts=2, status=0xA700)
        store.lapse()
    held = overview.list_deliveries(store.engine, state="held")
    assert [row["reason"] for row in held] == ["refused"]
    assert overview.retry_delivery(store.engine, held[0]["id"], "admin")
    assert deliveries.claim(store.engine, "pacs", "d", 1, 60)[0].id == held[0]["id"]


def test_retention_takes_what_is_done_and_leaves_what_is_not(store):
    store.receive(uid="1.2.1", content=b"a")
    store.receive(uid="1.2.2", content=b"b")
    first, second = store.claim(limit=1), store.claim(limit=1)
    store.finish(first[0])
    files = sorted(path.name for path in store.folders.instances.rglob("*.dcm"))
    removed = retention.remove_expired(store.engine, -1, -1, store.blobs.delete)
    assert removed == (1, 0)  # its results are not sent yet, the other instance is not analysed yet
    left = sorted(path.name for path in store.folders.instances.rglob("*.dcm"))
    assert len(files) == 2
    assert left == [second[0].path.rsplit("/", 1)[1]]
    for delivery in deliveries.claim(store.engine, "pacs", "d", 10, 60):
        deliveries.mark_sent(store.engine, delivery, 0)
    assert retention.remove_expired(store.engine, -1, -1, store.blobs.delete) == (0, 2)
    assert list(store.folders.results.rglob("*.dcm")) == []


def test_the_audit_log_is_searched_by_patient_study_event_and_time(store):
    store.receive()
    (job,) = store.claim()
    jobs.reject(store.engine, "w", job, ["a lateral view"], blobs=store.blobs)
    audit.record(store.engine, AuditEvent("other", patient_id="SOMEONE"))
    found = list(audit.search(store.engine, patient_id="p*", event="job-*"))  # a wildcard disregards case
    assert [(row["event"], row["outcome"], row["detail"]) for row in found] == [("job-rejected", "rejected", "a lateral view")]
    assert len(list(audit.search(store.engine, study_instance_uid="1.5"))) == 2
    assert list(audit.search(store.engine, since=time.time() + 60)) == []
    assert len(list(audit.search(store.engine, limit=1))) == 1


def test_files_and_folders_are_the_owner_s_alone(store):
    store.receive()
    for path in store.folders.root.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o077 == 0, path
    assert all(path.stat().st_mode & 0o077 == 0 for path in store.folders.instances.rglob("*.dcm"))


def test_what_may_have_killed_a_worker_is_taken_alone(store):
    for number in range(4):
        store.receive(uid=f"1.2.{number}", content=bytes([number]))
    assert len(store.claim(limit=2)) == 2
    store.lapse()  # the worker died on one of the two
    taken = []
    while claimed := store.claim():
        taken.append([job.sop_instance_uid for job in claimed])
        for job in claimed:
            store.finish(job)
    assert taken == [["1.2.2", "1.2.3"], ["1.2.0"], ["1.2.1"]]


def test_each_filter_of_the_audit_log_finds_what_it_says(store):
    for number, patient in enumerate(("A_1", "AB1", "a%1", "B")):
        audit.record(
            store.engine, AuditEvent(f"event-{number}", user=f"USER{number}", patient_id=patient, study_instance_uid="1.5")
        )

    def found(**filters):
        return [row["patient_id"] for row in audit.search(store.engine, **filters)]

    assert found() == ["A_1", "AB1", "a%1", "B"]
    assert found(patient_id="A_1") == found(patient_id="a_*") == ["A_1"]  # of these characters the star alone is a wildcard
    assert found(patient_id="a%*") == ["a%1"]
    assert found(patient_id="a*1") == ["A_1", "AB1", "a%1"]
    assert found(patient_id="a_1") == []
    assert found(event="event-2") == found(user="USER2") == found(user="*2") == ["a%1"]
    assert found(study_instance_uid="1.*", limit=2) == ["a%1", "B"]
    times = [row["at"] for row in audit.search(store.engine)]
    assert found(since=times[1], until=times[3]) == ["AB1", "a%1"]
    assert found(event="event-1", user="USER2") == []


def test_the_audit_log_says_of_a_patient_where_results_went(store):
    store.receive()
    store.finish(store.claim()[0])
    sent, failed = deliveries.claim(store.engine, "pacs", "d", 8, 60)
    deliveries.mark_sent(store.engine, sent, 0)
    deliveries.mark_failed(store.engine, failed, "refused", 1)
    overview.retry_delivery(store.engine, failed.id, "admin")
    events = [row["event"] for row in audit.search(store.engine, patient_id="PID", study_instance_uid="1.5")]
    assert events == ["instance-received", "job-done", "transfer-begun", "result-sent", "result-held", "delivery-retried"]
