"""`status`, `queue list` and the audit log as people and programs read them.

Over 300 lines: what is shown of one queue, in each of its states.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.cli.common import age_in_words, ago_in_words, size_in_words
from cxr_node.errors import CxrNodeError
from cxr_node.records import AuditEvent
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.queue import deliveries
from cxr_node.store.schema import deliveries as deliveries_table
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.schema import refusals as refusals_table
from cxr_node.store.times import iso_to_the_millisecond, parse_time
from cxr_node.store.views import overview, refusals
from cxr_node.store.views.refusals import CountedRefusal
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def run(tmp_path, database_url):
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{tmp_path / "var"}"\n[database]\nurl = "{database_url}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
        '[[destinations]]\nname = "archive"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\nport = 1\n'
    )

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--config", str(config)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return run


def destinations(run):
    return {row["name"]: row for row in json.loads(run("status", "--json"))["destinations"]}


def shown(run, what):
    return next(line for line in run("status").splitlines() if line.startswith(what))


def test_a_destination_that_never_got_anything_is_idle(store, run):
    idle = destinations(run)["archive"]
    assert (idle["state"], idle["waiting"], idle["sent"], idle["last_error_at"]) == ("idle", 0, 0, None)
    assert "never" in shown(run, "destination archive")


def test_a_destination_in_trouble_says_what_waits_since_when_and_why(store, run):
    store.receive()
    store.finish(store.claim()[0])
    with write(store.engine) as connection:
        connection.execute(update(deliveries_table).values(created_at=time.time() - 7260))
    (first, *_) = deliveries.claim(store.engine, "pacs", "d", 1, 60)
    deliveries.mark_failed(store.engine, first, "connection refused", 200)
    pacs = destinations(run)["pacs"]
    assert (pacs["state"], pacs["waiting"]) == ("in trouble", 2)
    assert 7200 < pacs["oldest_waiting_s"] < 7400
    assert pacs["last_error"] == "connection refused"
    assert abs(datetime.fromisoformat(pacs["last_error_at"]).timestamp() - time.time()) < 60
    line = shown(run, "destination pacs")
    assert "in trouble; 2 waiting; oldest 2 h 1 min" in line
    assert "connection refused" in line


def test_the_time_of_the_last_error_is_that_of_the_last_attempt(store, run, monkeypatch):
    """The audit log has only the first failure of a delivery."""
    store.receive()
    store.finish(store.claim()[0])
    now = time.time
    (first,) = deliveries.claim(store.engine, "pacs", "d", 1, 60)
    deliveries.mark_failed(store.engine, first, "connection refused", 200)
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    (again,) = deliveries.claim(store.engine, "pacs", "d", 1, 60)
    deliveries.mark_failed(store.engine, again, "no answer", 200)
    monkeypatch.undo()
    pacs = destinations(run)["pacs"]
    assert pacs["last_error"] == "no answer"
    assert 7140 < datetime.fromisoformat(pacs["last_error_at"]).timestamp() - now() < 7260


def test_a_destination_that_took_everything_is_idle_and_says_when(store, run):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    pacs = destinations(run)["pacs"]
    assert (pacs["state"], pacs["sent"], pacs["oldest_waiting_s"]) == ("idle", 2, None)
    assert pacs["last_sent_at"]


def test_what_is_held_is_said_at_its_destination(store, run):
    store.receive()
    store.finish(store.claim()[0])
    for delivery in deliveries.claim(store.engine, "pacs", "d", 8, 60):
        deliveries.mark_failed(store.engine, delivery, "refused", 1)
    pacs = destinations(run)["pacs"]
    assert (pacs["state"], pacs["held"], pacs["last_error"]) == ("held", 2, "refused")


def refuse(store, what, sender, reason, count=1):
    refusals.add(store.engine, {CountedRefusal(what, sender, "127.0.0.1", reason): count})


def test_each_sender_has_what_it_sent_and_what_was_refused_of_it_and_why(store, run):
    store.receive(sender="CT1")
    store.receive(uid="1.2.4", content=b"b", sender="CT1")
    store.receive(uid="1.2.5", content=b"c", sender="CT2")
    refuse(store, "image", "CT2", "A700: no room", 2)
    refuse(store, "image", "CT2", "0122: no radiograph")
    refuse(store, "association", "STRANGER", "not among the [[senders]]")
    found = {row["ae_title"]: row for row in json.loads(run("status", "--json"))["senders"]}
    assert {name: (row["received"], row["refused"]) for name, row in found.items()} == {
        "CT1": (2, 0),
        "CT2": (1, 3),
        "STRANGER": (0, 1),
    }
    assert found["CT2"]["refused_by_reason"] == {"A700: no room": 2, "0122: no radiograph": 1}
    assert found["STRANGER"]["last_seen_at"]
    assert found["STRANGER"]["last_received_at"] is None
    assert "3 (2 x A700: no room" in shown(run, "sender CT2") or "1 x 0122: no radiograph" in shown(run, "sender CT2")


def test_what_stands_in_brackets_is_shown_as_it_is(store, run):
    store.receive(patient="[bold]P[/bold]")
    refuse(store, "association", "X", "not among the [[senders]]")
    assert "[bold]P[/bold]" in run("queue", "list")
    assert "[[senders]]" in shown(run, "sender X")


def test_refusals_of_days_ago_are_left_out(store, run):
    refuse(store, "image", "CT2", "A700")
    with write(store.engine) as connection:
        connection.execute(update(refusals_table).values(day=refusals_table.c.day - 2))
    assert json.loads(run("status", "--json"))["senders"] == []


def test_the_queue_lists_time_patient_accession_and_answer(store, run):
    store.receive(patient="P-17", accession="A-23")
    job = store.claim()[0]
    store.finish(job)
    (row,) = json.loads(run("queue", "list", "--json"))
    assert (row["patient_id"], row["accession_number"], row["answer"]) == ("P-17", "A-23", "healthy")
    assert isinstance(row["received_at"], float)
    line = run("queue", "list").splitlines()[1]
    assert "P-17" in line
    assert "A-23" in line
    assert "healthy" in line
    assert datetime.fromtimestamp(row["received_at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC") in line
    deliveries_line = run("queue", "list", "deliveries").splitlines()[1]
    assert "P-17" in deliveries_line
    assert "healthy" in deliveries_line


def test_indeterminate_is_an_answer(store, run):
    store.receive()
    store.finish(store.claim()[0])
    with write(store.engine) as connection:
        findings = json.dumps({"label": "viral_pneumonia", "indeterminate": True})
        connection.execute(update(jobs_table).values(findings=findings))
    (row,) = json.loads(run("queue", "list", "--json"))
    assert (row["answer"], row["likeliest"]) == ("indeterminate", "viral_pneumonia")
    assert "indeterminate" in run("queue", "list")


def test_an_indeterminate_answer_has_its_reason_in_queue_and_audit_log(store, run):
    store.receive()
    store.finish(
        store.claim()[0], answer="indeterminate", likeliest="viral_pneumonia", indeterminate_reason="two classes are close"
    )
    assert "Indeterminate: two classes are close." in " ".join(run("queue", "list").split())
    (event,) = audit.search(store.engine, event="job-done")
    assert event["detail"] == "indeterminate: two classes are close"


def test_what_is_not_analysed_yet_has_no_answer(store):
    store.receive()
    (row,) = overview.list_jobs(store.engine)
    assert (row["answer"], row["likeliest"]) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
        (86460, "1 d"),
    ],
)
def test_ages_in_words(seconds, words):
    assert age_in_words(seconds) == words


def test_times_and_sizes_in_words():
    assert ago_in_words(None) == "never"
    assert ago_in_words(0).startswith("1970-01-01 00:00:00 UTC (")
    assert [size_in_words(value) for value in (0, 999, 1500, 12_345_678, 2.5e9, 3e12)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "12 MB",
        "2.5 GB",
        "3.0 TB",
    ]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_times_are_utc_wherever_the_node_stands_those_given_and_those_shown(store, run, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        audit.record(store.engine, AuditEvent("other"))
        (row,) = json.loads(run("audit", "search", "--event", "other", "--format", "json"))
        assert row["at"].endswith("+00:00")
        at = row["at"].removesuffix("+00:00")  # what is shown can be given
        found = ("audit", "search", "--event", "other", "--format", "json")
        assert len(json.loads(run(*found, "--since", at))) == 1
        assert json.loads(run(*found, "--until", at)) == []
        store.receive()
        received = run("queue", "list").splitlines()[1]
        assert datetime.now(UTC).strftime("%Y-%m-%d %H:") in received or datetime.now(UTC).minute == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("at", [1796063387.0, 1796063387.1234, 1796063386.9999998, 1796063387.4829998])
def test_a_time_that_is_shown_is_not_later_than_it_was(at):
    shown = parse_time(iso_to_the_millisecond(at), "--since")
    assert at - 0.001 < shown <= at


def test_times_with_an_offset_and_days_are_understood():
    assert parse_time("1970-01-02", "--since") == 86400
    assert parse_time("1970-01-01T01:00+01:00", "--since") == 0
    assert parse_time("1970-01-01 00:00:01", "--since") == 1
    assert parse_time("", "--since") is None
    with pytest.raises(CxrNodeError, match="--since 'yesterday' is no time"):
        parse_time("yesterday", "--since")


def test_the_whole_query_is_in_the_audit_log(store, run):
    query = ("--event", "job-*", "--user", "CT1", "--since", "2026-01-02", "--until", "2027-01-01", "--limit", "7")
    run("audit", "search", *query, "--patient", "P*", "--study", "1.5")
    (event,) = audit.search(store.engine, event="audit-searched")
    assert json.loads(event["detail"]) == {
        "event": "job-*",
        "user": "CT1",
        "since": "2026-01-02",
        "until": "2027-01-01",
        "limit": 7,
        "patient": "P*",
        "study": "1.5",
    }


def test_the_commands_take_the_same_options(store, run):
    store.receive()
    store.finish(store.claim()[0])
    store.send_all()
    assert json.loads(run("queue", "list", "deliveries", "2", "--json"))[0]["id"] == 2
    assert json.loads(run("queue", "list", "1", "--patient", "PID", "--json"))[0]["id"] == 1
    assert [row["id"] for row in json.loads(run("queue", "list", "--state", "sent", "--json"))] == [1, 2]
    dry = json.loads(run("queue", "retry", "--kind", "report", "--state", "sent", "--dry-run", "--json"))
    assert (dry["changed"], dry["dry_run"], dry["what"]) == ([2], True, "deliveries")
    assert "dry run" in run("queue", "retry", "--study", "1.5", "--dry-run")
    assert run("queue", "retry", "--deliveries", "1").startswith("retry: 1 of 1")
    assert run("queue", "cancel", "--destination", "pacs").startswith("cancel: 1 of 2")
    assert run("queue", "retry", "1").startswith("retry: 1 of 1")
    for wrong in (
        ("retry",),
        ("cancel",),
        ("retry", "99"),
        ("list", "x"),
        ("list", "--kind", "x"),
        ("retry", "--held", "--state", "new"),
    ):
        with pytest.raises(CxrNodeError):
            run("queue", *wrong)
