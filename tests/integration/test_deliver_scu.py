"""Associations with real peers on loopback, good ones and bad ones.

Over 300 lines: every peer, good and bad, meets the same sender.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    Comprehensive3DSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import StoragePresentationContexts
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from cxr_node.deliver import scu
from cxr_node.deliver.request import Peer, StoreRequest
from cxr_node.deliver.scu import Association, echo
from cxr_node.demo.modality import store_files
from cxr_node.errors import AssociationLost, DeliveryError
from tests.images import grey_image, ramp, save
from tests.scps import STORAGE, UNCOMPRESSED, closed_port, listener, storage_scp, write_instance
from tests.waiting import PATIENCE_S, wait_until


def peer_at(port: int, timeout_s: float = PATIENCE_S, host: str = "127.0.0.1") -> Peer:
    return Peer(host, port, "PACS", "CXRNODE", timeout_s)


def request_for(path: Path, *args, **kwargs) -> StoreRequest:
    ds = write_instance(path, *args, **kwargs)
    return StoreRequest(path, ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.SOPInstanceUID)


@pytest.fixture
def overlay(tmp_path) -> StoreRequest:
    return request_for(tmp_path / "overlay.dcm", size_bytes=300_000)


@pytest.fixture
def report(tmp_path) -> StoreRequest:
    return request_for(tmp_path / "report.dcm", Comprehensive3DSRStorage)


class TestStoring:
    def test_sends_the_data_set_as_it_lies_on_disk(self, overlay):
        with storage_scp() as scp:
            [outcome] = store_files([overlay], peer_at(scp.port))
        assert outcome.stored
        [(uid, transfer_syntax, content)] = scp.received
        assert (uid, transfer_syntax) == (overlay.sop_instance_uid, ExplicitVRLittleEndian)
        assert overlay.path.read_bytes().endswith(content)
        assert len(content) > 300_000

    def test_uses_one_association_for_a_batch(self, tmp_path):
        requests = [
            request_for(tmp_path / f"{n}.dcm", (SecondaryCaptureImageStorage, Comprehensive3DSRStorage)[n % 2]) for n in range(6)
        ]
        heard = []
        with storage_scp() as scp:
            outcomes = store_files(requests, peer_at(scp.port), lambda request, _: heard.append(request))
        assert all(outcome.stored for outcome in outcomes)
        assert heard == requests
        assert scp.uids == [request.sop_instance_uid for request in requests]
        assert len(scp.associations) == 1

    def test_more_kinds_of_file_than_one_association_can_negotiate(self, tmp_path):
        known = [context.abstract_syntax for context in StoragePresentationContexts]
        classes = [uid for uid in known if uid_to_service_class(uid) is StorageServiceClass][:70]
        requests = [request_for(tmp_path / f"{n}.dcm", uid, size_bytes=10) for n, uid in enumerate(classes)]
        with storage_scp(contexts=[(uid, UNCOMPRESSED) for uid in classes]) as scp:
            outcomes = store_files(requests, peer_at(scp.port))
        assert all(outcome.stored for outcome in outcomes)
        assert len(scp.associations) == 2

    @pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0xB123, 0x0107, 0x0116])
    def test_a_warning_counts_as_stored(self, overlay, status):
        with storage_scp(lambda _: status) as scp:
            [outcome] = store_files([overlay], peer_at(scp.port))
        assert (outcome.status, outcome.stored, outcome.error) == (status, True, "")

    @pytest.mark.parametrize(
        ("status", "word"),
        [
            (0xA700, "out of resources"),
            (0xA900, "SOP class"),
            (0xC000, "can't understand"),
            (0x0124, "register"),
            (0x0123, "0123"),
        ],
    )
    def test_anything_else_does_not(self, overlay, status, word):
        with storage_scp(lambda _: status) as scp:
            [outcome] = store_files([overlay], peer_at(scp.port))
        assert (outcome.status, outcome.stored, outcome.unusable) == (status, False, False)
        assert word in outcome.error

    def test_passes_on_what_the_peer_says(self, overlay):
        answer = Dataset()
        answer.Status = 0xA700
        answer.ErrorComment = "disk quota of archive 2"
        with storage_scp(lambda _: answer) as scp:
            [outcome] = store_files([overlay], peer_at(scp.port))
        assert "disk quota of archive 2" in outcome.error

    def test_encodes_anew_for_a_peer_that_takes_only_the_other_vr_encoding(self, overlay):
        with storage_scp(contexts=[(SecondaryCaptureImageStorage, [ImplicitVRLittleEndian])]) as scp:
            [outcome] = store_files([overlay], peer_at(scp.port))
        assert outcome.stored
        [(_, transfer_syntax, content)] = scp.received
        assert transfer_syntax == ImplicitVRLittleEndian
        assert not overlay.path.read_bytes().endswith(content)

    def test_inflates_for_a_peer_that_does_not_deflate(self, tmp_path):
        request = request_for(tmp_path / "deflated.dcm", transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
        with storage_scp() as scp:
            [outcome] = store_files([request], peer_at(scp.port))
        assert outcome.stored
        assert scp.received[0][1] == ExplicitVRLittleEndian

    def test_a_refused_class_costs_only_its_own_objects(self, overlay, report):
        with storage_scp(contexts=STORAGE[:1]) as scp:
            refused, stored = store_files([report, overlay], peer_at(scp.port))
        assert stored.stored
        assert refused.status is None
        assert "doesn't accept Comprehensive 3D SR Storage" in refused.error
        assert not refused.unusable

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    def test_a_lossless_picture_is_sent_raw_to_a_peer_that_takes_no_other(self, tmp_path, syntax):
        ds = grey_image(ramp(), transfer_syntax=syntax, SOPClassUID=SecondaryCaptureImageStorage)
        save(ds, tmp_path / "compressed.dcm")
        request = StoreRequest(tmp_path / "compressed.dcm", SecondaryCaptureImageStorage, syntax, ds.SOPInstanceUID)
        with storage_scp() as scp:
            [outcome] = store_files([request], peer_at(scp.port))
        assert outcome.stored
        ((_, transfer_syntax_uid, content),) = scp.received
        assert transfer_syntax_uid == ExplicitVRLittleEndian
        assert content.endswith(ramp().tobytes())

    def test_a_refused_transfer_syntax_is_named(self, tmp_path, overlay):
        request = StoreRequest(overlay.path, SecondaryCaptureImageStorage, JPEGBaseline8Bit, overlay.sop_instance_uid)
        ds = dcmread(overlay.path)
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        del ds.EncapsulatedDocument
        dcmwrite(overlay.path, ds, enforce_file_format=True)
        with storage_scp() as scp:
            refused, also_refused = store_files([request, request], peer_at(scp.port))
        assert "JPEG Baseline" in refused.error
        assert also_refused == refused
        assert scp.received == []

    @pytest.mark.parametrize("content", [None, b"", b"no DICOM at all" * 100, b"\0" * 128 + b"DICM" + b"\xff" * 500])
    def test_a_damaged_file_is_the_files_fault(self, overlay, report, content):
        overlay.path.unlink()
        if content is not None:
            overlay.path.write_bytes(content)
        with storage_scp() as scp:
            bad, good = store_files([overlay, report], peer_at(scp.port))
        assert bad.unusable
        assert "The file" in bad.error
        assert good.stored

    def test_another_object_under_the_path_is_not_sent(self, overlay, report):
        with storage_scp() as scp:
            wrong = StoreRequest(report.path, overlay.sop_class_uid, overlay.transfer_syntax_uid, overlay.sop_instance_uid)
            [outcome] = store_files([wrong], peer_at(scp.port))
        assert outcome.unusable
        assert scp.received == []

    def test_a_large_object_is_not_cut_off_by_the_timeout_of_an_answer(self, tmp_path, monkeypatch):
        """The time to answer counts on top of the time to transfer."""
        monkeypatch.setattr(scu, "_SLOWEST_LINK", 2048)
        request = request_for(tmp_path / "large.dcm", size_bytes=200_000)

        def slowly(_):
            time.sleep(2.5)
            return 0x0000

        with storage_scp(slowly) as scp:
            [outcome] = store_files([request], peer_at(scp.port, timeout_s=2.0))
        assert outcome.stored


def become_impatient(association):
    """Have an association that is established wait shortly for its peer."""
    association.peer = replace(association.peer, timeout_s=0.5)
    association._socket.settimeout(0.5)
    return association


def test_a_response_is_left_to_the_request_that_waits_for_it(report):
    """pynetdicom's own thread may look for messages once more after it has said that it is paused: on a busy machine it does."""
    with storage_scp() as scp:
        association = Association(peer_at(scp.port), [report.offer])
        assoc = association._assoc
        assoc._reactor_checkpoint.clear()
        wait_until(lambda: assoc._is_paused, "its thread pauses")
        assoc.dimse.msg_queue.put((1, "response"))
        assert assoc.dimse.get_msg() == (None, None)
        assert assoc.dimse.get_msg(block=True) == (1, "response")
        assoc._reactor_checkpoint.set()
        association.release()


