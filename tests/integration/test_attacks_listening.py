"""Attacks on the listening side with the node's default settings, and an honest modality that sends meanwhile."""

from __future__ import annotations

import struct
import threading
import time
from contextlib import suppress

import psutil
import pytest
from pydicom import uid

from cxr_node.settings import TlsSettings
from tests import raw_items
from tests.attack_helpers import ATTACKER, DEFAULTS, HONEST, again_and_again, connect, defended, flood, sends_all
from tests.certificates import Authority, client
from tests.raw_peer import COMMAND, LAST, RawPeer, pdu, store_command
from tests.receiver import associated
from tests.waiting import PATIENCE_S, wait_until

SYNTAXES = [f"1.2.{number}".encode() for number in range(5505)]
LONGEST_S = 25.0
"""For an honest image: less than the half minute for which a connection may say nothing, and far more than it takes."""
TLS_RECORD = b"\x16\x03\x01\x10\x00" + bytes(100)


def request(**options):
    return raw_items.request(**options)


def answer_to(port, content, host=ATTACKER):
    """The first PDU's type that comes back, and how long that took."""
    started = time.monotonic()
    with connect(port, host) as connection:
        connection.sendall(content)
        kind, _ = RawPeer(connection).read_pdu()
    return kind, time.monotonic() - started


@pytest.mark.parametrize("content", [b"", request()[:40], TLS_RECORD], ids=["silent", "half a request", "a TLS record"])
@pytest.mark.parametrize("host", [ATTACKER, HONEST], ids=["another address", "the same address"])
def test_connections_without_an_association_keep_nobody_out(tmp_path, content, host):
    with defended(tmp_path) as receiver, flood(receiver.port, 72, content, host):
        assert max(sends_all(receiver)) < LONGEST_S


def test_silent_connections_to_the_tls_port_keep_nobody_out(tmp_path):
    authority = Authority(tmp_path / "authority")
    node, modality = authority.issue("node.example"), authority.issue("modality.example")
    tls = TlsSettings(listen=True, certificate=node.certificate, key=node.key, ca=authority.certificate)
    senders = ({"ae_title": "MODALITY1", "certificate_names": ["modality.example"]},)
    options = {"tls": tls, "senders": senders, "accept_unknown_senders": False}
    for content in (b"", TLS_RECORD):
        with defended(tmp_path / f"data{len(content)}", **options) as receiver, flood(receiver.port, 72, content):
            assert max(sends_all(receiver, 5, tls=client(authority.certificate, modality))) < LONGEST_S


def test_more_connections_than_there_is_room_for_end_the_oldest(tmp_path):
    with defended(tmp_path) as receiver:
        with again_and_again(lambda: connect(receiver.port).close()), flood(receiver.port, 300):
            assert max(sends_all(receiver)) < LONGEST_S
        with connect(receiver.port) as first, flood(receiver.port, 2 * DEFAULTS["max_associations_per_sender"]):
            assert first.recv(1) == b""


def test_a_request_of_thousands_of_syntaxes_is_not_read(tmp_path):
    content = b"".join(raw_items.proposed(2 * number + 1, *SYNTAXES[number::128][:44]) for number in range(128))
    large = request(items=raw_items.item(0x10, raw_items.APPLICATION) + content * 4 + raw_items.USER)
    assert len(large) > 150_000
    with defended(tmp_path) as receiver:
        kind, took_s = answer_to(receiver.port, large)
        assert kind == 0x07, "an A-ABORT"
        assert took_s < LONGEST_S
        with again_and_again(lambda: answer_to(receiver.port, large)):
            assert max(sends_all(receiver)) < LONGEST_S


def test_of_the_syntaxes_of_an_acceptable_request_one_a_context_costs_time(tmp_path):
    one = raw_items.proposed(1, *SYNTAXES[:60], raw_items.EXPLICIT)
    many = b"".join(raw_items.proposed(2 * number + 1, *SYNTAXES[:40]) for number in range(1, 128))
    content = request(items=raw_items.item(0x10, raw_items.APPLICATION) + one + many + raw_items.USER)
    assert 40_000 < len(content) < 65_536
    with defended(tmp_path, processes=1) as receiver:
        process = psutil.Process()
        answer_to(receiver.port, request())
        before = sum(process.cpu_times()[:2])
        for _ in range(10):
            kind, _ = answer_to(receiver.port, content)
            assert kind == 0x02, "an A-ASSOCIATE-AC"
        assert sum(process.cpu_times()[:2]) - before < 5, "half a second each, as it was, and more"


