"""Results go over TLS to the right destination, and to no other; what is wrong is said in words."""

from __future__ import annotations

import ssl
import subprocess

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.deliver.check import Severity, check_destinations
from cxr_node.deliver.request import StoreRequest, peer_of
from cxr_node.demo.modality import store_files
from cxr_node.errors import SettingsError
from cxr_node.settings import DestinationSettings, NodeSettings, Settings, TlsSettings, load_settings
from tests.certificates import server
from tests.orthanc import free_port
from tests.scps import storage_scp, write_instance
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def pacs(authority):
    return authority.issue("pacs.example")


def settings(port, authority, node=None, host="127.0.0.1", **destination):
    tls = TlsSettings(ca=authority.certificate)
    if node is not None:
        tls = TlsSettings(ca=authority.certificate, certificate=node.certificate, key=node.key)
    values = {"name": "pacs", "ae_title": "PACS", "host": host, "port": port, "timeout_s": PATIENCE_S, "tls": True}
    destinations = (DestinationSettings(**values | destination),)
    return Settings(node=NodeSettings(port=1), tls=tls, destinations=destinations)


def request_at(path, size_bytes=1000):
    ds = write_instance(path, size_bytes=size_bytes)
    return StoreRequest(path, ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.SOPInstanceUID)


def finding_of(configured):
    [finding] = check_destinations(configured)
    return finding


def test_results_arrive_whole_with_both_sides_certified(authority, node, pacs, tmp_path):
    request = request_at(tmp_path / "overlay.dcm", size_bytes=2_000_000)
    with storage_scp(tls=server(pacs, authority.certificate)) as scp:
        configured = settings(scp.port, authority, node)
        [outcome] = store_files([request], peer_of(configured, configured.destinations[0]))
    assert outcome.stored
    [(uid, syntax, content)] = scp.received
    assert (uid, syntax) == (request.sop_instance_uid, ExplicitVRLittleEndian)
    assert request.path.read_bytes().endswith(content)


def test_check_config_is_content_with_a_good_one(authority, node, pacs):
    with storage_scp(tls=server(pacs, authority.certificate)) as scp:
        assert finding_of(settings(scp.port, authority, node)).severity == Severity.OK


def test_a_destination_may_have_an_authority_and_a_name_of_its_own(authority, stranger, node):
    theirs = stranger.issue("archive.example", address=None)
    with storage_scp(tls=server(theirs, authority.certificate)) as scp:
        named = settings(scp.port, authority, node, tls_ca=stranger.certificate, tls_name="archive.example")
        assert finding_of(named).severity == Severity.OK
        unnamed = settings(scp.port, authority, node, tls_ca=stranger.certificate, tls_check_name=False)
        assert finding_of(unnamed).severity == Severity.OK
        wrong = settings(scp.port, authority, node, tls_ca=stranger.certificate)
        assert "IP address mismatch" in finding_of(wrong).text


def bad_pairs(authority, stranger):
    return {
        "another authority": stranger.issue("pacs.example"),
        "expired": authority.issue("pacs-expired.example", days=-2),
        "another address": authority.issue("pacs-away.example", address="192.0.2.1"),
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another authority", "its certificate is not accepted here (unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("another address", "IP address mismatch"),
    ],
)
def test_nothing_goes_to_a_destination_with_a_bad_certificate(authority, stranger, node, tmp_path, kind, words):
    with storage_scp(tls=server(bad_pairs(authority, stranger)[kind])) as scp:
        finding = finding_of(settings(scp.port, authority, node))
    assert finding.severity == Severity.ERROR
    assert words in finding.text
    assert scp.associations == scp.received == []


def test_a_destination_that_speaks_no_tls_is_named(authority, node):
    with storage_scp() as scp:
        finding = finding_of(settings(scp.port, authority, node))
    assert finding.severity == Severity.ERROR
    assert "TLS" in finding.text
    assert scp.associations == []


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_destination_that_wants_a_certificate_of_ours_is_explained(authority, pacs, version):
    context = server(pacs, authority.certificate)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with storage_scp(tls=context) as scp:
        finding = finding_of(settings(scp.port, authority))
    assert finding.severity == Severity.ERROR
    assert "certificate" in finding.text
    assert scp.received == []


def test_a_missing_file_is_named(authority, node, tmp_path):
    finding = finding_of(settings(2, authority, node, tls_ca=tmp_path / "nowhere.pem"))
    assert finding.severity == Severity.ERROR
    assert "nowhere.pem" in finding.text


def test_tls_without_an_authority_is_an_error_of_the_settings(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "pacs"\nport = 2762\ntls = true\n')
    with pytest.raises(SettingsError, match="needs tls_ca"):
        load_settings(config)


@pytest.mark.peer
def test_dcmtk_receives_over_tls(authority, node, pacs, tmp_path, peer):
    port = free_port()
    command = [peer("storescp"), "+tls", str(pacs.key), str(pacs.certificate), "+cf", str(authority.certificate)]
    process = subprocess.Popen([*command, "-aet", "PACS", "-od", str(tmp_path), str(port)], stdout=subprocess.DEVNULL)
    try:
        configured = settings(port, authority, node, send=["overlay"])
        wait_until(lambda: finding_of(configured).severity == Severity.OK, "storescp")
        request = request_at(tmp_path / "sent.dcm", size_bytes=300_000)
        [outcome] = store_files([request], peer_of(configured, configured.destinations[0]))
        assert outcome.stored
        assert len(list(tmp_path.glob(f"*{request.sop_instance_uid}*"))) == 1
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
