"""Reads what the queue and the audit log need from a data set's header, touching nothing else of it."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, uid
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import TEXT_VR_DELIMS

from cxr_node.errors import Rejected
from cxr_node.records import MODEL_NAME, InstanceHeader
from cxr_node.store.instances import is_uid

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TAGS: list[BaseTag | int] = [
    tag_for_keyword(keyword) or 0
    for keyword in (
        *_UIDS,
        "SpecificCharacterSet",
        "PatientID",
        "AccessionNumber",
        "ManufacturerModelName",
        "ContributingEquipmentSequence",
    )
]
_LONGEST_HEADER_BYTES = 4 * 1024 * 1024
"""Of a deflated data set no more than this is inflated: a few kilobytes of it can hold gigabytes."""


def read_header(path: Path, offset: int, transfer_syntax_uid: str) -> tuple[InstanceHeader, bool]:
    """The header of a data set in a file, and whether a node like this one made the instance.

    The latter is so if the manufacturer's model name is the node's, of the instance itself or of a contributing
    equipment (PS3.3 sections C.7.5.1 and C.12.1.1.5), such as a PACS that sends the result back converted adds.

    Args:
        path: the file.
        offset: where the data set begins, in bytes.
        transfer_syntax_uid: how it is encoded.

    Raises:
        Rejected: it can't be parsed as far as its pixels, or lacks a UID that every instance has.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            ds = _read(file, uid.UID(transfer_syntax_uid))
        values = {keyword: _text(ds, keyword, []) for keyword in _UIDS}
        encodings = convert_encodings([part.strip() for part in _text(ds, "SpecificCharacterSet", []).split("\\")])
        header = InstanceHeader(
            sop_instance_uid=values["SOPInstanceUID"],
            sop_class_uid=values["SOPClassUID"],
            transfer_syntax_uid=transfer_syntax_uid,
            study_instance_uid=values["StudyInstanceUID"],
            series_instance_uid=values["SeriesInstanceUID"],
            patient_id=_text(ds, "PatientID", encodings),
            accession_number=_text(ds, "AccessionNumber", encodings),
        )
        makers = [ds, *ds.get("ContributingEquipmentSequence", [])]
        is_own = any(_text(maker, "ManufacturerModelName", []) == MODEL_NAME for maker in makers)
    except Exception as error:  # pydicom raises whatever broken bytes lead it to
        raise Rejected(f"it can't be parsed ({type(error).__name__})") from error
    for keyword, value in values.items():
        if not is_uid(value):
            raise Rejected(f"its {keyword} is {'no UID' if value else 'missing'}")
    return header, is_own


def _read(file: BinaryIO, transfer_syntax: uid.UID) -> Dataset:
    if transfer_syntax == uid.DeflatedExplicitVRLittleEndian:
        # PS3.5 section A.5: raw deflate, without zlib's header
        file = BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _LONGEST_HEADER_BYTES))
    return read_dataset(
        file,
        transfer_syntax.is_implicit_VR,
        transfer_syntax.is_little_endian,
        stop_when=_is_pixels,
        specific_tags=_TAGS,
    )


def _is_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) >= 0x7FE00008  # float, double float and integer pixel data


def _text(ds: Dataset, keyword: str, encodings: list[str]) -> str:
    """A text value as it stands, without pydicom's checks: their warnings would quote it on standard error."""
    element = ds.get_item(keyword)
    value = element.value if element is not None else None
    if not value:
        return ""
    if not isinstance(value, bytes):
        return str(value)
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        text = decode_bytes(value, encodings, TEXT_VR_DELIMS)
    return text.strip(" \x00")
