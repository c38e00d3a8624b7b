"""What a PACS administrator reads when something isn't taken."""

from __future__ import annotations

import errno
import socket

import pytest
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from cxr_node.deliver import reasons
from cxr_node.deliver.request import EXPECTED, Peer, StoreOutcome
from cxr_node.records import ResultKind

PEER = Peer("pacs.hospital", 104, "ARCHIVE", "CXRNODE")


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "host name"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "Nothing listens"),
        (TimeoutError(), "firewall"),
        (None, "firewall"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_a_failed_connection_is_told_by_its_cause(error, word):
    text = reasons.not_connected(PEER, error, 10)
    assert word in text
    assert "pacs.hospital" in text


@pytest.mark.parametrize(
    ("source", "diagnostic", "word"),
    [
        (1, 7, "'ARCHIVE'"),
        (1, 3, "'CXRNODE'"),
        (1, 2, "application context"),
        (1, 1, "no reason"),
        (2, 2, "protocol version"),
        (2, 1, "`passcode_file`"),
        (3, 1, "busy"),
        (3, 2, "busy"),
        (0, 0, "no reason"),
    ],
)
def test_a_rejection_is_told_by_its_source_and_reason(source, diagnostic, word):
    assert word in reasons.rejected(PEER, source, diagnostic)


@pytest.mark.parametrize(("status", "expected"), [(0xA6FF, False), (0xA700, True), (0xA7FF, True), (0xA800, False), (0, False)])
def test_out_of_resources_is_a700_to_a7ff(status, expected):
    assert reasons.out_of_resources(status) is expected


def test_a_comment_of_the_peer_is_cut_to_64_characters():
    assert "x" * 64 + "'" in reasons.not_stored(PEER, 0xC000, "x" * 100)


def test_a_refused_class_is_named():
    text = reasons.refused(PEER, Comprehensive3DSRStorage, ExplicitVRLittleEndian, class_accepted=False)
    assert "Comprehensive 3D SR Storage" in text
    assert Comprehensive3DSRStorage in text


@pytest.mark.parametrize(
    ("status", "stored"),
    [
        *((0, True), (0xB000, True), (0xB006, True), (0xB007, True), (0xB001, True), (0xBFFF, True)),
        *((0x0107, True), (0x0116, True), (0x0111, False), (0xA700, False), (0xC000, False), (0xAFFF, False), (None, False)),
    ],
)
def test_stored_is_success_or_a_status_of_the_class_warning(status, stored):
    """PS3.7 section C.1: 0001, 0107, 0116 and Bxxx are warnings, which an operation that was carried out is answered with."""
    assert StoreOutcome(status).stored is stored


def test_every_kind_of_result_is_expected():
    assert set(EXPECTED) == set(ResultKind)