class TestAssociationsThatEnd:
    def test_an_abort_in_the_middle_of_a_transfer(self, tmp_path):
        request = request_for(tmp_path / "large.dcm", size_bytes=8_000_000)

        def abort_early(event):
            event.assoc.abort()

        with storage_scp() as scp:
            association = Association(peer_at(scp.port), [request.offer])
            scp.associations[0].assoc.bind(*_on_first_piece(abort_early))
            with pytest.raises(AssociationLost, match="middle of a request"):
                association.store(request)
            assert not association.is_open

    def test_the_rest_of_a_batch_is_told_why_it_was_not_sent(self, overlay, report):
        def abort(event):
            event.assoc.abort()
            return 0x0000

        with storage_scp(abort) as scp:
            first, second = store_files([overlay, report], peer_at(scp.port))
        assert "middle of a request" in first.error
        assert second.error.startswith("Not sent")
        assert scp.uids == [overlay.sop_instance_uid]

    def test_no_answer_in_time(self, report):
        release = threading.Event()

        def never(_):
            release.wait(PATIENCE_S)
            return 0x0000

        with storage_scp(never) as scp:
            association = become_impatient(Association(peer_at(scp.port), [report.offer]))
            with pytest.raises(DeliveryError, match="didn't answer the request within"):
                association.store(report)
            assert not association.is_open
            release.set()

    def test_a_peer_that_stops_reading_does_not_hold_the_sender_for_ever(self, tmp_path):
        """TCP's window fills up; nothing but a timeout of the connection itself ends that."""
        request = request_for(tmp_path / "large.dcm", size_bytes=16_000_000)
        with storage_scp() as scp:
            association = become_impatient(Association(peer_at(scp.port), [request.offer]))
            connection = scp.associations[0].assoc.dul.socket.socket
            blocked = threading.Event()
            release = threading.Event()

            def block(_event):
                blocked.set()
                release.wait(PATIENCE_S)

            scp.associations[0].assoc.bind(*_on_first_piece(block))
            started = time.monotonic()
            with pytest.raises(AssociationLost):
                association.store(request)
            assert blocked.is_set()
            assert time.monotonic() - started < PATIENCE_S / 2
            release.set()
            connection.close()

    def test_cut_off_from_another_thread(self, report):
        cut = threading.Event()

        def never(_):
            threading.Thread(target=lambda: (association.hang_up(), cut.set())).start()
            cut.wait(PATIENCE_S)
            return 0x0000

        with storage_scp(never) as scp:
            association = Association(peer_at(scp.port), [report.offer])
            with pytest.raises(AssociationLost):
                association.store(report)

    def test_a_released_association_takes_no_more(self, report):
        with storage_scp() as scp:
            association = Association(peer_at(scp.port), [report.offer])
            association.release()
            assert not association.is_open
            with pytest.raises(AssociationLost):
                association.store(report)


