"""Who may send."""

from __future__ import annotations

import pytest
from pydicom import uid

from cxr_node.receive.intake.admission import TRANSFER_SYNTAXES
from cxr_node.receive.intake.sender_admission import refusal_of
from cxr_node.records import Sender
from cxr_node.settings import NodeSettings, ReceiveSettings, SenderSettings, Settings
from cxr_node.store.files.disk_space import DiskSpace

KNOWN = (
    SenderSettings(ae_title="ANYWHERE"),
    SenderSettings(ae_title="WARD", hosts=("10.1.0.0/16", "192.168.0.7", "2001:db8::/32")),
    SenderSettings(ae_title="TWICE", hosts=("10.2.0.1",)),
    SenderSettings(ae_title="TWICE", hosts=("10.2.0.2",)),
)


def settings(**receive):
    return Settings(node=NodeSettings(ae_title="NODE"), receive=ReceiveSettings(**receive), senders=KNOWN)


@pytest.mark.parametrize(
    ("ae_title", "host", "welcome"),
    [
        ("ANYWHERE", "203.0.113.9", True),
        ("WARD", "10.1.200.3", True),
        ("WARD", "10.2.0.1", False),
        ("WARD", "192.168.0.7", True),
        ("WARD", "192.168.0.8", False),
        ("WARD", "::ffff:10.1.0.1", True),
        ("WARD", "2001:db8::1", True),
        ("WARD", "2001:db9::1", False),
        ("TWICE", "10.2.0.1", True),
        ("TWICE", "10.2.0.2", True),
        ("TWICE", "10.2.0.3", False),
        ("ward", "10.1.200.3", False),
        ("STRANGER", "10.1.200.3", False),
    ],
)
def test_known_senders_alone(ae_title, host, welcome):
    refusal = refusal_of(settings(accept_unknown_senders=False), Sender(ae_title, "NODE", host))
    assert (refusal is None) == welcome
    if refusal is not None:
        assert refusal.diagnostic == 0x03, "calling AE title not recognised"
        assert ae_title in refusal.reason


def test_strangers_are_welcome_by_default_but_a_known_senders_hosts_hold():
    assert refusal_of(settings(), Sender("STRANGER", "NODE", "203.0.113.9")) is None
    assert refusal_of(settings(), Sender("WARD", "NODE", "203.0.113.9")) is not None


def test_the_called_ae_title_must_be_the_nodes():
    wrong = Sender("STRANGER", "NODES", "203.0.113.9")
    refusal = refusal_of(settings(), wrong)
    assert refusal is not None
    assert refusal.diagnostic == 0x07
    assert "'NODES'" in refusal.reason
    assert refusal_of(settings(require_called_ae_title=False), wrong) is None


def test_looks_at_the_disk_at_most_once_a_second(tmp_path, monkeypatch):
    now, free, looks = [100.0], [2**30], []

    def free_bytes(folder):
        looks.append(folder)
        return free[0]

    monkeypatch.setattr("cxr_node.store.files.disk_space.free_bytes", free_bytes)
    monkeypatch.setattr("cxr_node.store.files.disk_space.time.monotonic", lambda: now[0])
    room = DiskSpace(tmp_path, 512, "deliver")
    assert room.is_available()
    free[0] = 511 * 2**20
    assert room.is_available()
    assert len(looks) == 1
    now[0] += 1.0
    assert not room.is_available()
    assert len(looks) == 2


def test_takes_every_transfer_syntax_that_the_worker_decodes():
    assert set(TRANSFER_SYNTAXES) == {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
    }


@pytest.mark.parametrize(("host", "port"), [("10.2.0.1", 11121), ("::ffff:10.2.0.2", 11122), ("10.2.0.3", None)])
def test_of_two_modalities_with_one_ae_title_the_address_says_which_listens_where(host, port):
    twice = [SenderSettings(ae_title="TWICE", hosts=(f"10.2.0.{number}",), port=11120 + number) for number in (1, 2)]
    found = Settings(senders=(SenderSettings(ae_title="TWICE"), *twice)).listening_sender("TWICE", host)
    assert (found and found.port) == port
