"""Reads the header values that the queue and the audit log need, and nothing else of the data set."""

from __future__ import annotations

import mmap
import warnings
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pydicom import uid
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import TEXT_VR_DELIMS

from cxr_node.dicom.part10 import after_group_2, file_in
from cxr_node.errors import Rejected
from cxr_node.receive.intake.elements import Broken, find_elements
from cxr_node.receive.intake.order import elements_follow_the_pixels
from cxr_node.records import MODEL_NAME, InstanceHeader
from cxr_node.store.files.instances import is_uid


def _tag(keyword: str) -> int:
    return int(tag_for_keyword(keyword) or 0)


_UIDS = {keyword: _tag(keyword) for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
_CHARACTER_SET, _PATIENT_ID, _ACCESSION_NUMBER = _tag("SpecificCharacterSet"), _tag("PatientID"), _tag("AccessionNumber")
_MODEL_NAME, _CONTRIBUTIONS = _tag("ManufacturerModelName"), _tag("ContributingEquipmentSequence")
_TAGS = frozenset((*_UIDS.values(), _CHARACTER_SET, _PATIENT_ID, _ACCESSION_NUMBER, _MODEL_NAME))


_Elements = tuple[dict[int, bytes], list[dict[int, bytes]], int]
"""The result of `find_elements`."""


class Incomplete(Rejected):
    """A UID, or something else that is asked for, is missing or comes after the pixels."""


_LONGEST_HEADER_BYTES = 4 * 1024 * 1024
"""Of a deflated data set no more than this is inflated: a few kilobytes of it can hold gigabytes."""


def read_header(
    path: Path, offset: int, transfer_syntax_uid: str, beginning: bytes = b"", *, in_order: bool = False
) -> tuple[InstanceHeader, bool]:
    """The header of a data set in a file; see `header_of`.

    Args:
        path: the file.
        offset: where in it the data set begins, in bytes.
        transfer_syntax_uid: how it is encoded.
        beginning: the first bytes of the file, where they are at hand: it is opened only if its pixels don't begin in these.
        in_order: raise `Incomplete` if elements come after the pixels that belong before them.
    """
    if beginning:
        found = None
        with suppress(Exception):  # any defect other than trailing data shows below
            found = _find(beginning, offset, transfer_syntax_uid, is_beginning=True)
        if found is not None:
            if in_order:
                _check_order(path, beginning, found[2], transfer_syntax_uid)
            return _header(*found[:2], transfer_syntax_uid)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _find_or_reject(content, offset, transfer_syntax_uid)
            if in_order:
                _check_order(path, content, found[2], transfer_syntax_uid)
            return _header(*found[:2], transfer_syntax_uid)
    except ValueError as error:  # there is no mapping of nothing
        raise Rejected("it can't be parsed: it is empty") from error


def header_of(content: bytes | mmap.mmap, offset: int, transfer_syntax_uid: str) -> tuple[InstanceHeader, bool]:
    """The header of a data set, and whether a node like this one made the instance.

    The latter is so if the manufacturer's model name is the node's, of the instance itself or of a contributing
    equipment (PS3.3 sections C.7.5.1 and C.12.1.1.5), such as a PACS that sends the result back converted adds.

    Args:
        content: what holds the data set.
        offset: where in it the data set begins, in bytes.
        transfer_syntax_uid: how it is encoded.

    Raises:
        Rejected: it can't be parsed as far as its pixels, or lacks a UID that every instance has.
    """
    return _header(*_find_or_reject(content, offset, transfer_syntax_uid)[:2], transfer_syntax_uid)


def _find_or_reject(content: bytes | mmap.mmap, offset: int, transfer_syntax_uid: str) -> _Elements:
    try:
        return _find(content, offset, transfer_syntax_uid)
    except Rejected:
        raise
    except Broken as broken:
        raise Rejected(f"it can't be parsed: {broken}") from broken
    except Exception as error:
        raise Rejected(f"it can't be parsed ({type(error).__name__})") from error


def _check_order(path: Path, content: bytes | mmap.mmap, at: int, transfer_syntax_uid: str) -> None:
    if transfer_syntax_uid == uid.DeflatedExplicitVRLittleEndian:
        return
    explicit, little_endian = _encoding(transfer_syntax_uid)
    if elements_follow_the_pixels(path, content, at, explicit=explicit, little_endian=little_endian):
        raise Incomplete("elements follow its pixels")


def _header(
    top: dict[int, bytes], contributions: list[dict[int, bytes]], transfer_syntax_uid: str
) -> tuple[InstanceHeader, bool]:
    values = {keyword: _text(top.get(tag, b"")) for keyword, tag in _UIDS.items()}
    for keyword, value in values.items():
        if not is_uid(value):
            raise Rejected(f"its {keyword} is no UID") if value else Incomplete(f"its {keyword} is missing")
    character_set = top.get(_CHARACTER_SET, b"")
    header = InstanceHeader(
        sop_instance_uid=values["SOPInstanceUID"],
        sop_class_uid=values["SOPClassUID"],
        transfer_syntax_uid=transfer_syntax_uid,
        study_instance_uid=values["StudyInstanceUID"],
        series_instance_uid=values["SeriesInstanceUID"],
        patient_id=_text(top.get(_PATIENT_ID, b""), character_set),
        accession_number=_text(top.get(_ACCESSION_NUMBER, b""), character_set),
    )
    is_own = any(_text(maker.get(_MODEL_NAME, b"")) == MODEL_NAME for maker in (top, *contributions))
    return header, is_own


def _find(content: bytes | mmap.mmap, offset: int, transfer_syntax_uid: str, *, is_beginning: bool = False) -> _Elements:
    wrapped = file_in(content, offset)
    if wrapped is not None:  # one of the negotiated syntax comes unwrapped (`transport.incoming`)
        raise Rejected(f"it is a file of another transfer syntax ({uid.UID(wrapped[1]).name})")
    if transfer_syntax_uid != uid.DeflatedExplicitVRLittleEndian:
        explicit, little_endian = _encoding(transfer_syntax_uid)
        return find_elements(
            content,
            after_group_2(content, offset, "<" if little_endian else ">"),
            explicit=explicit,
            little_endian=little_endian,
            tags=_TAGS,
            inside=_CONTRIBUTIONS,
            is_beginning=is_beginning,
        )
    if is_beginning:
        raise Broken("it goes on")
    # PS3.5 section A.5: raw deflate, without zlib's header
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(content[offset : offset + _LONGEST_HEADER_BYTES], _LONGEST_HEADER_BYTES)
    return find_elements(
        inflated, 0, explicit=True, little_endian=True, tags=_TAGS, inside=_CONTRIBUTIONS, is_cut=not inflater.eof
    )


@lru_cache(maxsize=64)
def _encoding(transfer_syntax_uid: str) -> tuple[bool, bool]:
    """Whether VRs are explicit, and the byte order little endian; pydicom takes its time to look at a UID."""
    transfer_syntax = uid.UID(transfer_syntax_uid)
    return not transfer_syntax.is_implicit_VR, transfer_syntax.is_little_endian


def _encodings(character_set: str) -> list[str]:
    """Python's names of those character sets that there are: of others pydicom would warn, and quote them."""
    names = [name for part in character_set.split("\\") if (name := part.strip()) in python_encoding]
    return list(convert_encodings(names))


def _text(value: bytes, character_set: bytes = b"") -> str:
    """A text value without its padding; `character_set` is the value of Specific Character Set (PS3.3 section C.12.1.1.2)."""
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        with warnings.catch_warnings():  # that it couldn't decode all of it is no news to anyone
            warnings.simplefilter("ignore")
            encodings = _encodings(_text(character_set)) if character_set else convert_encodings([])
            text = decode_bytes(value, encodings, TEXT_VR_DELIMS)
    return text.strip(" \x00")