class TestNoAssociation:
    """Each reason is told apart, and leads to its cure."""

    def reason(self, port: int, timeout_s: float = PATIENCE_S, host: str = "127.0.0.1") -> str:
        with pytest.raises(DeliveryError) as caught:
            echo(host, port, "PACS", "CXRNODE", timeout_s)
        return str(caught.value)

    def test_closed_port(self):
        port = closed_port()
        assert f"Nothing listens on 127.0.0.1:{port}" in self.reason(port)

    def test_unknown_host(self):
        assert "host name 'no-such-host.invalid' cannot be resolved" in self.reason(104, host="no-such-host.invalid")

    def test_host_that_does_not_answer(self):
        """A full backlog drops further requests as a firewall does."""
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(server.getsockname())
                fillers.append(filler)
            reason = self.reason(server.getsockname()[1], timeout_s=0.5)
            for filler in fillers:
                filler.close()
        assert "didn't answer within" in reason
        assert "firewall" in reason

    def test_called_ae_title_differs(self):
        with storage_scp(ae_title="Pacs", require_called=True) as scp:
            reason = self.reason(scp.port)
        assert "doesn't know itself as 'PACS'" in reason
        assert "upper and lower case" in reason

    def test_calling_ae_title_unknown(self):
        with storage_scp(callers=["SOMEONE"]) as scp:
            reason = self.reason(scp.port)
        assert "doesn't know 'CXRNODE'" in reason
        assert "Register" in reason

    def test_busy_peer(self):
        with storage_scp(maximum_associations=1) as scp:
            first = Association(peer_at(scp.port))
            assert "too many associations" in self.reason(scp.port)
            first.release()

    def test_nothing_in_common(self):
        with storage_scp(contexts=[("1.2.840.10008.5.1.4.1.1.2", UNCOMPRESSED)], verification=False) as scp:
            assert "nothing that was proposed" in self.reason(scp.port)

    def test_verification_not_taken(self):
        with storage_scp(verification=False) as scp:
            association = Association(peer_at(scp.port), [(SecondaryCaptureImageStorage, ExplicitVRLittleEndian)])
            with pytest.raises(DeliveryError, match="doesn't accept Verification"):
                association.echo()
            association.release()

    def test_echo_answered_with_a_failure(self):
        with storage_scp(echo_status=0x0122) as scp:
            assert "status 0x0122" in self.reason(scp.port)

    def test_a_web_server(self):
        with listener(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            assert "doesn't answer in DICOM" in self.reason(port)

    def test_hangs_up(self):
        with listener(lambda connection: connection.recv(10000)) as port:
            assert "doesn't answer in DICOM" in self.reason(port)

    def test_aborts(self):
        def abort(connection):
            connection.recv(10000)
            connection.sendall(b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00")  # A-ABORT, PS3.8 table 9-26
            connection.recv(10000)

        with listener(abort) as port:
            assert "aborts the association" in self.reason(port)

    def test_never_answers(self):
        release = threading.Event()
        with listener(lambda _: release.wait(PATIENCE_S)) as port:
            assert "didn't answer the association request" in self.reason(port, timeout_s=0.3)
            release.set()

    def test_a_peer_that_answers_echo(self):
        with storage_scp() as scp:
            echo("127.0.0.1", scp.port, "PACS", "CXRNODE", PATIENCE_S)
            assert len(scp.associations) == 1


def _on_first_piece(act):
    from pynetdicom import evt

    def on_data(event):
        if event.data[:1] == b"\x04" and not getattr(event.assoc, "acted", False):  # P-DATA-TF
            event.assoc.acted = True
            act(event)

    return evt.EVT_DATA_RECV, on_data
