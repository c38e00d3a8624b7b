"""Counts of what was refused, on both databases."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from cxr_node.store.database import open_database, write
from cxr_node.store.views import refusals
from cxr_node.store.views.refusals import CountedRefusal
from tests.delivery_queue import settings_for


@pytest.fixture
def engine(tmp_path, database_url):
    engine = open_database(settings_for(tmp_path, database_url=database_url))
    yield engine
    engine.dispose()


def counts(engine, days=7):
    return {(row["what"], row["sender"], row["reason"]): row["count"] for row in refusals.refusals(engine, days)}


def test_counts_add_up_by_kind_sender_and_reason(engine):
    one, other = (
        CountedRefusal("image", "CT", "10.0.0.1", "A700: full"),
        CountedRefusal("association", "CT", "10.0.0.1", "unknown"),
    )
    refusals.add(engine, {one: 2, other: 1})
    refusals.add(engine, {one: 3, one._replace(sender="MR"): 4})
    assert counts(engine) == {
        ("image", "CT", "A700: full"): 5,
        ("image", "MR", "A700: full"): 4,
        ("association", "CT", "unknown"): 1,
    }
    assert [row["count"] for row in refusals.refusals(engine)] == [5, 4, 1]


def test_days_are_summed_and_old_ones_forgotten(engine):
    one = CountedRefusal("image", "CT", "10.0.0.1", "A700: full")
    for age in (40, 8, 2, 0):
        refusals.add(engine, {one: 1})
        with write(engine) as connection:
            connection.execute(text("UPDATE refusals SET day = day - :age WHERE day = :today"), {"age": age, "today": today()})
    assert counts(engine)[("image", "CT", "A700: full")] == 2
    assert counts(engine, days=30)[("image", "CT", "A700: full")] == 3
    refusals.add(engine, {one: 1})
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM refusals WHERE day < :day"), {"day": today() - 30}).scalar() == 0


def test_made_up_names_fill_no_table(engine):
    refusals.add(engine, {CountedRefusal("association", f"NAME{n}", "10.0.0.1", "unknown"): 1 for n in range(700)})
    rows = refusals.refusals(engine)
    assert len(rows) == 501
    assert sum(row["count"] for row in rows) == 700
    (rest,) = [row for row in rows if row["sender"] == ""]
    assert (rest["count"], "too many" in rest["reason"]) == (200, True)


def test_a_long_reason_is_cut(engine):
    refusals.add(engine, {CountedRefusal("association", "X" * 40, "10.0.0.1", "y" * 1000): 1})
    ((_, sender, reason),) = counts(engine)
    assert (len(sender), len(reason)) == (16, 255)


def today():
    return int(time.time() // 86400)
