"""Waits after wrong passwords and passcodes, on both engines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cxr_node.store.accounts import lockout
from cxr_node.store.database import querying
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    made = Store(tmp_path / "var", database_url)
    yield made
    made.engine.dispose()


def test_waits_double_to_a_quarter_of_an_hour_and_a_success_ends_them(store):
    engine, keys = store.engine, lockout.keys_of_login("ann", "10.0.0.1")
    clock, waits = [1e9], []
    for _ in range(14):
        assert lockout.begin(engine, keys, lambda: clock[0]) == 0
        waits.append(lockout.wait_s(engine, keys, lambda: clock[0]))
        clock[0] += waits[-1]
    assert waits[:6] == [0.0, 0.0, 5.0, 10.0, 20.0, 40.0]
    assert max(waits) == 900.0
    lockout.begin(engine, keys, lambda: clock[0])
    lockout.succeeded(engine, keys)
    assert lockout.wait_s(engine, keys[:1], lambda: clock[0]) is None


def test_who_signs_in_from_a_place_is_not_locked_out_there_by_guesses_from_elsewhere(store):
    engine, clock = store.engine, [1e9]
    here = lockout.keys_of_login("ann", "10.0.0.1")
    assert lockout.begin(engine, here, lambda: clock[0]) == 0
    lockout.succeeded(engine, here, lambda: clock[0])
    for number in range(60):
        clock[0] += lockout.begin(engine, lockout.keys_of_login("ann", f"10.0.9.{number}"), lambda: clock[0]) or 0.0
    assert lockout.wait_s(engine, lockout.keys_of_login("ann", "10.0.0.2"), lambda: clock[0]) > 300
    assert lockout.begin(engine, here, lambda: clock[0]) == 0
    assert lockout.begin(engine, here, lambda: clock[0] + 31 * 86400) == 0
    assert lockout._last_at(engine.connect(), here[2].known_place) == 0, "forgotten after a month"


def test_guesses_at_the_same_time_gain_nothing(store):
    keys = lockout.keys_of_login("ann", "10.0.0.1")
    with ThreadPoolExecutor(16) as threads:
        waits = list(threads.map(lambda _: lockout.begin(store.engine, keys), range(32)))
    assert waits.count(0.0) == 3


def test_made_up_names_fill_no_database(store, monkeypatch):
    monkeypatch.setattr(lockout, "_MOST_ROWS", 30)
    for number in range(60):
        lockout.begin(store.engine, lockout.keys_of_login(f"name{number}", "10.0.0.1"), lambda number=number: 1e9 + 1000 * number)
    with querying(store.engine) as query:
        assert query("SELECT count(*) FROM failed_attempts")[0][0] <= 33


def test_a_senders_wait_grows_to_five_minutes_and_is_its_own(store):
    engine, keys = store.engine, lockout.keys_of_sender("CT", "10.0.0.1")
    clock, waits = [1e9], []
    for _ in range(12):
        lockout.begin(engine, keys, lambda: clock[0])
        waits.append(lockout.wait_s(engine, keys, lambda: clock[0]))
        clock[0] += waits[-1]
    assert waits[:6] == [0.0, 0.0, 0.0, 5.0, 10.0, 20.0]
    assert max(waits) == 300.0
    assert lockout.wait_s(engine, lockout.keys_of_sender("CT", "10.0.0.2"), lambda: clock[0]) is None


def test_a_clock_that_was_set_back_locks_nobody_out(store):
    keys = lockout.keys_of_sender("CT", "10.0.0.1")
    for _ in range(6):
        lockout.begin(store.engine, keys, lambda: 1e9)
    assert lockout.wait_s(store.engine, keys, lambda: 1e9) > 0
    assert lockout.wait_s(store.engine, keys, lambda: 1e9 - 86400) == 0
    assert lockout.begin(store.engine, keys, lambda: 1e9 - 86400) == 0
