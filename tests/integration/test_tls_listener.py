"""Who gets in over TLS and who doesn't: one row for each kind of caller."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading

import pytest
from structlog.testing import capture_logs

from cxr_node.dicom.tls import listening_context
from cxr_node.errors import SettingsError
from cxr_node.settings import SenderSettings, TlsSettings
from tests.certificates import Authority, client
from tests.raw_peer import COMMAND, LAST, RawPeer, pdu, raw_connection, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def modality(authority):
    return authority.issue("modality1.example")


def listening(authority, node, **changes):
    values = {"listen": True, "certificate": node.certificate, "key": node.key, "ca": authority.certificate}
    return TlsSettings(**values | changes)


@pytest.fixture(scope="module")
def receiver(authority, node, modality, tmp_path_factory):
    """Knows MODALITY1 by address and certificate, MODALITY2 by the name in its certificate, AWAY at another address."""
    senders = (
        SenderSettings(ae_title="MODALITY1", hosts=("127.0.0.1",), certificate_sha256=(modality.sha256.upper(),)),
        SenderSettings(ae_title="MODALITY2", certificate_names=("modality2.example",)),
        SenderSettings(ae_title="AWAY", hosts=("192.0.2.0/24",), certificate_sha256=(modality.sha256,)),
    )
    with Receiver(tmp_path_factory.mktemp("data"), senders, listening(authority, node), accept_unknown_senders=False) as running:
        yield running


def test_the_right_certificate_stores(receiver, authority, modality):
    ds = radiograph(PixelData=bytes(range(256)) * 4000)
    with associated(receiver, tls=client(authority.certificate, modality)) as assoc:
        assert send(assoc, ds) == 0x0000
        assert assoc.send_c_echo().Status == 0x0000
    row = next(row for row in receiver.rows("instances") if row["sop_instance_uid"] == ds.SOPInstanceUID)
    assert (receiver.folder / row["path"]).read_bytes().endswith(encoded(ds))


def test_a_name_in_the_certificate_will_do(receiver, authority):
    pair = authority.issue("modality2.example", address=None)
    with associated(receiver, calling="MODALITY2", tls=client(authority.certificate, pair)) as assoc:
        assert send(assoc, radiograph()) == 0x0000


def refused(receiver, calling, called, context):
    """The result of A-ASSOCIATE-RJ, its source and its reason."""
    with associated(receiver, calling=calling, called=called, tls=context) as assoc:
        assert assoc.is_rejected
        primitive = assoc.acceptor.primitive
        return primitive.result, primitive.result_source, primitive.diagnostic


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        pytest.param("MODALITY2", "NODE", 0x03, id="another sender's certificate"),
        pytest.param("AWAY", "NODE", 0x03, id="wrong address"),
        pytest.param("UNKNOWN", "NODE", 0x03, id="wrong calling AE title"),
        pytest.param("MODALITY1", "OTHER", 0x07, id="wrong called AE title"),
    ],
)
def test_a_good_certificate_alone_lets_nobody_in(receiver, authority, modality, calling, called, reason):
    assert refused(receiver, calling, called, client(authority.certificate, modality)) == (0x01, 0x01, reason)


def connected(port, context):
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), PATIENCE_S), server_hostname="127.0.0.1")


def handshake(port, context, within_s=PATIENCE_S):
    """Connect and read: a server of TLS 1.3 says only then what it thinks of a certificate. Gives its version of TLS."""
    with connected(port, context) as secured:
        secured.settimeout(within_s)
        try:
            assert secured.recv(1), "closed by the node"
        except TimeoutError:  # it waits for the association request
            return secured.version()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_spoken(receiver, authority, modality, version):
    context = client(authority.certificate, modality)
    context.minimum_version = context.maximum_version = version
    assert handshake(receiver.port, context, within_s=0.5) == f"TLSv1.{version - ssl.TLSVersion.TLSv1}"


def bad_clients(authority, stranger):
    """Name and context of those that get no further than the handshake, with what the node's own log calls it."""
    old = client(authority.certificate, authority.issue("old.example"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    weak = client(authority.certificate, authority.issue("weak.example"))
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("ECDHE+AES+SHA256:@SECLEVEL=0")
    return {
        "no certificate": client(authority.certificate),
        "a certificate of another authority": client(authority.certificate, stranger.issue("modality1.example")),
        "an expired certificate": client(authority.certificate, authority.issue("expired.example", days=-2)),
        "a certificate of tomorrow": client(authority.certificate, authority.issue("future.example", since_days=-1)),
        "an old version of the protocol": old,
        "a weak cipher suite": weak,
    }


KINDS = {
    "no certificate": "it presents no certificate",
    "a certificate of another authority": "its certificate is not accepted here",
    "an expired certificate": "certificate has expired",
    "a certificate of tomorrow": "certificate is not yet valid",
    "an old version of the protocol": "it supports only an old version of TLS",
    "a weak cipher suite": "it offers no permitted cipher suite",
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_handshake_is_the_end_for(receiver, authority, stranger, kind):
    with capture_logs() as lines:
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            handshake(receiver.port, bad_clients(authority, stranger)[kind])
        wait_until(lambda: any(KINDS[kind] in line.get("reason", "") for line in lines), f"the reason in {lines}")


def test_plain_dicom_is_not_understood(receiver):
    with capture_logs() as lines, raw_connection(receiver) as peer:
        with pytest.raises((EOFError, ConnectionError)):
            peer.request_association()
        wait_until(lambda: "TLS: it doesn't speak TLS" in [line.get("reason") for line in lines], f"the reason in {lines}")


def test_a_client_refuses_a_node_that_its_authority_does_not_know(receiver, stranger, modality):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(receiver.port, client(stranger.certificate, modality))


def test_one_that_is_silent_in_its_handshake_keeps_nobody_out(receiver, authority, modality):
    silent = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(5)]
    try:
        with associated(receiver, tls=client(authority.certificate, modality)) as assoc:
            assert assoc.send_c_echo().Status == 0x0000
    finally:
        for connection in silent:
            connection.close()


def test_pdus_that_share_a_record_are_all_read(receiver, authority, modality):
    """What TLS has decrypted ahead the kernel doesn't tell of: forgotten, it would lie there until the peer says more."""
    ds = radiograph(PixelData=b"\x01\x02")
    context = client(authority.certificate, modality)
    with connected(receiver.port, context) as secured:
        peer = RawPeer(secured)
        peer.request_association(calling="MODALITY1")
        request = pdu((COMMAND | LAST, store_command(ds.SOPInstanceUID))) + pdu((LAST, encoded(ds)))
        secured.sendall(3 * request)
        assert [peer.read_response().Status for _ in range(3)] == [0x0000] * 3


def test_a_renewed_certificate_needs_no_restart(tmp_path, authority, stranger):
    tls = listening(authority, Authority(tmp_path, "Yesterday's authority").issue("node.example"))
    renewed = authority.issue("renewed.example")
    with Receiver(tmp_path / "data", tls=tls) as receiver:
        context = client(authority.certificate, authority.issue("any.example"))
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(receiver.port, context)
        tls.certificate.write_bytes(renewed.certificate.read_bytes() + renewed.key.read_bytes())
        tls.key.write_bytes(renewed.key.read_bytes())
        assert handshake(receiver.port, context, within_s=0.5) == "TLSv1.3"
        tls.certificate.write_bytes(b"a half-written file")
        assert handshake(receiver.port, context, within_s=0.5) == "TLSv1.3"


def test_without_the_demand_a_certificate_is_not_needed(tmp_path, authority, node):
    tls = listening(authority, node, require_client_certificate=False)
    with Receiver(tmp_path, tls=tls) as receiver, associated(receiver, tls=client(authority.certificate)) as assoc:
        assert send(assoc, radiograph()) == 0x0000


def test_only_1_3_if_set_so(tmp_path, authority, node, modality):
    with Receiver(tmp_path, tls=listening(authority, node, minimum_version="1.3")) as receiver:
        context = client(authority.certificate, modality)
        assert handshake(receiver.port, context, within_s=0.5) == "TLSv1.3"
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(receiver.port, context)


def test_a_key_may_have_a_passphrase(authority):
    pair = authority.issue("locked.example", passphrase="opens it")
    listening_context(listening(authority, pair, key_passphrase="opens it"))
    for passphrase in ("wrong", ""):
        with pytest.raises(SettingsError, match="key_passphrase"):
            listening_context(listening(authority, pair, key_passphrase=passphrase))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"certificate": None}, r"needs tls\.certificate"),
        ({"ca": None}, r"needs tls\.ca"),
        ({"certificate": "/nowhere/node.pem"}, "can't be read"),
        ({"key": "/nowhere/node.key"}, "can't be read"),
        ({"ca": "/nowhere/ca.pem"}, r"tls\.ca"),
    ],
)
def test_what_is_missing_is_named(authority, node, changes, message):
    with pytest.raises(SettingsError, match=message):
        listening_context(listening(authority, node, **changes))


