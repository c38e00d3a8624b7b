"""One host at a time holds a lease, and another takes it when it lapses."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import create_engine

from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.queue import leases
from cxr_node.store.queue.host_leases import LEASE_S, HostLeases
from cxr_node.store.queue.leases import LeaseClock


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hosts(tmp_path, postgres_url, clock):
    """Three hosts, each with an engine of its own, on one server's clock."""
    open_database(Settings(node=NodeSettings(data_dir=tmp_path / "var"), database=DatabaseSettings(url=postgres_url))).dispose()
    engines = [create_engine(postgres_url) for _ in range(3)]
    for engine in engines:
        leases.set_clock(engine, LeaseClock(steady=clock, start="", server=lambda _connection: clock()))
    yield [HostLeases(engine, f"host {number}", steady=clock) for number, engine in enumerate(engines)]
    for engine in engines:
        engine.dispose()


def holders(hosts, name="housekeeping"):
    return [host.holds(name) for host in hosts]


def test_one_host_holds_a_lease_and_renews_it(hosts, clock):
    assert holders(hosts) == [True, False, False]
    for _ in range(20):
        clock.now += LEASE_S / 4
        assert holders(hosts) == [True, False, False]


def test_leases_are_independent(hosts):
    assert hosts[0].holds("housekeeping")
    assert hosts[1].holds("audit")
    assert not hosts[0].holds("audit")


def test_another_takes_it_once_it_has_lapsed(hosts, clock):
    assert holders(hosts) == [True, False, False]
    clock.now += LEASE_S / 2
    assert holders(hosts[1:]) == [False, False]
    for _ in range(12):  # a clock that went ahead in one step would be distrusted
        clock.now += LEASE_S / 10
        holders(hosts[1:2])
    assert holders(hosts[1:]) == [True, False]
    assert holders(hosts) == [False, True, False]


def test_another_takes_a_released_lease_at_once(hosts, clock):
    assert holders(hosts) == [True, False, False]
    hosts[0].release_all()
    clock.now += 6
    assert holders(hosts[1:]) == [True, False]


def test_one_of_many_concurrent_hosts_gets_it(hosts):
    found, gate = [], threading.Barrier(3)

    def ask(host):
        gate.wait()
        found.append(host.holds("new"))

    threads = [threading.Thread(target=ask, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, False, True]


def test_on_sqlite_there_is_one_host(tmp_path):
    engine = open_database(Settings(node=NodeSettings(data_dir=tmp_path / "var")))
    assert HostLeases(engine, "a").holds("housekeeping")
    assert HostLeases(engine, "b").holds("housekeeping")
    engine.dispose()
