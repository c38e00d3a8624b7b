"""Leases on a real SQLite file and on a PostgreSQL server: whose they are, when they end, and what clocks do to them.

Over 300 lines: each case runs on both databases with the same helpers.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from sqlalchemy import select, text, update

from cxr_node.errors import StoreError
from cxr_node.records import JobState
from cxr_node.store import lock
from cxr_node.store.database import write
from cxr_node.store.queue import deliveries, jobs, leases
from cxr_node.store.queue.leases import LeaseClock
from cxr_node.store.schema import jobs as jobs_table
from tests.clock import Clock
from tests.store import Store
from tests.waiting import PATIENCE_S

LEASE_S = 60.0
HOUR_S, YEAR_S = 3600.0, 365 * 86400.0
ELSEWHERE = "0123456789abcdef0123456789abcdef"
"""A process that has shown no life here."""


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def other(tmp_path, store):
    """Another process's way to the same database."""
    opened = Store(tmp_path / "var", store.settings.database.url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def on_sqlite(tmp_path):
    opened = Store(tmp_path / "var")
    yield opened
    opened.engine.dispose()


@pytest.fixture
def on_postgres(tmp_path, postgres_url):
    opened = Store(tmp_path / "var", postgres_url)
    yield opened
    opened.engine.dispose()


_NAME_ITSELF = """
import sys
from pathlib import Path
from cxr_node.store.queue.leases import owner_name
print(owner_name(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_process(tmp_path):
    """A process that has named itself in the store's data folder, and its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", _NAME_ITSELF, str(tmp_path / "var")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def end(process):
    process.kill()
    process.wait(PATIENCE_S)


def states(store):
    with store.engine.connect() as connection:
        return list(connection.execute(select(jobs_table.c.state)).scalars())


class TestWhoseLeasesAre:
    def test_each_process_has_a_name_that_says_nothing_of_its_machine(self, store, another_process):
        _, name = another_process
        own = leases.owner_name(store.folders.root)
        assert own == leases.owner_name(store.folders.root)
        assert name != own
        assert {len(name), len(own)} == {32}
        assert set(name + own) <= set("0123456789abcdef")

    def test_those_of_a_process_that_was_killed_end_at_once(self, store, another_process):
        process, name = another_process
        store.receive()
        store.claim(name)
        assert leases.release_dead(store.engine, store.settings) == 0
        end(process)
        assert store.claim("w") == []
        assert leases.release_dead(store.engine, store.settings) == 1
        assert len(store.claim("w")) == 1

    def test_those_of_a_sender_too(self, store, another_process):
        process, name = another_process
        store.receive()
        (job,) = store.claim()
        store.finish(job)
        assert len(deliveries.claim(store.engine, "pacs", name, 8, LEASE_S)) == 2
        end(process)
        leases.release_dead(store.engine, store.settings)
        assert len(deliveries.claim(store.engine, "pacs", "d", 8, LEASE_S)) == 2

    def test_those_of_the_living_stay(self, store):
        store.receive()
        store.claim(leases.owner_name(store.folders.root))
        assert leases.release_dead(store.engine, store.settings) == 0
        assert store.claim("w") == []

    def test_of_a_process_elsewhere_nothing_is_known(self, store):
        store.receive()
        store.claim(ELSEWHERE)
        assert leases.release_dead(store.engine, store.settings) == 0
        assert store.claim("w") == []

    def test_a_file_that_somebody_removed_costs_the_living_nothing(self, store):
        store.receive()
        owner = leases.owner_name(store.folders.root)
        store.claim(owner)
        (store.folders.root / ".processes" / owner).rename(store.folders.root / "kept")
        try:
            assert leases.release_dead(store.engine, store.settings) == 0
            assert store.claim("w") == []
        finally:
            (store.folders.root / "kept").rename(store.folders.root / ".processes" / owner)

    def test_the_dead_leave_no_file_and_the_living_keep_theirs(self, store, another_process):
        process, name = another_process
        own = leases.owner_name(store.folders.root)
        end(process)
        leases.release_dead(store.engine, store.settings)
        files = {path.name for path in (store.folders.root / ".processes").iterdir()}
        assert own in files
        assert name not in files

    def test_what_is_no_process_s_file_is_left_alone(self, store):
        leases.owner_name(store.folders.root)
        strange = store.folders.root / ".processes" / "README"
        strange.write_text("?")
        leases.release_dead(store.engine, store.settings)
        assert strange.exists()

    def test_a_folder_that_can_not_be_written_is_told(self, tmp_path):
        (tmp_path / ".processes").write_text("no folder")
        with pytest.raises(StoreError, match=r"\.processes can't be written"):
            lock.register_process(tmp_path)


class TestTheWallClock:
    """Set by a person, by NTP, or for summer time: leases know nothing of it."""

    @pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S])
    def test_frees_no_lease_and_keeps_none(self, store, other, monkeypatch, by_s):
        store.receive()
        (job,) = store.claim("slow")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + by_s)
        assert other.claim("quick") == []
        leases.release_dead(other.engine, other.settings)
        assert other.claim("quick") == []
        jobs.renew(store.engine, "slow", [job], LEASE_S)
        assert other.claim("quick") == []
        store.lapse()
        assert len(other.claim("quick")) == 1