def test_refusals_under_thousands_of_names_cost_nobody_else_a_row(tmp_path):
    senders = ({"ae_title": "MODALITY1", "hosts": [HONEST]},)
    with defended(tmp_path, senders=senders, accept_unknown_senders=False) as receiver:
        for number in range(1500):
            kind, _ = answer_to(receiver.port, request(calling=f"X{number}".encode().ljust(16)))
            assert kind == 0x03
        assert answer_to(receiver.port, request(calling=b"BREAKIN".ljust(16)), host="127.0.0.8")[0] == 0x03
        sends_all(receiver, 3)
    refused = [row for row in receiver.rows("audit") if row["event"] == "association-refused"]
    by_host = {host: [row for row in refused if row["host"] == host] for host in (ATTACKER, "127.0.0.8")}
    assert [row["user"] for row in by_host["127.0.0.8"]] == ["BREAKIN"]
    assert 10 < len(by_host[ATTACKER]) < 100
    assert sum(int(row["detail"].split()[0].replace(",", "")) for row in by_host[ATTACKER] if "more from" in row["detail"]) > 1300
    assert sum(row["count"] for row in receiver.rows("refusals")) == 1501


def test_images_with_invalid_uids_fill_no_audit_log(tmp_path):
    with defended(tmp_path) as receiver, connect(receiver.port) as connection:
        peer = RawPeer(connection)
        peer.request_association()
        for _ in range(500):
            peer.send_pdu((COMMAND | LAST, store_command("no UID")), (LAST, b"xx"))
            assert peer.read_response().Status == 0x0117
    assert len([row for row in receiver.rows("audit") if row["event"] == "instance-refused"]) < 100


@pytest.mark.parametrize(
    "endless",
    [pdu((0, b"")) * 1000, struct.pack(">BxL", 0x04, 0) * 1000, pdu(*[(0, b"")] * 1000), pdu((0, b"x")) * 1000],
    ids=["PDVs of length zero", "PDUs without PDVs", "many in a PDU", "a byte each"],
)
def test_endless_pieces_without_data_end_their_association(tmp_path, endless):
    with defended(tmp_path) as receiver, connect(receiver.port) as connection:
        peer = RawPeer(connection)
        peer.request_association()
        peer.send_pdu((COMMAND | LAST, store_command("1.2.3")))

        def send_on():
            with suppress(OSError):
                for _ in range(100):
                    connection.sendall(endless)

        thread = threading.Thread(target=send_on)
        thread.start()
        assert connection.recv(1) == b"\x07", "an A-ABORT"
        thread.join(PATIENCE_S)
        assert max(sends_all(receiver, 3)) < LONGEST_S
        wait_until(lambda: receiver.files("incoming") == [], "nothing left in incoming/")


def test_strangers_on_every_address_leave_places_to_known_senders(tmp_path):
    senders = ({"ae_title": "MODALITY1", "hosts": [HONEST]},)
    with defended(tmp_path, senders=senders) as receiver:
        open_ones = []
        try:
            for number in range(70):
                open_ones.append(connect(receiver.port, f"127.0.0.{20 + number % 5}"))
                open_ones[-1].sendall(request(calling=b"STRANGER".ljust(16)))
            answers = [RawPeer(one).read_pdu()[0] for one in open_ones]
            assert answers.count(0x02) == 48, "a quarter of 64 is kept"
            sends_all(receiver, 5)
        finally:
            for one in open_ones:
                one.close()


def test_wrong_passcodes_wait_longer_each_time(tmp_path):
    from pynetdicom import AE
    from pynetdicom.pdu_primitives import UserIdentityNegotiation

    passcode = tmp_path / "passcode"
    passcode.write_text("right")
    senders = ({"ae_title": "MODALITY1", "user": "ct", "passcode_file": passcode},)

    def is_let_in(receiver, given):
        ae = AE("MODALITY1")
        ae.add_requested_context(uid.DigitalXRayImageStorageForPresentation)
        item = UserIdentityNegotiation()
        item.user_identity_type, item.primary_field, item.secondary_field = 2, b"ct", given
        assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[item], bind_address=(HONEST, 0))
        is_established = assoc.is_established
        if is_established:
            assoc.release()
        return is_established

    with defended(tmp_path / "data", senders=senders, accept_unknown_senders=False) as receiver:
        assert is_let_in(receiver, b"right")
        assert not any(is_let_in(receiver, b"wrong") for _ in range(5))
        assert not is_let_in(receiver, b"right"), "whoever guesses right while it has to wait isn't told"
        details = [row["detail"] for row in receiver.rows("audit") if row["event"] == "association-refused"]
        assert any("has to wait" in detail for detail in details)
        wait_until(lambda: is_let_in(receiver, b"right"), "the wait to be over")


def test_nothing_is_known_of_a_peer_before_its_whole_request_is_there(tmp_path):
    """The accepting process wakes for a whole request, not for each byte of it."""
    with defended(tmp_path, processes=1) as receiver, connect(receiver.port) as connection:
        content = request()
        for at in range(len(content)):
            connection.sendall(content[at : at + 1])
        assert RawPeer(connection).read_pdu()[0] == 0x02
        with associated(receiver) as assoc:
            assert assoc.is_established