def test_a_key_of_another_certificate_is_named(authority, node, modality):
    with pytest.raises(SettingsError, match="don't work together"):
        listening_context(listening(authority, node, key=modality.key))


@pytest.mark.peer
@pytest.mark.parametrize("with_certificate", [True, False])
def test_dcmtk_sends_over_tls(receiver, authority, modality, tmp_path, peer, with_certificate):
    ds = radiograph()
    ds.save_as(tmp_path / "radiograph.dcm", enforce_file_format=True)
    secure = ["+tls", str(modality.key), str(modality.certificate)] if with_certificate else ["+tla"]
    command = [peer("storescu"), *secure, "+cf", str(authority.certificate), "-aet", "MODALITY1", "-aec", "NODE"]
    sent = subprocess.run(
        [*command, "127.0.0.1", str(receiver.port), str(tmp_path / "radiograph.dcm")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    stored = [row["sop_instance_uid"] for row in receiver.rows("instances")]
    assert (sent.returncode == 0) is with_certificate, sent.stderr
    assert (ds.SOPInstanceUID in stored) is with_certificate


def test_many_send_at_the_same_time(receiver, authority, modality):
    outcomes = []

    def send_some():
        with associated(receiver, tls=client(authority.certificate, modality)) as assoc:
            outcomes.extend(send(assoc, radiograph()) for _ in range(4))

    threads = [threading.Thread(target=send_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [0x0000] * 16