class TestTheClockOfTheMachine:
    """SQLite: steady, and the same for all processes."""

    @pytest.fixture
    def steady(self, on_sqlite):
        clock = Clock(1e6)
        leases.set_clock(on_sqlite.engine, LeaseClock(clock, "this start"))
        return clock

    def test_a_lease_lapses_when_its_time_is_over(self, on_sqlite, steady):
        on_sqlite.receive()
        on_sqlite.claim(ELSEWHERE, lease_s=LEASE_S)
        steady.now += LEASE_S - 1
        assert on_sqlite.claim("w") == []
        steady.now += 2
        assert len(on_sqlite.claim("w")) == 1

    def test_a_lease_that_is_renewed_does_not(self, on_sqlite, steady):
        on_sqlite.receive()
        (job,) = on_sqlite.claim(ELSEWHERE, lease_s=LEASE_S)
        steady.now += LEASE_S - 1
        jobs.renew(on_sqlite.engine, ELSEWHERE, [job], LEASE_S)
        steady.now += LEASE_S - 1
        assert on_sqlite.claim("w") == []

    def test_a_lapsed_lease_counts_as_a_death_of_the_worker(self, on_sqlite, steady):
        on_sqlite.receive()
        for _ in range(3):
            on_sqlite.claim(ELSEWHERE, lease_s=LEASE_S, max_attempts=3)
            steady.now += LEASE_S + 1
        assert on_sqlite.claim("w", max_attempts=3) == []
        assert states(on_sqlite) == [JobState.HELD]

    def test_a_machine_that_started_anew_frees_what_it_held_before(self, on_sqlite, steady):
        on_sqlite.receive()
        on_sqlite.claim(ELSEWHERE, lease_s=LEASE_S)
        leases.set_clock(on_sqlite.engine, LeaseClock(Clock(5.0), "the next start"))
        assert on_sqlite.claim("w") == []  # it compares no times of different starts
        assert leases.release_dead(on_sqlite.engine, on_sqlite.settings) == 1
        assert len(on_sqlite.claim("w")) == 1

    def test_a_process_that_lives_keeps_its_lease_whatever_start_its_clock_counts_from(self, on_sqlite, steady):
        on_sqlite.receive()
        on_sqlite.claim(leases.owner_name(on_sqlite.folders.root), lease_s=LEASE_S)
        leases.set_clock(on_sqlite.engine, LeaseClock(Clock(1e9), "another kernel"))
        assert leases.release_dead(on_sqlite.engine, on_sqlite.settings) == 0
        assert on_sqlite.claim("w") == []

    def test_a_lease_of_a_program_before_this_one_ends_at_the_first_start(self, on_sqlite):
        on_sqlite.receive()
        on_sqlite.claim("some-host/4711/123456")
        with write(on_sqlite.engine) as connection:
            connection.execute(update(jobs_table).values(lease_until=time.time() + 100, lease_start=""))
        leases.release_dead(on_sqlite.engine, on_sqlite.settings)
        assert len(on_sqlite.claim("w")) == 1


