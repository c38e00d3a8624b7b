"""Reports of storage commitment to a modality's port over TLS: to the right one, and to no other."""

from __future__ import annotations

import pytest

from cxr_node.errors import SettingsError
from cxr_node.settings import SenderSettings, TlsSettings, load_settings
from tests.certificates import server
from tests.commitment_peers import Modality
from tests.delivery_queue import running
from tests.receiver import Receiver, associated, radiograph, send
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def theirs(authority):
    return authority.issue("modality1.example")


def reported(folder, modality, port, authority, node, **sender):
    """Ask for commitment and hang up; the row of the report, once it was tried."""
    tls = TlsSettings(ca=authority.certificate, certificate=node.certificate, key=node.key)
    senders = (SenderSettings(**{"ae_title": "MODALITY1", "port": port, "hosts": ("127.0.0.1",), "tls": True} | sender),)
    with Receiver(folder, senders=senders, tls=tls) as receiver:
        ds = radiograph()
        with associated(receiver) as assoc:
            assert send(assoc, ds) == 0x0000
        modality.ask(receiver.port, [(ds.SOPClassUID, ds.SOPInstanceUID)], stay=False)
        with running(receiver.settings):

            def tried():
                [row] = receiver.rows("commitment_reports")
                return row if row["state"] == "sent" or row["reason"] else None

            return ds.SOPInstanceUID, wait_until(tried, "a report that was tried")


def test_a_report_arrives_with_both_sides_certified(tmp_path, authority, node, theirs):
    modality = Modality()
    with modality.listening(server(theirs, authority.certificate)) as port:
        uid, row = reported(tmp_path, modality, port, authority, node)
    assert row["state"] == "sent"
    assert [(committed, failed) for _, committed, failed in modality.reports] == [([uid], {})]


def test_a_modality_may_have_an_authority_and_a_name_of_its_own(tmp_path, authority, stranger, node):
    pair = stranger.issue("ct1.example", address=None)
    modality = Modality()
    named = {"tls_ca": stranger.certificate, "tls_name": "ct1.example"}
    with modality.listening(server(pair, authority.certificate)) as port:
        assert reported(tmp_path / "named", modality, port, authority, node, **named)[1]["state"] == "sent"
        unnamed = {"tls_ca": stranger.certificate, "tls_check_name": False}
        assert reported(tmp_path / "unnamed", modality, port, authority, node, **unnamed)[1]["state"] == "sent"
    assert len(modality.reports) == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another authority", "its certificate is not accepted here"),
        ("expired", "certificate has expired"),
        ("another address", "IP address mismatch"),
        ("no TLS", "TLS"),
    ],
)
def test_no_report_goes_to_one_that_cannot_show_who_it_is(tmp_path, authority, stranger, node, kind, reason):
    contexts = {
        "another authority": lambda: server(stranger.issue("modality1.example")),
        "expired": lambda: server(authority.issue("modality-expired.example", days=-2)),
        "another address": lambda: server(authority.issue("modality-away.example", address="192.0.2.1")),
        "no TLS": lambda: None,
    }
    modality = Modality()
    with modality.listening(contexts[kind]()) as port:
        _, row = reported(tmp_path, modality, port, authority, node)
    assert row["state"] == "waiting"
    assert reason in row["reason"]
    assert modality.reports == []


def test_without_tls_in_its_entry_a_report_is_plain(tmp_path, authority, node):
    modality = Modality()
    with modality.listening() as port:
        assert reported(tmp_path, modality, port, authority, node, tls=False)[1]["state"] == "sent"


@pytest.mark.parametrize(
    ("keys", "told"),
    [("tls = true\ntls_ca = '/ca.pem'\n", "needs a port"), ("tls = true\nport = 104\nhosts = ['10.0.0.0/8']\n", "needs tls_ca")],
)
def test_what_tls_needs_is_an_error_of_the_settings(tmp_path, keys, told):
    config = tmp_path / "node.toml"
    config.write_text(f'[[senders]]\nae_title = "CT"\n{keys}')
    with pytest.raises(SettingsError, match=told):
        load_settings(config)
