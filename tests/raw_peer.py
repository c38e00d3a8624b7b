"""A DICOM peer that writes its PDUs by hand, right or wrong."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from io import BytesIO

from pydicom import uid
from pynetdicom import build_context
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

from tests.waiting import PATIENCE_S

DX = uid.DigitalXRayImageStorageForPresentation
CONTEXT = 1
COMMAND, LAST = 0x01, 0x02


class RawPeer:
    """A connection on which a test writes PDUs byte by byte."""

    def __init__(self, connection):
        self.connection = connection
        self.connection.settimeout(PATIENCE_S)

    def request_association(self, maximum_length=16384, calling="RAW"):
        request = association_request(maximum_length=maximum_length, calling=calling)
        self.connection.sendall(A_ASSOCIATE_RQ(request).encode())
        pdu_type, self.last = self.read_pdu()
        assert pdu_type == 0x02, "not accepted"

    def send_pdu(self, *pdvs, context=CONTEXT):
        self.connection.sendall(pdu(*pdvs, context=context))

    def read_pdu(self):
        head = self._read(6)
        pdu_type, length = struct.unpack(">BxL", head)
        return pdu_type, self._read(length)

    def read_response(self):
        command = b""
        while True:
            pdu_type, body = self.read_pdu()
            assert pdu_type == 0x04, f"PDU of type {pdu_type}"
            self.last_context = body[4]
            command += body[6:]
            if body[5] & LAST:
                return decode(BytesIO(command), True, True)

    def _read(self, size):
        content = b""
        while len(content) < size:
            more = self.connection.recv(size - len(content))
            if not more:
                raise EOFError
            content += more
        return content


def association_request(contexts=(), maximum_length=16384, calling="RAW"):
    """The A-ASSOCIATE request primitive that proposes these contexts, or DX alone."""
    request = A_ASSOCIATE()
    request.application_context_name = uid.UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = calling, "NODE"
    if not contexts:
        contexts = [build_context(DX, uid.ExplicitVRLittleEndian)]
        contexts[0].context_id = CONTEXT
    request.presentation_context_definition_list = list(contexts)
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = maximum_length, uid.UID("1.2.3")
    request.user_information = [length, implementation]
    return request


@contextmanager
def raw_connection(receiver):
    """Connected, and nothing asked for yet."""
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        yield RawPeer(connection)


@contextmanager
def raw_peer(receiver, **options):
    with raw_connection(receiver) as peer:
        peer.request_association(**options)
        yield peer


def pdu(*pdvs, context=CONTEXT):
    """A P-DATA-TF PDU of (message control header, fragment) each."""
    body = b"".join(struct.pack(">LBB", len(data) + 2, context, control) + data for control, data in pdvs)
    return struct.pack(">BxL", 0x04, len(body)) + body


def store_command(sop_instance_uid, sop_class_uid=DX, has_data_set=True):
    def element(number, value):
        return struct.pack("<HHL", 0, number, len(value)) + value

    def padded(text):
        return text.encode() + b"\x00" * (len(text) % 2)

    body = (
        element(0x0002, padded(sop_class_uid))
        + element(0x0100, struct.pack("<H", 0x0001))
        + element(0x0110, struct.pack("<H", 77))
        + element(0x0700, struct.pack("<H", 0))
        + element(0x0800, struct.pack("<H", 0x0001 if has_data_set else 0x0101))
        + element(0x1000, padded(sop_instance_uid))
    )
    return element(0x0000, struct.pack("<L", len(body))) + body
