"""One spelling for each address, and one peer for each /64 network of IPv6, wherever a limit is per peer."""

from __future__ import annotations

import selectors
import socket

import pytest

from cxr_node.commitment import reports
from cxr_node.deliver.request import Peer
from cxr_node.peer_address import address_of, endpoint, is_in, is_named_singly, network_of, plain_address, site_of
from cxr_node.receive.intake.refused import Counts
from cxr_node.receive.transport.limiter import AssociationSlots, KnownAddresses
from cxr_node.receive.transport.pending_connections import PendingConnections
from cxr_node.receive.transport.rate_limit import SenderRateLimit
from cxr_node.records import Sender
from cxr_node.security.event_budget import Budget
from cxr_node.settings import NodeSettings, ReceiveSettings, SenderSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.views import refusals
from tests.clock import Clock

NEIGHBOURS = [f"2001:db8:1:2::{number:x}" for number in range(1, 41)]
MODALITY = SenderSettings(ae_title="CT1", hosts=("2001:db8:1:2::5", "10.0.0.0/8"))


@pytest.mark.parametrize(
    ("host", "plain", "site"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("::FFFF:0A00:0005", "10.0.0.5", "10.0.0.5"),
        ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("2001:DB8:1:2:0:0:0:5", "2001:db8:1:2::5", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::5", "2001:db8:1:3::5", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::1%eth0", "fe80::/64"),
        ("::1", "::1", "::1"),
        ("pacs.hospital.test", "pacs.hospital.test", "pacs.hospital.test"),
        ("", "", ""),
    ],
)
def test_each_address_has_one_spelling_and_one_peer(host, plain, site):
    assert (plain_address(host), site_of(host)) == (plain, site)


@pytest.mark.parametrize(
    ("host", "networks", "is_there"),
    [
        ("::ffff:10.0.0.5", ("10.0.0.0/8",), True),
        ("10.0.0.5", ("::ffff:10.0.0.5",), True),
        ("10.0.0.5", ("::ffff:10.0.0.0/104",), True),
        ("::ffff:11.0.0.5", ("::ffff:10.0.0.0/104",), False),
        ("2001:db8::5", ("2001:db8::/32", "10.0.0.0/8"), True),
        ("2001:db8::5", ("10.0.0.0/8",), False),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("pacs", ("0.0.0.0/0", "::/0"), False),
    ],
)
def test_ipv4_addresses_match_however_a_socket_shows_them(host, networks, is_there):
    assert is_in(host, networks) is is_there
    assert SenderSettings(ae_title="A", hosts=networks).may_call_from(host) is is_there


def test_a_network_of_all_mapped_addresses_is_all_of_ipv4():
    assert str(network_of("::ffff:0:0/96")) == "0.0.0.0/0"
    assert address_of("pacs") is None
    with pytest.raises(ValueError, match="does not appear"):
        network_of("pacs")


def test_an_address_of_the_settings_is_a_peer_by_itself():
    settings = Settings(senders=(MODALITY,))
    assert settings.peer_of("2001:db8:1:2:0::5") == "2001:db8:1:2::5"
    assert settings.peer_of("2001:db8:1:2::6") == "2001:db8:1:2::/64"
    assert settings.peer_of("::ffff:10.1.1.1") == "10.1.1.1"
    assert not is_named_singly("10.1.1.1", MODALITY.hosts)


def test_a_machine_with_many_addresses_gets_the_places_of_one():
    settings = Settings(senders=(MODALITY,))
    places = AssociationSlots(ReceiveSettings(max_associations=100, max_associations_per_sender=3), peer_of=settings.peer_of)
    assert [places.enter(host) for host in NEIGHBOURS if host != "2001:db8:1:2::5"] == [True] * 3 + [False] * 36
    assert places.enter("2001:db8:1:2::5"), "the modality of the settings has its own"
    assert places.enter("2001:db8:1:3::1")
    places.leave(NEIGHBOURS[0])
    assert places.has_free_slot(NEIGHBOURS[-1])


