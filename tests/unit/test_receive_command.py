"""The hand-written command sets, judged by pynetdicom's own."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from pydicom import uid
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode, encode

from cxr_node.receive.intake.admission import StoreResponse
from cxr_node.receive.transport.command import StoreCommand, read_store_request, write_store_response


def pynetdicom_command(message, primitive):
    message.primitive_to_message(primitive)
    return encode(message.command_set, True, True)


def store_command(sop_instance_uid="1.2.3"):
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 513, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = uid.CTImageStorage, sop_instance_uid
    primitive.MoveOriginatorApplicationEntityTitle, primitive.MoveOriginatorMessageID = "MOVER", 3
    primitive.DataSet = BytesIO(b"x")
    return pynetdicom_command(C_STORE_RQ(), primitive)


@pytest.mark.parametrize("sop_instance_uid", ["1.2.3", "1.2.34"])
def test_reads_a_store_request(sop_instance_uid):
    assert read_store_request(store_command(sop_instance_uid)) == StoreCommand(513, uid.CTImageStorage, sop_instance_uid, True)


def test_leaves_other_requests_to_pynetdicom():
    primitive = C_ECHO()
    primitive.MessageID, primitive.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
    assert read_store_request(pynetdicom_command(C_ECHO_RQ(), primitive)) is None


@pytest.mark.parametrize("cut", [1, 7, 9, 13, 60])
def test_does_not_read_what_is_cut_off(cut):
    with pytest.raises(ValueError, match="element"):
        read_store_request(store_command()[:-cut])


@pytest.mark.parametrize(
    "broken", [struct.pack("<HHL", 0, 0x0100, 2**31), struct.pack("<HHLH", 8, 0x0100, 2, 1), b"no command set"]
)
def test_does_not_read_what_is_no_command_set(broken):
    with pytest.raises(ValueError, match="element"):
        read_store_request(broken)


def test_does_not_read_a_request_that_could_not_be_answered():
    with pytest.raises(ValueError, match="message ID"):
        read_store_request(struct.pack("<HHLH", 0, 0x0100, 2, 0x0001))


@pytest.mark.parametrize("answer", [StoreResponse(0x0000), StoreResponse(0xA700, "odd"), StoreResponse(0xC000, "x" * 100)])
@pytest.mark.parametrize("sop_instance_uid", ["1.2.3", "1.2.34"])
def test_writes_a_response_that_pynetdicom_reads(answer, sop_instance_uid):
    written = write_store_response(StoreCommand(513, uid.CTImageStorage, sop_instance_uid, True), answer)
    command = decode(BytesIO(written), True, True)
    assert command.CommandField == 0x8001
    assert command.Status == answer.status
    assert command.MessageIDBeingRespondedTo == 513
    assert command.CommandDataSetType == 0x0101
    assert command.AffectedSOPClassUID == uid.CTImageStorage
    assert command.AffectedSOPInstanceUID == sop_instance_uid
    assert command.get("ErrorComment", "") == answer.comment[:64]
    assert encode(command, True, True) == written, "in the order of its tags, every length even"
    assert command.CommandGroupLength == len(written) - 12
