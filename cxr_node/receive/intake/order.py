"""Sorts a data set whose elements are out of order, such as one whose pixels come before its UIDs (PS3.5 section 7.1)."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from cxr_node.dicom.measure import check_size
from cxr_node.dicom.part10 import source_of


def sort_elements(path: Path, offset: int, transfer_syntax_uid: str) -> bool:
    """Put the elements of a file's data set in order, in place; each keeps its bytes.

    pydicom builds the data set, in bounded memory (`dicom.measure`): this is for what can't be received otherwise.

    Args:
        path: a file with file meta information.
        offset: where in it the data set begins, in bytes.
        transfer_syntax_uid: how it is encoded. A deflated data set is left as it is.

    Returns:
        whether the file has changed: not if its elements are in order, can't be read, or one of them would be lost.
    """
    syntax = UID(transfer_syntax_uid)
    size_bytes = path.stat().st_size
    if syntax.is_deflated:
        return False
    try:
        check_size(path, size_bytes)
        ds = dcmread(source_of(path), force=True)
        if list(ds.keys()) == sorted(ds.keys()):
            return False
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
        write_dataset(buffer, ds)  # in order
    except Exception:  # whatever broken bytes lead pydicom to: then it is no data set to be mended
        return False
    written = buffer.getvalue()
    if offset + len(written) != size_bytes:
        return False  # an element occurs twice, or something at the end is no element
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(written)
    return True
