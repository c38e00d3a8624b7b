"""`check-config` tries every destination out and says what is wrong with it."""

from __future__ import annotations

import threading

import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from cxr_node.deliver.check import DestinationFinding, Severity, check_destinations
from cxr_node.records import ResultKind
from cxr_node.settings import DestinationSettings, NodeSettings, Settings
from tests.scps import STORAGE, UNCOMPRESSED, closed_port, listener, storage_scp
from tests.waiting import PATIENCE_S


def check(*ports: int, node_port: int = 1, host: str = "127.0.0.1", **destination) -> list[DestinationFinding]:
    return check_destinations(
        Settings(
            node=NodeSettings(port=node_port),
            destinations=tuple(
                DestinationSettings(
                    name=f"pacs{n}", ae_title="PACS", host=host, port=port, **{"timeout_s": PATIENCE_S, **destination}
                )
                for n, port in enumerate(ports)
            ),
        )
    )


def test_a_good_destination():
    with storage_scp() as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.OK
    assert "overlay and report" in finding.text
    assert scp.received == []


def test_no_destinations():
    assert check() == []


def test_every_destination_is_tried_in_order():
    with storage_scp() as scp:
        findings = check(closed_port(), scp.port)
    assert [(finding.destination, finding.severity) for finding in findings] == [("pacs0", "error"), ("pacs1", "ok")]
    assert "connection refused" in findings[0].text


@pytest.mark.parametrize(
    ("scp", "words"),
    [
        ({"ae_title": "pacs", "require_called": True}, ["doesn't know itself as 'PACS'", "exact AE title"]),
        ({"callers": ["OTHER"]}, ["doesn't know 'CXRNODE'", "Register"]),
    ],
)
def test_a_rejected_association_names_the_title_that_is_wrong(scp, words):
    with storage_scp(**scp) as pacs:
        [finding] = check(pacs.port)
    assert finding.severity == Severity.ERROR
    assert all(word in finding.text for word in words)


def test_unknown_host():
    [finding] = check(104, host="no-such-host.invalid")
    assert finding.severity == Severity.ERROR
    assert "no-such-host.invalid" in finding.text


def test_a_web_port():
    with listener(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        [finding] = check(port)
    assert finding.severity == Severity.ERROR
    assert "not a web port" in finding.text


def test_a_port_that_never_answers():
    release = threading.Event()
    with listener(lambda _: release.wait(PATIENCE_S)) as port:
        [finding] = check(port, timeout_s=0.3)
        release.set()
    assert finding.severity == Severity.ERROR
    assert "didn't answer" in finding.text


def test_a_kind_that_will_be_refused_is_a_warning():
    with storage_scp(contexts=STORAGE[:1]) as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.WARNING
    assert finding.text.startswith("The report will be refused")


def test_nothing_that_will_be_taken_is_an_error():
    with storage_scp(contexts=STORAGE[:1]) as scp:
        [finding] = check(scp.port, send=[ResultKind.REPORT])
    assert finding.severity == Severity.ERROR


def test_no_verification_is_a_warning():
    with storage_scp(verification=False) as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.WARNING
    assert "Verification" in finding.text


def test_a_failing_echo_is_a_warning():
    with storage_scp(echo_status=0x0122) as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.WARNING
    assert "0x0122" in finding.text


def test_implicit_vr_is_as_good():
    with storage_scp(contexts=[(abstract, UNCOMPRESSED[1:]) for abstract, _ in STORAGE]) as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.OK


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_node_itself_is_a_warning(host):
    with storage_scp() as scp:
        findings = check(scp.port, node_port=scp.port, host=host)
    assert Severity.WARNING in [finding.severity for finding in findings]
    assert "this node itself" in findings[0].text


def test_another_host_with_the_same_port_is_not_the_node_itself():
    """192.0.2.1 is reserved for documentation (RFC 5737): no machine has it."""
    [finding] = check(11112, node_port=11112, host="192.0.2.1", timeout_s=0.2)
    assert finding.severity == Severity.ERROR
    assert "this node itself" not in finding.text


def test_a_pacs_that_takes_only_compressed_overlays_refuses_them():
    with storage_scp(contexts=[(SecondaryCaptureImageStorage, ["1.2.840.10008.1.2.4.70"]), STORAGE[1]]) as scp:
        [finding] = check(scp.port)
    assert finding.severity == Severity.WARNING
    assert ExplicitVRLittleEndian.name in finding.text


def test_a_destination_that_does_not_commit_is_told():
    with storage_scp() as scp:
        [finding] = check(scp.port, storage_commitment=True)
    assert finding.severity == Severity.ERROR
    assert "doesn't accept Storage Commitment" in finding.text
