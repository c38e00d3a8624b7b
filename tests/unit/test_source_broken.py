"""Findings of `make fuzz`: what is broken in a header is told as the input's fault, not as the node's."""

from __future__ import annotations

import errno
import tracemalloc
from unittest.mock import Mock

import pytest

from cxr_node.errors import Rejected
from cxr_node.prepare.source import read_dicom
from tests.images import grey_image, ramp, save


def broken(path, old, new):
    content = save(grey_image(ramp(160, 200)), path).read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"\x28\x00\x02\x00US", b"\x28\x00\x03\x00US", id="no SamplesPerPixel"),
        pytest.param(b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00TB", id="a VR that there is none, of Modality"),
        pytest.param(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00UQ", id="the same, of Rows"),
        pytest.param(b"\x28\x00\x01\x01US\x02\x00", b"\x28\x00\x01\x01U\xf3\x02\x00", id="the same, of BitsStored"),
    ],
)
def test_a_broken_header_is_the_inputs_fault(tmp_path, old, new):
    with pytest.raises(Rejected):
        read_dicom(broken(tmp_path / "image.dcm", old, new))


def test_an_error_of_the_disk_is_not_the_inputs_fault(tmp_path, monkeypatch):
    path = save(grey_image(ramp(160, 200)), tmp_path / "image.dcm")
    monkeypatch.setattr("cxr_node.prepare.decode.dcmread", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input"):
        read_dicom(path)


def test_an_error_of_pydicom_without_a_number_is_the_inputs_fault(tmp_path, monkeypatch):
    path = save(grey_image(ramp(160, 200)), tmp_path / "image.dcm")
    monkeypatch.setattr("cxr_node.prepare.decode.dcmread", Mock(side_effect=OSError("No tag to read at file position 40")))
    with pytest.raises(Rejected):
        read_dicom(path)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID"])
def test_an_image_that_results_can_t_be_filed_beside_says_so(tmp_path, keyword):
    ds = grey_image(ramp(160, 200))
    del ds[keyword]
    ds.file_meta.pop(f"MediaStorage{keyword}", None)
    ds.save_as(tmp_path / "image.dcm", enforce_file_format=False)
    with pytest.raises(Rejected, match=f"lacks {keyword}"):
        read_dicom(tmp_path / "image.dcm")


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_a_uid_that_only_the_file_meta_information_has_is_taken_from_there(tmp_path, keyword):
    ds = grey_image(ramp(160, 200))
    uid = str(ds[keyword].value)
    del ds[keyword]
    ds.save_as(tmp_path / "image.dcm", enforce_file_format=False)
    assert read_dicom(tmp_path / "image.dcm").ds[keyword].value == uid


@pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (65535, 1600), (0, 200)])
def test_rows_and_columns_alone_make_no_memory(tmp_path, rows, columns):
    path = save(grey_image(ramp(160, 200), Rows=rows, Columns=columns), tmp_path / "bomb.dcm")
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            read_dicom(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