def test_an_address_that_has_proven_itself_is_known_in_each_spelling():
    known = KnownAddresses(Settings(senders=(MODALITY,)))
    known.prove("::ffff:192.0.2.1")
    assert "192.0.2.1" in known
    assert "192.0.2.2" not in known


def test_silent_connections_of_a_machine_with_many_addresses_end_each_other_and_nobody_else():
    settings = Settings(senders=(MODALITY,), receive=ReceiveSettings(max_associations=8, max_associations_per_sender=2))
    pairs = []

    def connect(host):
        ours, theirs = socket.socketpair()
        pairs.append((host, theirs))
        pending.add(ours, host, over_tls=False)

    def is_open(connection):
        connection.setblocking(False)
        try:
            return connection.recv(1) != b""
        except BlockingIOError:
            return True

    with selectors.DefaultSelector() as selector:
        pending = PendingConnections(settings, selector, None)
        connect("2001:db8:1:2::5")
        connect("192.0.2.1")
        for host in NEIGHBOURS:
            if host != "2001:db8:1:2::5":
                connect(host)
        left = [host for host, connection in pairs if is_open(connection)]
        pending.close()
    for _, connection in pairs:
        connection.close()
    assert left == ["2001:db8:1:2::5", "192.0.2.1", *NEIGHBOURS[-4:]]


def test_a_machine_with_many_addresses_has_one_budget_of_audit_events():
    settings = Settings(senders=(MODALITY,))
    budget = Budget(3, 1, Clock(), settings.peer_of)
    assert [budget.takes(host, "refused") for host in NEIGHBOURS].count(True) == 3 + 1
    assert budget.due() == [("2001:db8:1:2::/64", "refused", 36)]


def test_a_machine_with_many_addresses_has_one_limit_of_images_a_minute(tmp_path):
    rate = SenderRateLimit(3, tmp_path / "rate", Clock())
    assert [rate.allows(Sender("CT", "NODE", host)) for host in NEIGHBOURS].count(True) == 3
    assert rate.allows(Sender("CT", "NODE", "2001:db8:1:3::1"))


@pytest.fixture
def engine(tmp_path):
    engine = open_database(Settings(node=NodeSettings(data_dir=tmp_path)))
    yield engine
    engine.dispose()


def test_refusals_of_a_machine_with_many_addresses_are_counted_as_those_of_one(engine):
    counts = Counts(engine)
    for host in NEIGHBOURS:
        counts.add("association", Sender("CT", "NODE", host), "unknown")
    counts.write()
    rows = refusals.refusals(engine)
    assert len(rows) == 21
    assert [(row["host"], row["count"]) for row in rows if row["reason"] == refusals.OTHERS] == [("2001:db8:1:2::/64", 20)]


def test_reports_owed_to_a_machine_with_many_addresses_are_counted_as_those_to_one(engine, monkeypatch):
    monkeypatch.setattr(reports, "_MOST_OPEN_OF_ONE", 3)
    for number, host in enumerate(NEIGHBOURS[:3]):
        reports.take_request(engine, f"1.2.{number}", f"CT{number}", host, [("1.2", "1.3")])
    with pytest.raises(reports.TooManyOpen, match="this address"):
        reports.take_request(engine, "1.2.9", "CT9", NEIGHBOURS[3], [("1.2", "1.3")])
    reports.take_request(engine, "1.2.9", "CT9", "2001:db8:1:3::1", [("1.2", "1.3")])


@pytest.mark.parametrize(
    ("host", "text"),
    [("10.0.0.5", "10.0.0.5:104"), ("pacs", "pacs:104"), ("::1", "[::1]:104"), ("fe80::1%eth0", "[fe80::1%eth0]:104")],
)
def test_the_port_stands_apart_from_an_ipv6_address(host, text):
    assert endpoint(host, 104) == text
    assert text in str(Peer(host, 104, "PACS", "NODE"))
