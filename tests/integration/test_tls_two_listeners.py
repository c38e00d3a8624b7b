"""Plain DICOM and TLS side by side: each at its own port, each known for what it is."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys

import pytest
from pydantic import ValidationError

from cxr_node.dicom.certificates import problems
from cxr_node.errors import SettingsError
from cxr_node.receive import scp
from cxr_node.settings import NodeSettings, ReceiveSettings, SenderSettings, Settings, TlsSettings
from tests.certificates import client
from tests.node import Node
from tests.orthanc import free_port
from tests.receiver import Receiver, associated, radiograph, send
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def modality(authority):
    return authority.issue("modality1.example")


def listening(authority, node, port: int | None = 0) -> TlsSettings:
    return TlsSettings(listen=True, port=port, certificate=node.certificate, key=node.key, ca=authority.certificate)


@pytest.fixture(scope="module", params=[1, 2], ids=["in this process", "in processes"])
def receiver(request, authority, node, tmp_path_factory):
    """Knows OVER_TLS by its certificate alone; whoever else may call from anywhere."""
    senders = (SenderSettings(ae_title="OVER_TLS", certificate_names=("modality1.example",)),)
    folder = tmp_path_factory.mktemp("data")
    with Receiver(folder, senders, listening(authority, node), processes=request.param) as running:
        yield running


def test_both_store_at_the_same_time(receiver, authority, modality):
    plain, secure = radiograph(), radiograph()
    context = client(authority.certificate, modality)
    with (
        associated(receiver) as over_plain,
        associated(receiver, calling="OVER_TLS", tls=context, port=receiver.tls_port) as over_tls,
    ):
        assert [send(over_plain, plain), send(over_tls, secure)] == [0x0000, 0x0000]
    stored = {row["sop_instance_uid"]: row["calling_ae_title"] for row in receiver.rows("instances")}
    assert stored[plain.SOPInstanceUID] == "MODALITY1"
    assert stored[secure.SOPInstanceUID] == "OVER_TLS"


def test_the_port_of_tls_takes_nothing_plain(receiver):
    with associated(receiver, port=receiver.tls_port) as assoc:
        assert not assoc.is_established
        assert not assoc.is_rejected


def test_the_plain_port_speaks_no_tls(receiver, authority, modality):
    context = client(authority.certificate, modality)
    with socket.create_connection(("127.0.0.1", receiver.port), PATIENCE_S) as connection, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(connection, server_hostname="127.0.0.1")


def test_tls_still_asks_for_a_certificate(receiver, authority):
    with associated(receiver, tls=client(authority.certificate), port=receiver.tls_port) as assoc:
        assert not assoc.is_established


def test_a_sender_that_has_to_show_a_certificate_may_not_come_in_by_the_plain_port(receiver):
    with associated(receiver, calling="OVER_TLS") as assoc:
        assert assoc.is_rejected
    [refusal] = [row for row in receiver.rows("audit") if row["user"] == "OVER_TLS" and row["event"] == "association-refused"]
    assert "presents no certificate" in refusal["detail"]


def test_one_limit_holds_for_both(authority, node, modality, tmp_path):
    with Receiver(tmp_path, (), listening(authority, node), max_associations=1) as receiver:
        context = client(authority.certificate, modality)
        with associated(receiver) as first, associated(receiver, tls=context, port=receiver.tls_port) as second:
            assert first.is_established
            assert second.is_rejected


@pytest.mark.parametrize("port", [None, 0])
def test_the_ready_line_names_where_tls_is_spoken(authority, node, tmp_path, port):
    extra = f'[tls]\nlisten = true\ncertificate = "{node.certificate}"\nkey = "{node.key}"\nca = "{authority.certificate}"\n'
    config = Node(tmp_path, extra=extra + ("" if port is None else f"port = {free_port()}\n")).config
    command = [sys.executable, "-m", "cxr_node", "receive", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            process.terminate()
    assert line.startswith("cxr-node is ready to receive: CXRNODE on 127.0.0.1:")
    assert (", over TLS on 127.0.0.1:" in line) == (port is not None)


def test_a_port_that_is_taken_is_named_by_its_key(authority, node, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(
            node=NodeSettings(port=0, data_dir=tmp_path),
            receive=ReceiveSettings(processes=1),
            tls=listening(authority, node, taken.getsockname()[1]),
        )
        with pytest.raises(SettingsError, match=r"tls\.port"):
            scp.run(settings, None, None)


def test_both_on_one_port_is_a_contradiction():
    with pytest.raises(ValidationError, match="another port"):
        Settings(tls=TlsSettings(listen=True, port=11112))


def test_a_port_without_tls_is_warned_of():
    assert problems(Settings(tls=TlsSettings(port=2762))) == [
        ("warning", "tls.port has no effect without tls.listen = true: the node does not use TLS.")
    ]
