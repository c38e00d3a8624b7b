"""The small SCU of `cxr-node send`."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from cxr_node.demo.modality import send_files
from cxr_node.errors import DeliveryError
from tests.scps import STORAGE, closed_port, storage_scp, write_instance
from tests.waiting import PATIENCE_S

RADIOGRAPHS = [
    (uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
    for uid in (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage)
]


def test_outcomes_come_in_the_order_of_the_files(tmp_path):
    good = tmp_path / "good.dcm"
    uid = write_instance(good).SOPInstanceUID
    text, missing = tmp_path / "notes.txt", tmp_path / "missing.dcm"
    text.write_text("no image")
    heard = {}
    with storage_scp() as scp:
        outcomes = send_files(
            [text, good, missing], "127.0.0.1", scp.port, "PACS", progress=lambda file, outcome: heard.update({file: outcome})
        )
    assert [outcome.stored for outcome in outcomes] == [False, True, False]
    assert "not a DICOM, PNG or JPEG file" in outcomes[0].error
    assert "No such file" in outcomes[2].error
    assert scp.uids == [uid]
    assert heard == dict(zip([text, good, missing], outcomes, strict=True))


@pytest.mark.parametrize("transfer_syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_file_meta_is_sent_as_it_is_encoded(tmp_path, transfer_syntax):
    complete, bare = tmp_path / "complete.dcm", tmp_path / "bare.dcm"
    ds = write_instance(complete, ComputedRadiographyImageStorage, transfer_syntax)
    content = complete.read_bytes()
    start = content.index(b"\x08\x00\x16\x00" if transfer_syntax != ExplicitVRBigEndian else b"\x00\x08\x00\x16", 132)
    bare.write_bytes(content[start:])
    with storage_scp(contexts=RADIOGRAPHS) as scp:
        [outcome] = send_files([bare], "127.0.0.1", scp.port, "PACS")
    assert outcome.stored
    assert scp.received == [(ds.SOPInstanceUID, transfer_syntax, content[start:])]


@pytest.mark.parametrize("name", ["chest.png", "chest.jpg"])
def test_an_image_is_wrapped_as_a_radiograph(tmp_path, name):
    image = tmp_path / name
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (300, 1))).save(image)
    received = []

    def keep(event):
        received.append(event.dataset)
        return 0x0000

    with storage_scp(keep, contexts=RADIOGRAPHS) as scp:
        [outcome] = send_files([image], "127.0.0.1", scp.port, "PACS")
    assert outcome.stored
    assert (received[0].Rows, received[0].Columns) == (300, 256)


def test_several_associations_share_the_files(tmp_path):
    files = [tmp_path / f"{n}.dcm" for n in range(9)]
    uids = [write_instance(file).SOPInstanceUID for file in files]
    together = threading.Barrier(3, timeout=PATIENCE_S)  # broken unless three are under way at once

    def meet(_):
        together.wait()
        return 0x0000

    with storage_scp(meet) as scp:
        outcomes = send_files(files, "127.0.0.1", scp.port, "PACS", associations=3)
    assert all(outcome.stored for outcome in outcomes)
    assert sorted(scp.uids) == sorted(uids)
    assert len(scp.associations) == 3


def test_more_associations_than_files(tmp_path):
    file = tmp_path / "one.dcm"
    write_instance(file)
    with storage_scp() as scp:
        [outcome] = send_files([file], "127.0.0.1", scp.port, "PACS", associations=8)
        assert outcome.stored
        assert len(scp.associations) == 1


def test_calls_by_the_names_given(tmp_path):
    file = tmp_path / "one.dcm"
    write_instance(file)
    with storage_scp(ae_title="THERE", require_called=True, callers=["HERE"]) as scp:
        [outcome] = send_files([file], "127.0.0.1", scp.port, "THERE", "HERE")
    assert outcome.stored


def test_no_association_says_why(tmp_path):
    file = tmp_path / "one.dcm"
    write_instance(file)
    with pytest.raises(DeliveryError, match="Nothing listens"):
        send_files([file], "127.0.0.1", closed_port(), "PACS")


def test_what_the_peer_refuses_is_in_the_outcome(tmp_path):
    file = tmp_path / "cr.dcm"
    write_instance(file, ComputedRadiographyImageStorage)
    with storage_scp(contexts=STORAGE) as scp:
        [outcome] = send_files([file], "127.0.0.1", scp.port, "PACS")
    assert not outcome.stored
    assert "Computed Radiography Image Storage" in outcome.error


@pytest.mark.data
def test_real_radiographs_of_every_encoding(data_folder):
    files = sorted((data_folder / "dicom" / "chest").iterdir())
    offered = {}
    for file in files:
        ds = dcmread(file, force=True, stop_before_pixels=True)
        syntax = ds.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        offered.setdefault(ds.SOPClassUID, set()).add(syntax)
    with storage_scp(contexts=[(uid, sorted(syntaxes)) for uid, syntaxes in offered.items()]) as scp:
        outcomes = send_files(files, "127.0.0.1", scp.port, "PACS")
    assert [outcome.error for outcome in outcomes] == [""] * len(files)
    assert len(scp.received) == len(files) >= 8
