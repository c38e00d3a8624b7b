"""Searches in a large log find the same on both databases, by an index: the short form of benchmarks/audit.py."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, literal, select, union_all

from benchmarks.audit import PAGE, fill, filters, first_pages
from cxr_node.records import AuditEvent
from cxr_node.store.audit_log import audit, audit_chain, audit_words
from cxr_node.store.database import write
from cxr_node.store.schema import FOUND_BY_BEGINNING
from cxr_node.store.schema import audit as audit_table
from cxr_node.store.wildcards import begins_with
from tests.store import Store

ROWS = 40_000


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("sqlite") / "var")
    fill(store.engine, ROWS)
    yield store
    store.engine.dispose()


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory, postgres):
    store = Store(tmp_path_factory.mktemp("postgresql") / "var", postgres.new_database())
    fill(store.engine, ROWS)
    yield store
    store.engine.dispose()


@pytest.mark.parametrize("which", ["sqlite", "postgresql"])
def test_every_filter_has_a_first_page(which, request):
    store = request.getfixturevalue(which)
    pages = {name: count for name, count, _, _ in first_pages(store.engine, ROWS)}
    empty = {name for name in pages if any(word in name for word in ("not there", "before", "never both"))}
    assert {name for name, count in pages.items() if count == 0} == empty
    assert max(pages.values()) <= PAGE


@pytest.mark.parametrize("name", FOUND_BY_BEGINNING)
@pytest.mark.parametrize("which", ["sqlite", "postgresql"])
def test_what_begins_with_a_text_is_found_by_an_index(which, name, request):
    store = request.getfixturevalue(which)
    beginning = {"patient_id": "P500*", "accession_number": "A4000*", "host": "10.1.3.17*"}.get(
        name, "1.2.826.0.1.3680043.9.400*"
    )
    with store.engine.connect() as connection:
        condition = begins_with(audit_table.c[name], beginning, connection.dialect.name) & (audit_table.c[name] != "")
        sql = str(select(audit_table.c.id).where(condition).compile(connection, compile_kwargs={"literal_binds": True}))
        explain = "EXPLAIN" if which == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {sql.replace('%', '%%')}"))
    assert f"ix_audit_{name}" in plan


@pytest.mark.parametrize("beginning", ["p500*", "Pé*", "P\uffff*", "P\ud7ff*", "P%*", "P_*", "P'*", "P\\*", "P~*"])
@pytest.mark.parametrize("which", ["sqlite", "postgresql"])
def test_a_beginning_finds_what_begins_so_and_nothing_else(which, beginning, request):
    store = request.getfixturevalue(which)
    texts = [
        "p500",
        "P500",
        "P5001",
        "Pé",
        "Pé1",
        "Pf",
        "P\uffff",
        "P\uffff1",
        "P\ud7ff",
        "P\ue000",
        "P%",
        "P_1",
        "P'1",
        "P\\1",
        "P~",
    ]
    with store.engine.connect() as connection:
        given = union_all(*(select(literal(one).label("name")) for one in texts)).subquery()
        matched = begins_with(given.c.name, beginning, which)
        found = set(connection.execute(select(given.c.name).where(matched)).scalars())
    stem = beginning.removesuffix("*")
    assert found == {one for one in texts if one.startswith((stem, stem.upper(), stem.lower()))}


@pytest.mark.parametrize("which", ["sqlite", "postgresql"])
def test_both_databases_find_the_same(which, request):
    store = request.getfixturevalue(which)
    expected = request.getfixturevalue("sqlite")
    for name, asked in filters(ROWS).items():
        ours, theirs = (list(audit.search(one.engine, **asked, limit=PAGE)) for one in (store, expected))
        assert ours == theirs, name


def test_words_within_a_time_are_found_though_the_clock_stepped_back(tmp_path):
    store = Store(tmp_path / "var")
    fill(store.engine, 1000)
    with write(store.engine) as connection:
        row = {"event": "job-done", "outcome": "success", "user": "", "host": "", "patient_id": "", "study_instance_uid": ""}
        late = {
            **row,
            "id": 1001,
            "at": 1_700_000_000.0 + 100,
            "sop_instance_uid": "",
            "detail": "zebra",
        }
        connection.execute(insert(audit_table).values(late))
        connection.exec_driver_sql("INSERT INTO audit_text (rowid, detail) SELECT id, detail FROM audit WHERE id = 1001")
    for times in ({"until": late["at"] + 1}, {"since": late["at"] - 1}, {"since": late["at"] - 1, "until": late["at"] + 1}):
        assert [found["id"] for found in audit.search(store.engine, words="zebra", **times, limit=PAGE)] == [1001]
    store.engine.dispose()


@pytest.mark.parametrize("sealed", [False, True], ids=["not chained yet", "chained"])
def test_words_are_found_as_soon_as_they_are_written(tmp_path, database_url, sealed):
    store = Store(tmp_path / "var", database_url)
    audit.record(store.engine, AuditEvent("job-held", "failure", detail="Größe nicht lesbar: overlay-7"))
    audit_chain.seal_all(store.engine)
    audit.record(
        store.engine,
        AuditEvent("job-held", "failure", detail="größe nicht lesbar: overlay-8", user="CT"),
        AuditEvent("job-held", "failure", detail="something else"),
    )
    if sealed:
        audit_chain.seal_all(store.engine)

    def found(words, **asked):
        return [row["id"] for row in audit.search(store.engine, words=words, **asked)]

    for limit in (None, 50):
        assert found("größe", limit=limit) == [1, 2]
        assert found("lesb* overlay", limit=limit) == [1, 2]
        assert found("8", limit=limit) == [2]
        assert found("größe", user="CT", limit=limit) == found("größe", after_id=1, limit=limit) == [2]
        assert found("größe", before_id=2, limit=limit) == [1]
        assert found("größe", since=0.0, limit=limit) == [1, 2]
        assert found("größe", until=1.0, limit=limit) == []
        assert found("lesba", limit=limit) == found("8 else", limit=limit) == found("*", limit=limit) == []
    assert found("größe", limit=1) == [2]
    store.engine.dispose()


def test_of_many_rows_that_are_not_indexed_the_newest_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_words, "MOST_NOT_INDEXED", 3)
    store = Store(tmp_path / "var")
    audit.record(store.engine, *(AuditEvent("job-held", detail="zebra") for _ in range(5)))
    assert [row["id"] for row in audit.search(store.engine, words="zebra")] == [3, 4, 5]
    store.engine.dispose()
