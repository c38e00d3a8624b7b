"""Retrying and cancelling what is chosen: by number, image, kind, destination, state and time, on both databases."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import update

from cxr_node.records import DeliveryState, JobState, ResultKind
from cxr_node.settings import DestinationSettings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.queue import changes, deliveries, jobs
from cxr_node.store.queue.selection import Selection
from cxr_node.store.schema import deliveries as deliveries_table
from cxr_node.store.schema import instances as instances_table
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.schema import results as results_table
from cxr_node.store.views import overview
from tests.store import BOTH, Store

TWO = {**BOTH, "archive": (ResultKind.REPORT,)}


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def hospital(store):
    """Three images of two patients, analysed; results of the first two are sent, to two destinations."""
    store.receive(uid="1.2.1", content=b"a", study="1.5.1", patient="P1", accession="A1")
    store.receive(uid="1.2.2", content=b"b", study="1.5.2", patient="P1", accession="A2", sender="ER_1")
    store.receive(uid="1.2.3", content=b"c", study="1.5.3", patient="P2", accession="A3")
    for job in store.claim():
        store.finish(job, destinations=TWO)
    for number in (1, 2, 3, 4, 5, 6):
        set_sent(store, number)
    store.settings = store.settings.model_copy(
        update={
            "destinations": tuple(
                DestinationSettings(name=name, ae_title=name.upper(), host="127.0.0.1", port=1, send=kinds)
                for name, kinds in TWO.items()
            )
        }
    )
    return store


def set_sent(store, number):
    with write(store.engine) as connection:
        connection.execute(
            update(deliveries_table)
            .where(deliveries_table.c.id == number)
            .values(state=DeliveryState.SENT, sent_at=1000.0 * number, transaction_uid="1.9", asks=3, attempts=4)
        )


def ids(rows):
    return [row["id"] for row in rows]


def gone(store, table):
    with write(store.engine) as connection:
        connection.execute(update(table).values(removed_at=time.time()))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"study": "1.5.2"}, [2]),
        ({"patient": "P1"}, [1, 2]),
        ({"accession": "A3"}, [3]),
        ({"sop": "1.2.3"}, [3]),
        ({"sop": "2.25.21"}, [2]),
        ({"sender": "ER_1"}, [2]),
        ({"numbers": (1, 3, 9)}, [1, 3]),
        ({"numbers": (1, 3), "patient": "P2"}, [3]),
        ({"state": "done"}, [1, 2, 3]),
        ({"state": "held"}, []),
        ({"patient": "P"}, []),
        ({}, [1, 2, 3]),
    ],
)
def test_jobs_are_chosen_by_each_criterion_and_retried(hospital, chosen, expected):
    assert ids(overview.list_jobs(hospital.engine, **chosen)) == expected
    outcome = changes.retry_jobs(hospital.engine, Selection(**chosen), "admin")
    assert outcome.changed == expected
    assert ids(overview.list_jobs(hospital.engine, state="new")) == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"study": "1.5.2"}, [4, 5, 6]),
        ({"patient": "P2"}, [7, 8, 9]),
        ({"accession": "A1"}, [1, 2, 3]),
        ({"sop": "1.2.1"}, [1, 2, 3]),
        ({"sop": "2.25.12"}, [2, 3]),
        ({"kind": "overlay"}, [1, 4, 7]),
        ({"destination": "archive"}, [3, 6, 9]),
        ({"destination": "pacs", "kind": "report", "patient": "P1"}, [2, 5]),
        ({"state": "sent"}, [1, 2, 3, 4, 5, 6]),
        ({"state": "sent", "since": 2000.0, "until": 4000.0}, [2, 3]),
        ({"numbers": (2, 5), "destination": "archive"}, []),
        ({"sender": "ER_1", "kind": "overlay"}, [4]),
    ],
)
def test_deliveries_are_chosen_by_each_criterion_and_sent_again(hospital, chosen, expected):
    assert ids(overview.list_deliveries(hospital.engine, **chosen)) == expected
    outcome = changes.retry_deliveries(hospital.engine, Selection(**chosen), "admin", hospital.settings)
    assert outcome.changed == expected
    rows = overview.list_deliveries(hospital.engine, numbers=tuple(expected)) if expected else []
    assert all(row["state"] == DeliveryState.WAITING and row["attempts"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("chosen", "expected"), [({"destination": "archive"}, [9]), ({"patient": "P2", "kind": "report"}, [8, 9])]
)
def test_what_waits_is_cancelled_by_the_same_criteria_and_what_is_sent_is_not(hospital, chosen, expected):
    outcome = changes.cancel_deliveries(hospital.engine, Selection(**chosen), "admin")
    assert outcome.changed == expected
    assert ids(overview.list_deliveries(hospital.engine, state="cancelled")) == expected
    assert len(overview.list_deliveries(hospital.engine, state="sent")) == 6


def test_jobs_are_cancelled_by_the_same_criteria(store):
    for number, patient in enumerate(("P1", "P1", "P2")):
        store.receive(uid=f"1.2.{number}", content=patient.encode() + bytes([number]), patient=patient)
    store.finish(store.claim(limit=1)[0])
    outcome = changes.cancel_jobs(store.engine, Selection(patient="P1"), "admin")
    assert outcome.changed == [2]
    assert [row["state"] for row in overview.list_jobs(store.engine)] == ["done", "cancelled", "new"]


@pytest.mark.parametrize("change", [changes.retry_jobs, changes.cancel_jobs, changes.retry_deliveries, changes.cancel_deliveries])
def test_a_dry_run_counts_and_changes_nothing(hospital, change):
    def everything():
        with hospital.engine.connect() as connection:
            tables = (jobs_table, deliveries_table)
            rows = [list(connection.execute(table.select().order_by(table.c.id))) for table in tables]
        return rows, list(audit.search(hospital.engine))

    before = everything()
    planned = change(hospital.engine, Selection(patient="P2"), "admin", dry_run=True)
    assert everything() == before
    done = change(hospital.engine, Selection(patient="P2"), "admin")
    assert (planned.changed, planned.refused) == (done.changed, done.refused)
    assert (everything() == before) is not bool(done.changed)


def test_results_of_a_job_that_is_done_again_are_sent_again(store):
    store.receive()
    store.finish(store.claim()[0])
    assert len(store.send_all()) == 2
    changes.retry_jobs(store.engine, Selection(numbers=(1,)), "admin")
    assert store.send_all() == []  # not before they are made anew
    store.finish(store.claim()[0])
    assert [item.kind for item in store.send_all()] == ["overlay", "report"]
    assert store.claim() == []
    assert store.send_all() == []


def test_a_newer_model_makes_results_of_its_own_and_the_old_ones_stay_sent(store):
    store.receive()
    store.finish(store.claim()[0])
    old = store.send_all()
    changes.retry_jobs(store.engine, Selection(state="done"), "admin")
    store.finish(store.claim()[0], model="12")
    new = store.send_all()
    assert len(new) == 2
    assert {item.sop_instance_uid for item in new}.isdisjoint(item.sop_instance_uid for item in old)
    assert [row["state"] for row in overview.list_deliveries(store.engine)] == ["sent"] * 4
    assert overview.list_jobs(store.engine)[0]["model_version"] == "12"


def test_the_wish_to_send_again_outlives_failures_and_a_person_s_cancelling(store):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    changes.retry_jobs(store.engine, Selection(numbers=(1,)), "admin")
    changes.cancel_jobs(store.engine, Selection(numbers=(1,)), "admin")
    assert overview.list_jobs(store.engine)[0]["findings"]["label"] == "healthy"  # what was found is not forgotten
    changes.retry_jobs(store.engine, Selection(numbers=(1,)), "admin")
    jobs.fail(store.engine, "w", store.claim()[0], "no luck", max_attempts=1)
    changes.retry_jobs(store.engine, Selection(numbers=(1,)), "admin")
    store.finish(store.claim()[0])
    assert len(store.send_all()) == 2


def test_a_job_done_again_for_another_reason_sends_nothing_twice(store):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    with write(store.engine) as connection:
        connection.execute(update(jobs_table).values(state=JobState.NEW))
    store.finish(store.claim()[0])
    assert store.send_all() == []


def test_a_job_whose_image_is_gone_says_so_and_stays_done(store):
    store.receive()
    store.finish(store.claim()[0])
    gone(store, instances_table)
    outcome = changes.retry_jobs(store.engine, Selection(state="done"), "admin")
    assert outcome.changed == []
    assert [numbers for reason, numbers in outcome.refused.items() if "send the image again" in reason] == [[1]]
    assert overview.list_jobs(store.engine)[0]["state"] == JobState.DONE


def test_the_cure_for_a_job_whose_image_is_gone_cures(store):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    gone(store, instances_table)
    gone(store, results_table)
    assert "send the image again" in next(iter(changes.retry_deliveries(store.engine, Selection(state="sent"), "admin").refused))
    store.receive()
    assert changes.retry_deliveries(store.engine, Selection(numbers=(1, 2)), "admin").changed == [1, 2]
    store.finish(store.claim()[0])
    assert len(store.send_all()) == 2


def test_a_sent_result_whose_file_is_gone_is_made_again_and_sent(store):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    gone(store, results_table)
    assert changes.retry_deliveries(store.engine, Selection(numbers=(2,)), "admin").changed == [2]
    assert store.send_all() == []
    store.finish(store.claim()[0])
    assert [item.kind for item in store.send_all()] == ["report"]


def test_a_delivery_that_waits_for_a_result_another_model_replaced_ends(store):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    gone(store, results_table)
    changes.retry_deliveries(store.engine, Selection(numbers=(2,)), "admin")
    store.finish(store.claim()[0], model="12")
    assert [row["state"] for row in overview.list_deliveries(store.engine)] == ["sent", "cancelled", "waiting", "waiting"]


def test_what_is_under_way_is_left_alone(store):
    store.receive()
    (job,) = store.claim()
    assert changes.retry_jobs(store.engine, Selection(numbers=(1,)), "admin").changed == []
    store.finish(job)
    deliveries.claim(store.engine, "pacs", "d", 1, 60)
    outcome = changes.retry_deliveries(store.engine, Selection(destination="pacs"), "admin")
    assert outcome.changed == [2]
    assert [row["state"] for row in overview.list_deliveries(store.engine)] == ["sending", "waiting"]


def test_what_a_corrected_image_replaced_is_sent_again_only_by_its_number(store):
    for content in (b"wrong", b"right"):
        store.receive(content=content)
        store.finish(store.claim()[0])
        store.send_all()
    assert changes.retry_jobs(store.engine, Selection(study="1.5"), "admin", dry_run=True).changed == [2]
    assert changes.retry_deliveries(store.engine, Selection(study="1.5"), "admin").changed == [3, 4]
    assert changes.retry_deliveries(store.engine, Selection(numbers=(1,)), "admin").changed == [1]


def test_what_the_settings_no_longer_ask_for_is_not_sent_again(hospital):
    pacs = hospital.settings.destinations[0].model_copy(update={"send": (ResultKind.OVERLAY,)})
    settings = hospital.settings.model_copy(update={"destinations": (pacs,)})
    outcome = changes.retry_deliveries(hospital.engine, Selection(patient="P1"), "admin", settings)
    assert outcome.changed == [1, 4]
    assert sorted(map(sorted, outcome.refused.values())) == [[2, 5], [3, 6]]


def test_each_change_is_audited_with_who_did_it(hospital):
    changes.retry_jobs(hospital.engine, Selection(patient="P1"), "admin")
    events = list(audit.search(hospital.engine, user="admin"))
    assert [(row["event"], row["patient_id"], row["detail"]) for row in events] == [
        ("job-retried", "P1", "job 1"),
        ("job-retried", "P1", "job 2"),
    ]
