"""`cxr-node send` against the node itself: TLS, user identity and storage commitment."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.errors import CxrNodeError
from cxr_node.settings import SenderSettings, TlsSettings
from tests.certificates import Authority
from tests.commitment_peers import CommittingPACS, everything
from tests.receiver import Receiver, radiograph
from tests.scps import storage_scp


@pytest.fixture(scope="module")
def modality(authority):
    return authority.issue("modality1.example")


@pytest.fixture(scope="module")
def receiver(authority, node, tmp_path_factory):
    """Plain and TLS; USER1 has to name itself, and GUARDED also to show a certificate."""
    folder = tmp_path_factory.mktemp("data")
    passcode = folder / "passcode"
    passcode.write_text("sesame\n")
    senders = (
        SenderSettings(ae_title="USER1", user="ct1", passcode_file=passcode),
        SenderSettings(ae_title="GUARDED", certificate_names=("modality1.example",)),
    )
    tls = TlsSettings(listen=True, port=0, certificate=node.certificate, key=node.key, ca=authority.certificate)
    with Receiver(folder / "var", senders, tls, commitment_requests="anyone") as running:
        yield running


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.dcm"
    ds = radiograph()
    ds.save_as(path, enforce_file_format=True)
    return path


def send(image, port, *options, called="NODE"):
    arguments = ["send", image, "--to", f"127.0.0.1:{port}", "--called", called, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def over_tls(authority, pair, *more):
    return ("--tls-ca", authority.certificate, "--tls-certificate", pair.certificate, "--tls-key", pair.key, *more)


def test_over_tls_with_a_certificate(receiver, authority, modality, image):
    result = send(image, receiver.tls_port, *over_tls(authority, modality), "--calling", "GUARDED")
    assert (result.exit_code, result.stdout[:13]) == (0, "stored 0x0000")
    assert receiver.rows("instances")[-1]["calling_ae_title"] == "GUARDED"


def test_a_certificate_and_its_key_in_one_file(receiver, authority, modality, image, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(modality.certificate.read_bytes() + modality.key.read_bytes())
    result = send(image, receiver.tls_port, "--tls-ca", authority.certificate, "--tls-certificate", both)
    assert result.exit_code == 0


@pytest.mark.parametrize(("name", "fits"), [("node.example", True), ("other.example", False)])
def test_the_name_in_the_certificate_of_the_receiver(receiver, authority, modality, image, name, fits):
    result = send(image, receiver.tls_port, *over_tls(authority, modality, "--tls-name", name))
    assert (result.exit_code == 0) == fits
    if not fits:
        assert "certificate is not accepted" in str(result.exception)


def test_an_authority_that_did_not_sign_it(receiver, modality, image, stranger, authority):
    result = send(image, receiver.tls_port, *over_tls(stranger, modality))
    assert "certificate is not accepted" in str(result.exception)
    assert isinstance(result.exception, CxrNodeError)


def test_without_a_certificate_the_receiver_ends_it(receiver, authority, image):
    result = send(image, receiver.tls_port, "--tls-ca", authority.certificate)
    assert isinstance(result.exception, CxrNodeError)
    assert "certificate" in str(result.exception)


@pytest.mark.parametrize(
    ("user", "passcode", "welcome"),
    [("ct1", "sesame", True), ("ct1", "wrong", False), ("ct2", "sesame", False), ("ct1", None, False), (None, None, False)],
)
def test_user_and_passcode(receiver, image, tmp_path, user, passcode, welcome):
    options = ["--calling", "USER1"]
    if user:
        options += ["--user", user]
    if passcode:
        (tmp_path / "own").write_text(passcode)
        options += ["--passcode-file", tmp_path / "own"]
    result = send(image, receiver.port, *options)
    assert (result.exit_code == 0) == welcome
    if not welcome:
        assert "rejects the association" in str(result.exception)


def test_commitment_of_what_was_stored(receiver, image):
    result = send(image, receiver.port, "--commit")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"committed {image}"


def test_all_of_it_at_once(receiver, authority, modality, image, tmp_path):
    (tmp_path / "own").write_text("sesame")
    options = ("--calling", "USER1", "--user", "ct1", "--passcode-file", tmp_path / "own", "--commit")
    result = send(image, receiver.tls_port, *over_tls(authority, modality), *options)
    assert result.exit_code == 0, result.output
    assert f"committed {image}" in result.stdout


def test_a_refused_commitment_is_told_by_file_and_is_no_success(image):
    pacs = CommittingPACS(lambda references: ([], dict.fromkeys(references, 0x0112)), contexts=[(XRAY, ["1.2.840.10008.1.2.1"])])
    with pacs.listening() as port:
        result = send(image, port, "--commit", called="PACS")
    assert result.exit_code == 1
    assert f"NOT COMMITTED {image} it doesn't have the object (0x0112)" in result.stdout


XRAY = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.mark.parametrize(
    ("judge", "status", "words"),
    [
        (None, 0x0000, "has not reported within 1 s"),
        (everything, 0x0110, "status 0x0110"),
        (lambda _: ([], {}), 0x0000, "does not mention it"),
    ],
)
def test_no_commitment_is_no_success(image, judge, status, words):
    pacs = CommittingPACS(judge, status, contexts=[(XRAY, ["1.2.840.10008.1.2.1"])])
    with pacs.listening() as port:
        within_s = "120" if judge and status == 0 else "1"
        result = send(image, port, "--commit", "--commit-timeout", within_s, called="PACS")
    assert result.exit_code == 1
    assert "stored 0x0000" in result.stdout
    assert "NOT COMMITTED" in result.stdout
    assert words in result.stdout


def test_a_receiver_without_commitment(image):
    with storage_scp(contexts=[(XRAY, ["1.2.840.10008.1.2.1"])]) as scp:
        result = send(image, scp.port, "--commit", called="PACS")
    assert result.exit_code == 1
    assert "doesn't accept Storage Commitment" in result.stdout


def test_a_file_without_an_element_is_not_read_as_millions_of_them(receiver, tmp_path, monkeypatch):
    (tmp_path / "zeros.dcm").write_bytes(bytes(1000))
    monkeypatch.setattr("cxr_node.demo.modality.dcmread", None)
    result = send(tmp_path / "zeros.dcm", receiver.port)
    assert (result.exit_code, "it is not a DICOM" in result.stdout) == (1, True)


def test_nothing_stored_is_nothing_to_commit(image):
    with storage_scp(lambda _: 0xC000, contexts=[(XRAY, ["1.2.840.10008.1.2.1"])]) as scp:
        result = send(image, scp.port, "--commit", called="PACS")
    assert result.exit_code == 1
    assert "NOT STORED 0xC000" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tls-name", "x"), "--tls-ca"),
        (("--tls-certificate", "x.pem"), "--tls-ca"),
        (("--tls-ca", "CA", "--tls-key", "x.key"), "--tls-certificate"),
        (("--tls-ca", "nowhere.pem"), "nowhere.pem"),
        (("--passcode-file", "x"), "--user"),
        (("--user", "ct1", "--passcode-file", "nowhere"), "can't be read"),
    ],
)
def test_options_that_can_not_be_right_are_told_of(image, tmp_path, options, words):
    ca = Authority(tmp_path / "ca").certificate
    result = send(image, 1, *(str(ca) if option == "CA" else option for option in options))
    assert isinstance(result.exception, CxrNodeError)
    assert words in str(result.exception)
