"""Delivery into archives that nobody here wrote."""

from __future__ import annotations

import subprocess

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from cxr_node.deliver.check import Severity, check_destinations
from cxr_node.deliver.request import Peer, StoreRequest
from cxr_node.demo.modality import store_files
from cxr_node.errors import DeliveryError
from cxr_node.settings import DestinationSettings, Settings
from tests.orthanc import Orthanc, free_port
from tests.scps import write_instance
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.peer

CLASSES = (SecondaryCaptureImageStorage, Comprehensive3DSRStorage)


@pytest.fixture
def requests(tmp_path) -> list[StoreRequest]:
    found = []
    for number, sop_class_uid in enumerate(CLASSES * 2):
        path = tmp_path / "out" / f"{number}.dcm"
        ds = write_instance(path, sop_class_uid, size_bytes=200_000)
        found.append(StoreRequest(path, sop_class_uid, ds.file_meta.TransferSyntaxUID, ds.SOPInstanceUID))
    return found


def destination(port: int, ae_title: str) -> Settings:
    return Settings(
        destinations=(DestinationSettings(name="pacs", ae_title=ae_title, host="127.0.0.1", port=port, timeout_s=PATIENCE_S),)
    )


def test_orthanc_stores_what_is_sent(peer, tmp_path, requests):
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc") as orthanc:
        outcomes = store_files(requests, Peer("127.0.0.1", orthanc.dicom_port, "ORTHANC", "CXRNODE", PATIENCE_S))
        assert [outcome.status for outcome in outcomes] == [0x0000] * len(requests)
        held = {instance["tags"]["SOPInstanceUID"] for instance in orthanc.instances()}
    assert held == {request.sop_instance_uid for request in requests}


def test_orthanc_passes_the_check_and_its_wrong_ae_title_does_not(peer, tmp_path):
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc") as orthanc:
        [good] = check_destinations(destination(orthanc.dicom_port, "ORTHANC"))
        [wrong] = check_destinations(destination(orthanc.dicom_port, "ORTHANK"))
        [web] = check_destinations(destination(orthanc.http_port, "ORTHANC"))
    assert good.severity == Severity.OK
    assert wrong.severity == Severity.ERROR
    assert "doesn't know itself as 'ORTHANK'" in wrong.text
    assert web.severity == Severity.ERROR
    assert "DICOM port" in web.text


def test_dcmtk_keeps_the_bytes_of_the_data_set(peer, tmp_path, requests):
    folder = tmp_path / "received"
    folder.mkdir()
    port = free_port()
    command = [peer("storescp"), "--bit-preserving", "-od", str(folder), "-aet", "DCMTK", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as storescp:
        try:

            def stored():
                try:
                    return store_files(requests, Peer("127.0.0.1", port, "DCMTK", "CXRNODE", PATIENCE_S))
                except DeliveryError:
                    assert storescp.poll() is None
                    return None

            outcomes = wait_until(stored, "storescp's start")
        finally:
            storescp.terminate()
    assert all(outcome.stored for outcome in outcomes)
    kept = {dcmread(path).SOPInstanceUID: path.read_bytes() for path in folder.iterdir()}
    for request in requests:
        sent = request.path.read_bytes()
        data_set = sent[sent.index(b"\x08\x00\x16\x00", 132) :]
        assert kept[request.sop_instance_uid].endswith(data_set)
