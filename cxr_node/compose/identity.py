"""The identity of a result object: its UIDs, patient, study and equipment.

The module of each kind adds the content.

Over 300 lines: patient, study, equipment, dates and UIDs of all kinds of object stay in one place.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from highdicom import ContributingEquipment
from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import PersonName, validate_value

from cxr_node.compose.copied_items import LONGEST_LO, TEXT_VRS, copied_items, is_valid
from cxr_node.compose.encode import encode
from cxr_node.compose.requests import add_requests
from cxr_node.dicom.uids import derived_uid
from cxr_node.prepare.header import UNREADABLE, as_list, first_of, number, text, value_of, values_of
from cxr_node.records import KINDS_OF_RESULT, MODEL_NAME, ComposedObject, Findings, Model, ResultKind

_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""PS3.3 C.7.1.1 and C.7.2.1: present in every object, empty where the source doesn't say."""

_COPIED = (
    *_TYPE_2,
    *("IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence"),
    *("PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight", "AdmissionID", "IssuerOfAdmissionIDSequence"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("StudyDescription", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    "TimezoneOffsetFromUTC",
)

_LONGEST_TEXT, _LONGEST_SEQUENCE = 1024, 65536
"""Characters of a value that are copied, and of all values in a sequence."""

_MATCHED = frozenset(("PatientName", "PatientID", "AccessionNumber"))
"""Copied even if they have several values where one is allowed."""

_VERBATIM = TEXT_VRS | {"SQ"}
"""Copied even if a value breaks its VR (a long accession number): archives match by it."""

_ACQUISITION = {
    "manufacturer_model_name": "ManufacturerModelName",
    "software_versions": "SoftwareVersions",
    "device_serial_number": "DeviceSerialNumber",
    "institution_name": "InstitutionName",
    "institutional_department_name": "InstitutionalDepartmentName",
    "institution_address": "InstitutionAddress",
    "station_name": "StationName",
    "contribution_datetime": "AcquisitionDateTime",
}
"""What Contributing Equipment says of what took the image: highdicom's argument and the source's keyword."""


@dataclass(frozen=True)
class ResultIdentity:
    """The place of a result in its study. All of it is derived, so that composing twice makes the same object."""

    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    instance_number: int
    analysis_uid: str

    @property
    def for_highdicom(self) -> dict[str, Any]:
        """What highdicom's constructors ask for; `identify` then says which software it was."""
        return {
            "series_instance_uid": self.series_instance_uid,
            "series_number": self.series_number,
            "sop_instance_uid": self.sop_instance_uid,
            "instance_number": self.instance_number,
            "manufacturer": MODEL_NAME,
            "manufacturer_model_name": MODEL_NAME,
            "software_versions": "0",
            "device_serial_number": "0",
        }

    def tracking_uid(self, what: str) -> str:
        """The tracking UID of one thing, such as a lung, in all objects of one analysis."""
        return derived_uid("tracking", self.analysis_uid, what)


def content_key(model: Model, *parts: str) -> str:
    """The key of a result's content: the model, the program, and what was analysed and how.

    One UID, one content: everything that shows in an object is in its key, and nothing else.
    """
    text = "\0".join((model.name, model.version, model.digest, program_version(), *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def findings_digest(findings: Findings) -> str:
    """A digest of the findings, without the times."""
    hasher = hashlib.sha256()
    for name in sorted(each.name for each in fields(findings) if each.name != "seconds"):
        value = getattr(findings, name)
        hasher.update(f"{name}\0".encode())
        hasher.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return hasher.hexdigest()


def _written(source: Dataset, keyword: str) -> str:
    try:
        return str(value_of(source, keyword))
    except UNREADABLE:  # an item of a sequence holds what can't be read
        return ""


def place(source: Dataset, model: Model, kind: ResultKind, key: str, variant: str = "") -> ResultIdentity:
    """The place of a result of one kind.

    One new series for each series of the source, kind, model and program, and one more where patient or study were
    corrected: all instances of a series share them. A variant (other content in the same kind of object) has its own series.

    Args:
        source: the image.
        model: what made the findings.
        kind: of the object.
        key: what its content follows from, see `content_key`.
        variant: of the kind.
    """
    made_by = (str(kind), *([variant] if variant else ()))
    of_patient = content_key(model, *(_written(source, keyword) for keyword in _COPIED))
    instance_number, source_series = number(source, "InstanceNumber", 1), number(source, "SeriesNumber", 0)
    series_number = int(source_series) if 0 <= source_series < 1_000_000 else 0
    return ResultIdentity(
        sop_instance_uid=derived_uid("instance", source.SOPInstanceUID, key, *made_by),
        series_instance_uid=derived_uid("series", source.StudyInstanceUID, source_series_uid(source), of_patient, *made_by),
        series_number=int(f"{KINDS_OF_RESULT[kind].series_number}{series_number:03d}"),
        analysis_uid=derived_uid("analysis", source.SOPInstanceUID, key),
        instance_number=int(instance_number) if 1 <= instance_number < 2**31 else 1,
    )


def source_series_uid(source: Dataset) -> str:
    """The source's series; derived where the source has none, since an evidence list (type 1) can't go without."""
    return str(first_of(source, "SeriesInstanceUID") or derived_uid("lost series", source.StudyInstanceUID))


def device_uid(model: Model) -> str:
    """The UID of this program with these weights."""
    return derived_uid("device", model.name, model.version, model.digest)


def serial_number(model: Model) -> str:
    """Identifies a set of weights, 16 characters."""
    return model.digest[:16] or hashlib.sha256(f"{model.name}\0{model.version}".encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def program_version() -> str:
    """Version of the installed program."""
    try:
        return version("cxr-node")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0"


def software_versions(model: Model) -> str:
    """The network's version and the program's, at most 64 characters (VR LO)."""
    return f"{model.name} {model.version}; {MODEL_NAME} {program_version()}".replace("\\", "/")[:64]


def bare_reference(source: Dataset) -> Dataset:
    """The minimum source for highdicom: its UIDs, and empty patient and study attributes.

    highdicom refuses values that real files hold (a birth date of hex digits); `identify` fills in what can be used.
    """
    bare = Dataset()
    for keyword in _TYPE_2:
        setattr(bare, keyword, None)
    bare.StudyInstanceUID = source.StudyInstanceUID
    bare.SeriesInstanceUID = source_series_uid(source)
    bare.SOPInstanceUID = source.SOPInstanceUID
    bare.SOPClassUID = source.SOPClassUID
    return bare


def identify(
    ds: Dataset,
    source: Dataset,
    model: Model,
    kind: ResultKind,
    now: datetime,
    description: str = "",
    asked: Dataset | None = None,
) -> None:
    """Give an object its patient, study, equipment, dates and character set, in place.

    Args:
        ds: as highdicom composed it.
        source: the image that it is about; only its header is read.
        model: what made the findings.
        kind: of the object.
        now: when it was made; written in the source's time zone if it names one, otherwise in its own.
        description: of the series, if it isn't the one of its kind.
        asked: the object whose requests it refers to, if that isn't the source.
    """
    for keyword in _COPIED:
        _copy(source, ds, keyword)
    add_requests(ds, asked or source, is_document=kind in (ResultKind.REPORT, ResultKind.WITHDRAWAL))
    ds.Manufacturer = ds.ManufacturerModelName = MODEL_NAME
    ds.SoftwareVersions = software_versions(model)
    ds.DeviceSerialNumber = serial_number(model)
    ds.SeriesDescription = description or KINDS_OF_RESULT[kind].description
    made_at = _in_zone(now, ds.get("TimezoneOffsetFromUTC"))
    for keyword in ("InstanceCreationDate", "ContentDate", "SeriesDate", "DateOfSecondaryCapture", "PresentationCreationDate"):
        if keyword in ds or keyword == "SeriesDate":
            setattr(ds, keyword, f"{made_at:%Y%m%d}")
    for keyword in ("InstanceCreationTime", "ContentTime", "SeriesTime", "TimeOfSecondaryCapture", "PresentationCreationTime"):
        if keyword in ds or keyword == "SeriesTime":
            setattr(ds, keyword, f"{made_at:%H%M%S.%f}")
    ds.ContributingEquipmentSequence = _equipment(source, model, made_at)
    declared = value_of(source, "SpecificCharacterSet")
    names = [declared or ""] if isinstance(declared, str | None) else list(declared)
    if not _can_hold(ds, names):
        ds.SpecificCharacterSet = "ISO_IR 192"
    elif declared:
        ds.SpecificCharacterSet = declared
    elif "SpecificCharacterSet" in ds:
        del ds.SpecificCharacterSet


def to_composed(ds: Dataset, kind: ResultKind) -> ComposedObject:
    """An object as the bytes of a DICOM file (PS3.10)."""
    ds.file_meta.ImplementationClassUID = UID(derived_uid("implementation"))
    ds.file_meta.ImplementationVersionName = f"{MODEL_NAME.upper()} {program_version()}"[:16]
    meta = DicomBytesIO()
    write_file_meta_info(meta, ds.file_meta)
    content = b"".join((bytes(128), b"DICM", meta.getvalue(), encode(ds)))
    return ComposedObject(kind, str(ds.SOPInstanceUID), str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID), content)


def _can_hold(ds: Dataset, names: list[str]) -> bool:
    """Whether character sets (values of Specific Character Set) are known and every text of an object survives in them.

    pydicom reads ISO 2022 IR 58 but writes something else, so that each text is written and read back here.
    """
    if not all(name in python_encoding for name in names):
        return False
    texts: set[str] = set()
    for element in ds.iterall():
        if element.VR in TEXT_VRS and not str(element.value).isascii():
            apart = r"[\\^=]" if element.VR == "PN" else r"\\"  # each part of a name is encoded by itself
            parts = [part for value in as_list(element.value) for part in re.split(apart, str(value))]
            texts.update(part for part in parts if not part.isascii())
    encodings = convert_encodings(names)
    return all(_survives(text, encodings) for text in texts)


def _survives(text: str, encodings: list[str]) -> bool:
    if not all(any(_has(encoding, letter) for encoding in encodings) for letter in set(text) if not letter.isascii()):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom can't encode after all, it replaces with a warning
        return decode_bytes(encode_string(text, encodings), encodings, set()) == text


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _copy(source: Dataset, ds: Dataset, keyword: str) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = dictionary_VR(tag)
    try:
        value = _capped(vr, source[tag].value) if tag in source else None
    except UNREADABLE:
        value = None
    if vr != "SQ" and keyword not in _MATCHED and not isinstance(value, str | PersonName) and dictionary_VM(tag) == "1":
        value = next(iter(as_list(value)), value)
    if keyword == "TimezoneOffsetFromUTC" and _zone(value) is None:
        value = None  # it says of all times of the object when they were
    if value is not None and vr not in _VERBATIM:
        value = _valid(vr, keyword, value)
    if value is None and keyword not in _TYPE_2:
        if tag in ds:
            del ds[tag]
        return
    ds[tag] = DataElement(tag, vr, value, validation_mode=0)


def _capped(vr: str, value: Any) -> Any:
    """The value, or the beginning of a text that is too long for any; of a sequence a copy, or None if it holds too much.

    All that is copied goes into every result: a name of 20 MiB would be stored and sent as often.
    """
    if vr == "SQ":
        return copied_items(value, _LONGEST_SEQUENCE)
    if vr in TEXT_VRS and value is not None and len(str(value)) > _LONGEST_TEXT:
        return str(value if isinstance(value, str | PersonName) else next(iter(value), ""))[:_LONGEST_TEXT]
    return value


def _valid(vr: str, keyword: str, value: Any) -> Any:
    """The value in the form of its VR, or None: a wrong date is worse than none."""
    text = str(value)
    if vr == "DA" and re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", text):  # ACR-NEMA, PS3.5 table 6.2-1
        text = text.replace(".", "")
    if keyword == "PatientSex" and text not in ("M", "F", "O", ""):
        return None
    try:
        validate_value(vr, text, validation_mode=2)
        if vr == "DA" and text:
            datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return None
    return text


def _in_zone(now: datetime, offset: Any) -> datetime:
    """`now` at an offset such as +0100, or as it is."""
    zone = _zone(offset)
    return now if zone is None else now.astimezone(zone)


def _zone(offset: Any) -> timezone | None:
    """The time zone of an offset such as +0100 (PS3.3 C.12.1.1.8); None if there is none such."""
    match = re.fullmatch(r"([+-])(\d{2})([0-5]\d)", str(offset or "").strip())
    if match is None:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    if minutes > (12 if match[1] == "-" else 14) * 60:  # the largest that there are
        return None
    return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes))


def _equipment(source: Dataset, model: Model, made_at: datetime) -> list[Dataset]:
    """Contributing Equipment Sequence (PS3.3 C.12.1.1.5): what took the image, then what analysed it."""
    items: list[Dataset] = []
    # Skipped where the source says too little, or says it in a form that can't be written.
    with suppress(*UNREADABLE):
        acquisition = _acquisition(source)
        items += [acquisition] if acquisition is not None and _capped("SQ", [acquisition]) is not None else []
    items.append(
        ContributingEquipment(
            MODEL_NAME,
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name=MODEL_NAME,
            software_versions=software_versions(model),
            device_serial_number=serial_number(model),
            contribution_datetime=f"{made_at:%Y%m%d%H%M%S.%f%z}",
            contribution_description=f"Analysis of a chest radiograph by {model.name} {model.version}",
        )
    )
    return items


def _acquisition(source: Dataset) -> ContributingEquipment | None:
    """What took the image: as highdicom's `for_image_acquisition`, which first searches its tables for the class's pixel data,
    and refuses everything where one value is invalid. Here an invalid value is left out, and a long manufacturer's name is cut.
    """
    manufacturer = text(source, "Manufacturer")[:LONGEST_LO]
    if not manufacturer:
        return None
    said: dict[str, Any] = {argument: _in_its_form(source, keyword) for argument, keyword in _ACQUISITION.items()}
    return ContributingEquipment(
        manufacturer,
        codes.DCM.AcquisitionEquipment,
        **{argument: value for argument, value in said.items() if value},
        contribution_description="Acquisition equipment of the source image(s)",
    )


def _in_its_form(source: Dataset, keyword: str) -> str | list[str] | None:
    """The value of an attribute, all of them where several are allowed; None where none is valid."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    values = [str(value) for value in values_of(source, keyword) if is_valid(dictionary_VR(tag), str(value))]
    if not values:
        return None
    return values[0] if dictionary_VM(tag) == "1" or len(values) == 1 else values