class TestTheClockOfTheServer:
    """PostgreSQL: one for all machines, and it can be set."""

    @pytest.fixture
    def clocks(self, on_postgres):
        steady, server = Clock(1e6), Clock(1.8e9)
        leases.set_clock(on_postgres.engine, LeaseClock(steady, "", lambda _: server.now))
        on_postgres.claim()  # the clocks have been seen once
        self.steady, self.server = steady, server
        self.pass_(2 * LEASE_S)
        return steady, server

    def pass_(self, seconds):
        self.steady.now += seconds
        self.server.now += seconds

    def test_is_the_one_that_leases_run_on(self, on_postgres):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=1000)
        with on_postgres.engine.connect() as connection:
            left_s = connection.execute(
                text("SELECT lease_until - extract(epoch FROM clock_timestamp())::double precision FROM jobs")
            ).scalar_one()
        assert 900 < left_s <= 1000

    def test_a_lease_lapses_when_its_time_is_over(self, on_postgres, clocks):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        self.pass_(LEASE_S - 1)
        assert on_postgres.claim("w", lease_s=LEASE_S) == []
        self.pass_(2)
        assert len(on_postgres.claim("w", lease_s=LEASE_S)) == 1

    def test_a_step_ahead_leaves_the_living_time_to_renew(self, on_postgres, clocks):
        on_postgres.receive(uid="1.2.1", content=b"1")
        on_postgres.receive(uid="1.2.2", content=b"2")
        living, dead = on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        self.server.now += HOUR_S
        assert on_postgres.claim("w", lease_s=LEASE_S) == []
        jobs.renew(on_postgres.engine, ELSEWHERE, [living], LEASE_S)
        self.pass_(LEASE_S - 1)
        assert on_postgres.claim("w", lease_s=LEASE_S) == []
        jobs.renew(on_postgres.engine, ELSEWHERE, [living], LEASE_S)
        self.pass_(2)
        assert [job.id for job in on_postgres.claim("w", lease_s=LEASE_S)] == [dead.id]

    def test_a_step_back_keeps_nothing_longer_than_a_lease_lasts(self, on_postgres, clocks):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        self.server.now -= HOUR_S
        assert leases.release_dead(on_postgres.engine, on_postgres.settings) == 0
        assert on_postgres.claim("w", lease_s=LEASE_S) == []
        self.pass_(on_postgres.settings.inference.lease_s + 1)
        assert len(on_postgres.claim("w", lease_s=LEASE_S)) == 1

    def test_a_machine_that_slept_trusts_it_only_after_the_length_of_a_lease(self, on_postgres, clocks):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        self.server.now += HOUR_S  # our own stood still
        assert on_postgres.claim("w", lease_s=LEASE_S) == []

    def test_so_does_a_process_that_has_just_begun(self, on_postgres, clocks):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        self.pass_(HOUR_S)
        leases.set_clock(on_postgres.engine, LeaseClock(self.steady, "", lambda _: self.server.now))
        assert on_postgres.claim("w", lease_s=LEASE_S) == []
        self.pass_(LEASE_S + 1)
        assert len(on_postgres.claim("w", lease_s=LEASE_S)) == 1

    def test_a_clock_that_is_disciplined_slowly_is_trusted(self, on_postgres, clocks):
        on_postgres.receive()
        on_postgres.claim(ELSEWHERE, lease_s=LEASE_S)
        taken = []
        for _ in range(int(LEASE_S) + 1):
            self.pass_(1)
            self.server.now += 0.0005  # NTP's fastest
            taken += on_postgres.claim("w", lease_s=LEASE_S)
        assert len(taken) == 1

    def test_the_dead_of_this_machine_are_known_all_the_same(self, on_postgres, clocks, another_process):
        process, name = another_process
        on_postgres.receive()
        on_postgres.claim(name, lease_s=LEASE_S)
        self.server.now += HOUR_S
        end(process)
        assert leases.release_dead(on_postgres.engine, on_postgres.settings) == 1
        assert len(on_postgres.claim("w", lease_s=LEASE_S)) == 1
