"""The first page of a search in a large log is quick by any filter: the short form of benchmarks/audit.py."""

from __future__ import annotations

import pytest

from benchmarks.audit import PAGE, chain_speed, fill, filters, first_pages
from cxr_node.store import audit
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
def test_the_first_page_is_quick_by_any_filter(which, request):
    store = request.getfixturevalue(which)
    pages = {name: (count, again_s) for name, count, _, again_s in first_pages(store.engine, ROWS)}
    assert {name: again_s for name, (_, again_s) in pages.items() if again_s > 0.5} == {}
    assert {name: count for name, (count, _) in pages.items() if "not there" in name or "before" in name} == {
        name: 0 for name in pages if "not there" in name or "before" in name
    }
    assert all(0 < count <= PAGE for name, (count, _) in pages.items() if "not there" not in name and "before" not in name)


@pytest.mark.parametrize("which", ["sqlite", "postgresql"])
def test_both_databases_find_the_same(which, request):
    store = request.getfixturevalue(which)
    expected = request.getfixturevalue("sqlite")
    for name, asked in filters(ROWS).items():
        ours, theirs = (list(audit.search(one.engine, **asked, limit=PAGE)) for one in (store, expected))
        assert ours == theirs, name


def test_chains_and_verifies_thousands_of_rows_a_second(sqlite):
    chained, verified = chain_speed(sqlite.settings, sqlite.engine)
    assert chained > 1000
    assert verified > 1000
