"""Attacks by peers that pretend: reports of storage commitment by strangers, titles that anyone can call himself, open doors."""

from __future__ import annotations

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role
from sqlalchemy import select
from structlog.testing import capture_logs
from typer.testing import CliRunner

from cxr_node import cli
from cxr_node.commitment import requests
from cxr_node.commitment.datasets import PUSH_MODEL, PUSH_MODEL_INSTANCE, build_report
from cxr_node.errors import SettingsError
from cxr_node.receive.intake.reporters import Reporters
from cxr_node.receive.intake.sender_admission import refusal_of
from cxr_node.records import Sender
from cxr_node.security.openness import check, exposure_notices
from cxr_node.settings import (
    DestinationSettings,
    NodeSettings,
    ReceiveSettings,
    SenderSettings,
    Settings,
    TlsSettings,
    load_settings,
)
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries
from tests.conftest import REPOSITORY
from tests.delivery_queue import Queue
from tests.receiver import Receiver
from tests.waiting import PATIENCE_S


def report(receiver, transaction_uid, references, title="PACS", address="127.0.0.1"):
    """An N-EVENT-REPORT that all is kept; the status of the answer."""
    ae = AE(title)
    ae.add_requested_context(PUSH_MODEL, [ExplicitVRLittleEndian])
    role = [build_role(PUSH_MODEL, scp_role=True)]
    assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=role, bind_address=(address, 0))
    assert assoc.is_established
    status, _ = assoc.send_n_event_report(build_report(transaction_uid, references, {}), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assoc.release()
    assoc.dul.join(PATIENCE_S)
    return status.Status


class Waiting(Receiver):
    """A receiver whose destinations have stored results, and have yet to commit them."""

    def __init__(self, folder, senders=(), **destination):
        named = [
            DestinationSettings(name=name, ae_title=title, host=host, port=1, storage_commitment=True, **destination)
            for name, title, host in (("pacs", "PACS", "127.0.0.1"), ("archive", "ARCHIVE", "127.0.0.9"))
        ]
        super().__init__(folder / "var", senders, destinations=tuple(named))
        self.queue = Queue(self.settings, folder)
        self.queue.analyse_one()
        with write(self.queue.engine) as connection:
            connection.execute(deliveries.update().values(state="committing"))
        request = requests.next_request(self.queue.engine, "pacs", 600)
        assert request is not None
        self.request = request

    def states(self, name="pacs"):
        with self.queue.engine.connect() as connection:
            query = select(deliveries.c.state).where(deliveries.c.destination == name)
            return set(connection.execute(query).scalars())


@pytest.mark.parametrize(
    ("title", "address"),
    [("STRANGER", "127.0.0.1"), ("PACS", "127.0.0.2"), ("ARCHIVE", "127.0.0.9")],
    ids=["another AE title", "another address", "another destination"],
)
def test_a_report_of_anyone_but_the_destination_changes_nothing(tmp_path, title, address):
    with Waiting(tmp_path) as receiver, capture_logs() as lines:
        status = report(receiver, receiver.request.transaction_uid, receiver.request.references, title, address)
        assert receiver.states() == {"committing"}
        if title != "ARCHIVE":  # which may report, of its own transactions
            assert status == 0x0110
            (event,) = audit.search(receiver.queue.engine, event="commitment-refused")
            assert (event["user"], event["host"], event["outcome"]) == (title, address, "failure")
            assert [line["calling_ae_title"] for line in lines if "refused" in line["event"]] == [title]
        assert report(receiver, receiver.request.transaction_uid, receiver.request.references) == 0x0000
        assert receiver.states() == {"sent"}
        events = audit.search(receiver.queue.engine, event="result-committed")
        assert {(event["user"], event["host"], event["detail"]) for event in events} == {
            ("PACS", "127.0.0.1", "destination pacs")
        }


@pytest.mark.parametrize(
    ("senders", "destination", "title", "address"),
    [
        ((), {"commitment_host": "127.0.0.5", "commitment_ae_title": "KEEPER"}, "KEEPER", "127.0.0.5"),
        ((), {"hosts": ("127.0.0.6",)}, "PACS", "127.0.0.6"),
        ((SenderSettings(ae_title="PACS", hosts=("127.0.0.7",)),), {}, "PACS", "127.0.0.7"),
    ],
    ids=["its commitment address", "its second address", "an address that its own entry has"],
)
def test_the_destination_reports_from_where_the_settings_say(tmp_path, senders, destination, title, address):
    with Waiting(tmp_path, senders, **destination) as receiver:
        assert report(receiver, receiver.request.transaction_uid, receiver.request.references, title, address) == 0x0000
        assert receiver.states() == {"sent"}


@pytest.mark.parametrize(
    ("shown", "believed"),
    [
        ({}, False),
        ({"certificate_sha256": "a" * 64, "certificate_names": ("modality.test",)}, False),
        ({"certificate_sha256": "a" * 64, "certificate_names": ("pacs.test",)}, True),
    ],
    ids=["none", "another's", "its own"],
)
def test_over_tls_the_certificate_has_to_be_the_destinations(tmp_path, shown, believed):
    tls = TlsSettings(listen=True, certificate=tmp_path / "node.pem", ca=tmp_path / "ca.pem")
    pacs = DestinationSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, tls=True, tls_name="pacs.test")
    reporters = Reporters(Settings(tls=tls, destinations=(pacs,)))
    assert bool(reporters.destinations_of(Sender("PACS", "NODE", "127.0.0.1", **shown))) is believed


