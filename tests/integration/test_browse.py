"""What the pages ask of the database: searches, pages, histories, readers' verdicts; on SQLite and PostgreSQL."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import event as sqlalchemy_event

from cxr_node.store.audit_log import audit
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import browse, browse_queue, hours, names, readings
from tests.large_database import fill
from tests.store import Store

_COUNT, _EVENTS = 400, 3000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(request, tmp_path_factory):
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else ""
    store = Store(tmp_path_factory.mktemp("many"), url)
    fill(store.engine, _COUNT, _EVENTS)
    yield store.engine
    store.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else ""
    store = Store(tmp_path, url)
    yield store
    store.engine.dispose()


def _found(engine, size=1000, **search):
    return browse.find_studies(engine, browse.Search(**search), size=size)[0]


def test_pages_hold_every_study_once_and_the_newest_first(many):
    seen = []
    for page in range(1, 100):
        rows, more = browse.find_studies(many, browse.Search(), page=page, size=37)
        seen += [row["study_instance_uid"] for row in rows]
        if not more:
            break
    assert seen == [f"1.2.{number}" for number in range(_COUNT, 0, -1)]


def test_each_field_finds_what_has_it_and_nothing_else(many):
    every = _found(many)
    for field, column in (("patient", "patient_id"), ("accession", "accession_number"), ("sender", "sender")):
        value = every[7][column]
        found = _found(many, **{field: value})
        assert [row["job_id"] for row in found] == [row["job_id"] for row in every if row[column] == value]
    for state in ("done", "rejected", "new"):
        assert {row["job_id"] for row in _found(many, state=state)} == {row["job_id"] for row in every if row["state"] == state}
    for answer in ("healthy", "indeterminate"):
        assert {row["job_id"] for row in _found(many, answer=answer)} == {
            row["job_id"] for row in every if row["answer"] == answer
        }


def test_wildcards_stand_for_anything_and_heed_no_case(many):
    assert {row["patient_id"] for row in _found(many, patient="pid17*")} == {"PID17", *(f"PID17{digit}" for digit in range(10))}
    assert {row["accession_number"] for row in _found(many, accession="*C39")} == {"ACC39"}
    assert _found(many, patient="%") == []
    assert _found(many, patient="PID_7") == []


def test_names_are_found_by_words_in_any_order(many):
    found = _found(many, name="jane doe")
    assert found
    assert {row["name"] for row in found} == {"DOE, JANE"}
    assert [row["job_id"] for row in _found(many, name="Dóe^Ja")] == [row["job_id"] for row in found]


def test_times_are_from_and_before(many):
    rows = _found(many)
    first, second = rows[10]["received_at"], rows[5]["received_at"]
    assert [row["job_id"] for row in _found(many, since=first, until=second)] == [row["job_id"] for row in rows[6:11]]


def test_a_study_of_two_images_is_one_row_by_its_newest_match(store):
    store.receive(uid="1.1", content=b"first", study="1.5", sender="CT1")
    store.receive(uid="1.2", content=b"second", study="1.5", sender="CT2")
    (row,) = _found(store.engine)
    assert (row["sop_instance_uid"], row["images"]) == ("1.2", 2)
    (row,) = _found(store.engine, sender="CT1")
    assert row["sop_instance_uid"] == "1.1"
    assert [image["sop_instance_uid"] for image in browse.study(store.engine, "1.5")] == ["1.2", "1.1"]


def test_what_is_kept_unanalysed_is_found(store):
    store.receive(uid="1.1", content=b"first", study="1.5", analyse=False, note="It is no radiograph.")
    (row,) = _found(store.engine, state=browse.KEPT)
    assert (row["state"], row["note"], row["job_id"]) == ("kept", "It is no radiograph.", None)


def test_a_job_keeps_its_answer_for_searches(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    (row,) = _found(store.engine, answer="healthy")
    assert row["deliveries"] == {"waiting": 2}
    (image,) = browse.study(store.engine, "1.5")
    assert [[one["destination"] for one in made["deliveries"]] for made in image["results"]] == [["pacs"], ["pacs"]]


def test_the_queue_s_pages_hold_all_that_is_chosen_once(many):
    chosen, seen, before = Selection(destination="archive"), [], None
    while True:
        rows, more = browse_queue.list_queue(many, chosen, of="deliveries", before=before, size=99)
        seen += [row["id"] for row in rows]
        if not more:
            break
        before = rows[-1]["id"]
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == _COUNT
    assert browse_queue.count_queue(many, chosen, of="deliveries", most=100) == 100


def test_hours_count_what_happened_in_them(store):
    store.receive(uid="1.1", content=b"first")
    (job,) = store.claim()
    store.finish(job)
    store.send_all()
    found = hours.by_hour(store.engine)
    assert len(found) == 24
    assert [sum(row[name] for row in found[-2:]) for name in ("received", "analysed", "sent")] == [1, 1, 2]
    assert found[-1]["at"] <= time.time() < found[-1]["at"] + 3600


@pytest.mark.parametrize(
    "asked",
    [
        {"patient_id": "PID17"},
        {"patient_id": "PID1*"},
        {"event": "job-*"},
        {"event": "job-held"},
        {"user": "MODALITY1*"},
        {"event": "job-done", "patient_id": "PID17"},
        {"user": "pacs", "event": "result-sent"},
        {"event": "nothing-*"},
        {"outcome": "failure"},
    ],
)
def test_audit_pages_find_what_the_command_finds(many, asked):
    wanted = [row["id"] for row in audit.search(many, **asked)][::-1]
    seen, before = [], None
    while True:
        rows, more = hours.audit_page(many, asked, before=before, size=71)
        seen += [row["id"] for row in rows]
        if not more:
            break
        before = rows[-1]["id"]
    assert seen == wanted


def test_audit_pages_by_time_begin_where_they_are_told(many):
    until = next(iter(audit.search(many, limit=1500)))["at"]
    rows, _ = hours.audit_page(many, {"until": until}, before=None, size=10)
    assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)
    assert rows[0]["at"] < until


def test_searches_read_no_table_from_end_to_end(tmp_path):
    store = Store(tmp_path)
    fill(store.engine, 300, 300)
    asked = []
    sqlalchemy_event.listen(
        store.engine, "before_cursor_execute", lambda _c, _cursor, sql, values, _x, _many: asked.append((sql, values))
    )
    for search in ({"patient": "PID1"}, {"accession": "ACC1"}, {"answer": "healthy"}, {"state": "held"}):
        browse.find_studies(store.engine, browse.Search(**search))
    for given in ({"patient_id": "PID1"}, {"patient_id": "PID1*"}, {"user": "pacs"}, {"event": "job-*"}, {"until": time.time()}):
        hours.audit_page(store.engine, given, before=None)
    searches = [(sql, values) for sql, values in asked if sql.startswith("SELECT")]
    assert len(searches) > 9
    with store.engine.connect() as connection:
        for sql, values in searches:
            steps = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
            assert not {"SCAN instances", "SCAN jobs", "SCAN audit"} & set(steps), (sql, steps)


def test_a_reading_is_kept_with_what_it_judges_and_audited(store):
    store.receive()
    (job,) = store.claim()
    assert not readings.add(store.engine, job.id, user="r", host="h", verdict="agree", comment="")  # it has no answer yet
    store.finish(job, model="7")
    assert readings.add(store.engine, job.id, user="Reader", host="10.0.0.9", verdict="disagree", comment=" An old scar. ")
    (row,) = readings.every(store.engine)
    assert (row["verdict"], row["comment"], row["answer"], row["model_version"]) == ("disagree", "An old scar.", "healthy", "7")
    assert (row["patient_id"], row["user"]) == ("PID", "Reader")
    (event,) = audit.search(store.engine, event="reading-noted")
    assert (event["user"], event["patient_id"], event["detail"]) == ("Reader", "PID", f"job {job.id}: disagree, with a comment")


@pytest.mark.parametrize(("verdict", "comment"), [("comment", "  "), ("maybe", "text"), ("", "")])
def test_a_reading_without_sense_is_refused(store, verdict, comment):
    with pytest.raises(ValueError, match="agree, disagree"):
        readings.add(store.engine, 1, user="r", host="", verdict=verdict, comment=comment)


@pytest.mark.parametrize(
    ("written", "shown", "words"),
    [
        ("Doe^Jane", "Doe, Jane", "DOE JANE"),
        ("Müller^Anna^Maria^Dr", "Müller, Anna Maria (Dr)", "MULLER ANNA MARIA DR"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou", "YAMADA TAROU 山田 太郎 やまた たろう"),
        ("ONLY", "ONLY", "ONLY"),
    ],
)
def test_names_are_shown_as_people_write_them(written, shown, words):
    assert names.display_name(written) == shown
    assert names.normalised_name(written) == words


def test_a_name_is_replaced_by_the_last_that_was_read(store):
    store.receive()
    names.keep(store.engine, {1: "Doe^Jane", 99: "No^Instance", 2: "^^"})
    names.keep(store.engine, {1: "Roe^Jane"})
    assert names.names_of(store.engine, [1, 99]) == {1: "Roe, Jane"}