def settings(host="0.0.0.0", senders=(), **receive):
    return Settings(node=NodeSettings(host=host), senders=senders, receive=ReceiveSettings(**receive))


KNOWN = SenderSettings(ae_title="CT1", hosts=("10.0.0.0/8",))


@pytest.mark.parametrize(
    ("host", "senders", "unknown", "welcome"),
    [
        ("127.0.0.1", (), True, True),
        ("localhost", (), True, True),
        ("::1", (), True, True),
        ("0.0.0.0", (KNOWN,), True, False),
        ("::", (KNOWN,), True, False),
        ("192.0.2.1", (KNOWN,), True, False),
        ("no.such.host.invalid", (KNOWN,), True, False),
        ("0.0.0.0", (), "anywhere", True),
        ("127.0.0.1", (KNOWN,), False, False),
    ],
)
def test_beyond_this_machine_unknown_senders_are_asked_for_in_words(host, senders, unknown, welcome):
    chosen = settings(host, senders, accept_unknown_senders=unknown)
    assert (refusal_of(chosen, Sender("STRANGER", "CXRNODE", "127.0.0.1")) is None) is welcome
    check(chosen)


def test_a_node_that_others_reach_and_that_lets_in_nobody_does_not_start(tmp_path):
    with pytest.raises(SettingsError, match=r'\[\[senders\]\].*"anywhere"'):
        check(settings())
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\nhost = "0.0.0.0"\nport = 0\ndata_dir = "{tmp_path / "var"}"\n')
    for command in ("serve", "receive"):
        found = CliRunner().invoke(cli.app, [command, "--config", str(config)])
        assert isinstance(found.exception, SettingsError)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (settings(accept_unknown_senders="anywhere"), ["from other machines", "without authentication: from everywhere"]),
        (settings(senders=(KNOWN,)), ["entry are refused.", "CT1 may send from 10.0.0.0/8, by its AE title."]),
        (settings(senders=(KNOWN,), accept_unknown_senders=True), ["are refused. Write false"]),
        (
            settings(senders=(SenderSettings(ae_title="CT1", user="ct1"),), accept_unknown_senders=False),
            ["CT1 may send from any address", "its user name, which is no secret", "Anyone may use that title"],
        ),
        (settings("127.0.0.1"), ["only from this machine", "from this machine."]),
    ],
)
def test_what_is_open_to_whom_is_said(chosen, words):
    text = "\n".join(text for _, text in exposure_notices(chosen))
    assert [word for word in words if word not in text] == []


def test_the_default_for_unknown_senders_causes_no_warning():
    assert [text for severity, text in exposure_notices(settings(senders=(KNOWN,))) if severity == "warning"] == []


def test_the_image_asks_for_settings_and_those_of_compose_let_somebody_in(monkeypatch, tmp_path):
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    host = next(line for line in dockerfile.splitlines() if "CXR_NODE__NODE__HOST=" in line).split("=")[1].split()[0]
    monkeypatch.setenv("CXR_NODE__NODE__HOST", host)
    without = tmp_path / "cxr-node.toml"
    without.write_text("# Mount the settings here\n")
    with pytest.raises(SettingsError, match="nobody may send"):
        check(load_settings(without))
    check(load_settings(REPOSITORY / "conf" / "compose" / "cxr-node.toml"))


def test_check_config_and_the_start_say_what_is_open(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\nhost = "0.0.0.0"\nport = 0\nae_title = "NODE"\ndata_dir = "{tmp_path / "var"}"\n[receive]\nmin_free_mb = 0\n'
        'processes = 1\n[[senders]]\nae_title = "CT1"\nuser = "ct1"\n'
    )
    found = CliRunner().invoke(cli.app, ["check-config", str(config)])
    assert "entry are refused." in found.output
    assert "Anyone may use that title" in found.output
    with capture_logs() as lines, Receiver(tmp_path / "var", load_settings(config).senders, host="0.0.0.0") as receiver:
        ae = AE("STRANGER")
        ae.add_requested_context("1.2.840.10008.1.1")
        assert ae.associate("127.0.0.1", receiver.port, ae_title="NODE").is_rejected
    assert [line for line in lines if "Anyone may use" in line["event"]]


def test_a_port_for_reports_asks_for_the_addresses(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('[[senders]]\nae_title = "CT1"\nport = 104\n')
    with pytest.raises(SettingsError, match="needs hosts"):
        load_settings(config)
