"""Every kind of result, from every kind of source, judged by programs that nobody here wrote, and back from an archive.

A validator's complaint that is not ours to mend is named in docs/conformance.md and nowhere else let through.

Over 300 lines: every judge gets the same objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid

from cxr_node.compose import compose_not_analysed, compose_rejection_note, compose_results
from cxr_node.compose.deidentify import deidentified
from cxr_node.deliver.report_class import report_as
from cxr_node.deliver.request import Peer, StoreRequest
from cxr_node.demo.modality import store_files
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.render import render
from cxr_node.prepare.source import read_dicom
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS, LABELS, REPORT_CLASSES, ComposedObject, Radiograph, ResultKind
from tests import validators
from tests.compose_inputs import NOW, findings, radiograph, source
from tests.images import lut_item
from tests.orthanc import Orthanc
from tests.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # what pydicom says of odd sources
    pytest.mark.xdist_group("validators"),  # PixelMed reads its rules once a process, in ten seconds of processor time
]

CHESTS = (
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm",
    "1.3.6.1.4.1.11129.5.5.110503645592756492463169821050252582267888.dcm",
    "966_fixed.dcm",
    "Fake_MONOHR1.dcm",
    "RG1_J2KI.dcm",
    "RG1_JLSN.dcm",
    "fodicom-CR-MONO1-10-chest-no-file-meta",
    "gdcm-CR-MONO1-10-chest.dcm",
)

WRAPPED: dict[str, dict[str, Any]] = {
    "hannover-5c033b2dac0c.jpg": {"modality": "DX", "photometric": "MONOCHROME1", "bits_stored": 14},
    "ieee8023-214afaeafbcc.jpg": {"modality": "CR", "photometric": "MONOCHROME1", "bits_stored": 10},
    "kermany-18bb0e2f65c4.jpg": {"modality": "CR", "photometric": "MONOCHROME2", "bits_stored": 8},
    "kermany-c194214a9485.jpg": {"modality": "DX", "photometric": "MONOCHROME2", "bits_stored": 16},
}
"""Radiographs of full resolution, and what they are wrapped as."""

_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
_LAID_OUT = {"transposed": True, "down": True, "across": True}

ODD: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "without type 2 attributes": {
        **dict.fromkeys(_EMPTY),
        **dict.fromkeys(("AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "InstanceNumber", "Modality")),
        **dict.fromkeys(("SeriesInstanceUID", "PatientOrientation", "Manufacturer")),
    },
    "empty type 2 attributes": dict.fromkeys((*_EMPTY, "AccessionNumber", "ReferringPhysicianName", "PatientOrientation"), ""),
    "German": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müßig^Jörg", "StudyDescription": "Röntgen Thorax"},
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "Cyrillic": {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг^Анна"},
    "beyond its character set": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "山田^太郎"},
    "lossy": {"LossyImageCompression": "01", "LossyImageCompressionRatio": 12, "LossyImageCompressionMethod": "ISO_10918_1"},
    "Secondary Capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    "no view, spacing at the detector": {"ImagerPixelSpacing": [0.143, 0.143], "BodyPartExamined": "CHEST"},
    "non-square pixels": {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.2, 0.1]},
    "aspect ratio alone": {"PixelAspectRatio": [4, 3]},
    "several values where one is allowed": {
        keyword: ["A", "B"] for keyword in ("StudyID", "StudyDescription", "Manufacturer", "StationName", "InstitutionName")
    },
    "several values of what archives match by": {"PatientID": ["1", "2"], "AccessionNumber": ["A", "B"]},
    "laterality": {"Laterality": "", "ImageLaterality": "U", "ViewPosition": "AP"},
    "on its side": {"PatientOrientation": ["F", "R"], "TimezoneOffsetFromUTC": "+0545", "PatientAge": "003D"},
}
"""Legal headers as they occur, by what is odd about them."""

TABLES: dict[str, dict[str, Any]] = {
    "Modality LUT of 8 bits": {"ModalityLUTSequence": [lut_item(0, 8, [entry // 16 for entry in range(4096)])]},
    "Modality LUT of 12 bits": {
        "ModalityLUTSequence": [lut_item(0, 12, list(range(4096)))],
        "VOILUTSequence": [lut_item(0, 12, list(range(4096)))],
    },
    "VOI LUT of 8 bits": {"VOILUTSequence": [lut_item(0, 8, [entry // 16 for entry in range(4096)])]},
}
"""LUTs of sources whose pixels are 0 to 4095."""

SOURCES = [
    *(f"odd: {name}" for name in ODD),
    *(f"tables: {name}" for name in TABLES),
    *(f"deidentified: {name}" for name in ("ordinary", "without type 2 attributes", "Japanese", "on its side")),
    *(f"finding: {label}" for label in LABELS),
    *(pytest.param(f"real: {name}", marks=pytest.mark.data, id=f"real: {name[-24:]}") for name in CHESTS),
    *(pytest.param(f"wrapped: {name}", marks=pytest.mark.data) for name in WRAPPED),
]


@dataclass(frozen=True)
class Specimen:
    """A source and all that is made of it."""

    ds: Dataset
    results: list[ComposedObject]

    def of(self, kind: ResultKind) -> ComposedObject:
        return next(item for item in self.results if item.kind == kind)


def compose(ds: Dataset, rad: Radiograph, **changes: Any) -> Specimen:
    return Specimen(ds, compose_results(ds, rad, findings(**changes), kinds=tuple(ResultKind), now=NOW))


@pytest.fixture(scope="module")
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """A source with its results, which the tests read and don't change: each source is composed once for all of them."""
    kind, _, name = request.param.partition(": ")
    own = {f"{level}InstanceUID": generate_uid(entropy_srcs=[name, level]) for level in ("Study", "Series", "SOP")}
    if kind in ("odd", "deidentified"):
        ds = source(**own | ODD[name])
        return compose(ds if kind == "odd" else deidentified(ds), radiograph(**_LAID_OUT if name == "on its side" else {}))
    if kind == "tables":
        ds = source(**own | TABLES[name])
        for item in ds.get("ModalityLUTSequence", ()):
            item.ModalityLUTType = "OD"
        stored = (np.arange(256 * 256).reshape(256, 256) % 4096).astype(np.uint16)
        return compose(ds, replace(radiograph(), greys=render(ds, stored)[1]))
    if kind == "finding":
        return compose(source(**own), radiograph(), label=name)
    data_folder = request.getfixturevalue("data_folder")
    if kind == "real":
        read = read_dicom(data_folder / "dicom" / "chest" / name)
        return compose(read.ds, read.radiograph)
    wrapped = radiograph_from_image(data_folder / "fullres" / name, uid_seed=name, **WRAPPED[name])
    return compose(wrapped, prepare_dataset(wrapped))


_FOR_A_DICOMDIR = "Warning - Missing attribute or value that would be needed to build DICOMDIR - "
_PRIVATE_SCHEME = "Warning - Unrecognized defined term <99CXRNODE> for value 1 of attribute <Coding Scheme Designator>"


def is_explained(complaint: str, ds: Dataset) -> bool:
    """Whether docs/conformance.md A.11 explains it, for a result of this source."""
    if complaint == _PRIVATE_SCHEME:
        return True
    if complaint.startswith(_FOR_A_DICOMDIR):
        return not ds.get(complaint.removeprefix(_FOR_A_DICOMDIR).replace(" ", ""))
    if "Bad attribute Value Multiplicity" in complaint or "VM != 1" in complaint:
        several = [name for name in ("PatientID", "AccessionNumber") if isinstance(ds.get(name), MultiValue)]
        return any(f"Element=<{name}>" in complaint or f"W: {name} " in complaint for name in several)
    if complaint.endswith("Retired Person Name form"):
        names = [str(ds.get(keyword) or "") for keyword in ("PatientName", "ReferringPhysicianName")]
        return any(name and "^" not in name and f"<{name}>" in complaint for name in names)
    if len(str(ds.get("AccessionNumber") or "")) <= 16:
        return False
    return "Accession" in complaint or complaint.endswith("invalid data values for Value Representations")


@pytest.mark.parametrize("specimen", SOURCES, indirect=True)
def test_no_validator_finds_anything_wrong(specimen, tmp_path):
    assert {item.kind for item in specimen.results} == set(ANALYSIS_KINDS)
    ours = {}
    for item in specimen.results:
        for validator, complaints in validators.verdicts(item, tmp_path).items():
            if remaining := [line for line in complaints if not is_explained(line, specimen.ds)]:
                ours[f"{validator} of the {item.kind}"] = remaining
    assert ours == {}


def is_the_reason(complaint: str) -> bool:
    """Whether it is PixelMed's of the item that tells why (docs/conformance.md A.11: the templates are extensible)."""
    return '(REASON,99CXRNODE,"Reason' in complaint and complaint.endswith("Content Item not in template")


@pytest.mark.parametrize("name", ["ordinary", "without type 2 attributes", "Japanese", "Cyrillic", "on its side"])
def test_no_validator_finds_anything_wrong_with_a_notice_that_an_image_was_not_analysed(name, tmp_path):
    ds = source(**ODD[name])
    notices = compose_not_analysed(
        *(ds, ["It shows a hip, not a chest."], findings().model),
        **{"kinds": (ResultKind.OVERLAY, ResultKind.REPORT), "now": NOW},
    )
    picture, report = (
        [line for lines in validators.verdicts(item, tmp_path).values() for line in lines if not is_explained(line, ds)]
        for item in notices
    )
    assert picture == []
    assert [is_the_reason(warning) for warning in report] == [True]


@pytest.mark.parametrize(
    ("complaint", "attributes"),
    [
        (f"{_FOR_A_DICOMDIR}Study ID", {}),
        (_PRIVATE_SCHEME.replace("99CXRNODE", "99OTHER"), {}),
        ("Warning - Value dubious for this VR - PN Patient's Name  PN [1] = <Doe> - Retired Person Name form", {}),
        ("Error - Value invalid for this VR - (0x0008,0x0050) SH Accession Number", {}),
        ("Error - Missing attribute Type 1 Required Element=<Rows> Module=<ImagePixel>", {"AccessionNumber": "x" * 17}),
    ],
)
def test_nothing_else_is_taken_for_explained(complaint, attributes):
    assert not is_explained(complaint, source(**attributes))


@pytest.mark.parametrize("specimen", SOURCES, indirect=True)
def test_orthanc_gives_every_result_back_bit_for_bit(specimen, archive, tmp_path):
    for instance in archive.get("/instances"):  # some real sources share their UIDs, and an archive keeps what came first
        archive.delete(instance)
    requests = []
    for item in specimen.results:
        path = tmp_path / f"{item.kind}.dcm"
        path.write_bytes(item.content)
        requests.append(StoreRequest(path, item.sop_class_uid, item.transfer_syntax_uid, item.sop_instance_uid))
    outcomes = store_files(requests, Peer("127.0.0.1", archive.dicom_port, archive.ae_title, "CXRNODE", PATIENCE_S))
    assert [outcome.error for outcome in outcomes] == [""] * len(requests)
    for item in specimen.results:
        sent, kept = (data_set(content) for content in (item.content, archive.file_of(item.sop_instance_uid)))
        assert kept == sent


@pytest.fixture(scope="module")
def archive(peer, tmp_path_factory):
    with Orthanc(peer("Orthanc"), tmp_path_factory.mktemp("archive")) as orthanc:
        yield orthanc


def data_set(content: bytes) -> bytes:
    """The bytes of a file behind its meta information."""
    ds = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=[])
    meta_length = 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
    return content[meta_length:]


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
def test_dsrdump_reads_what_the_report_says(specimen, tmp_path):
    path = tmp_path / "report.dcm"
    path.write_bytes(specimen.of(ResultKind.REPORT).content)
    text = validators.output("dsrdump", path)
    for part in ("Comprehensive 3D SR Document", '(53084003,SCT,"Bacterial pneumonia")', "87.34", "SCOORD:", "UNVERIFIED"):
        assert part in text


def plainer(report: ComposedObject, sop_class_uid: str) -> ComposedObject:
    """The report as it goes to a destination that takes this class and none that is richer."""
    ds = report_as(pydicom.dcmread(BytesIO(report.content)), sop_class_uid)
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return ComposedObject(report.kind, ds.SOPInstanceUID, sop_class_uid, report.transfer_syntax_uid, buffer.getvalue())


@pytest.mark.parametrize("specimen", SOURCES, indirect=True)
def test_no_validator_finds_anything_wrong_with_the_report_as_a_plainer_class(specimen, tmp_path):
    complaints = {}
    for name, sop_class_uid in list(REPORT_CLASSES.items())[1:]:
        found = validators.verdicts(plainer(specimen.of(ResultKind.REPORT), sop_class_uid), tmp_path)
        left = {validator: [c for c in said if not is_explained(c, specimen.ds)] for validator, said in found.items()}
        complaints |= {(name, validator): said for validator, said in left.items() if said}
    assert complaints == {}


@pytest.mark.parametrize("name", ["basic_text", "enhanced", "comprehensive"])
def test_no_validator_finds_anything_wrong_with_a_notice_as_a_plainer_class(name, tmp_path):
    ds = source()
    [notice] = compose_not_analysed(ds, ["It is a lateral view."], findings().model, now=NOW)
    found = validators.verdicts(plainer(notice, REPORT_CLASSES[name]), tmp_path)
    left = [c for said in found.values() for c in said if not is_explained(c, ds)]
    assert [is_the_reason(complaint) for complaint in left] == ([] if name == "basic_text" else [True])


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
@pytest.mark.parametrize("validator", [validators.dciodvfy, validators.dsrdump, validators.pixelmed])
@pytest.mark.parametrize("name", ["basic_text", "enhanced", "comprehensive"])
def test_each_validator_does_find_what_is_broken_in_a_plainer_class(name, validator, specimen, tmp_path):
    report = plainer(specimen.of(ResultKind.REPORT), REPORT_CLASSES[name])
    path = tmp_path / "broken.dcm"
    spoil = without_observer if validator is validators.pixelmed else without_relationship
    path.write_bytes(changed(spoil)(report.content))
    assert [complaint for complaint in validator(path) if complaint != _PRIVATE_SCHEME] != []


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
@pytest.mark.parametrize("validator", [validators.dciodvfy, validators.dsrdump])
def test_the_report_as_it_is_under_the_name_of_a_plain_class_is_found_out(validator, specimen, tmp_path):
    """The negative control of the content tree: numbers and regions are none of Basic Text SR's."""

    def rename(ds: Dataset) -> None:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = REPORT_CLASSES["basic_text"]

    path = tmp_path / "renamed.dcm"
    path.write_bytes(changed(rename)(specimen.of(ResultKind.REPORT).content))
    assert [complaint for complaint in validator(path) if complaint != _PRIVATE_SCHEME] != []


def rejection_note(specimen: Specimen) -> ComposedObject:
    made = [pydicom.dcmread(BytesIO(item.content), stop_before_pixels=True) for item in specimen.results]
    return compose_rejection_note(made, NOW)


@pytest.mark.parametrize("specimen", [f"odd: {name}" for name in ODD], indirect=True)
def test_no_validator_finds_anything_wrong_with_a_rejection_note(specimen, tmp_path):
    found = validators.verdicts(rejection_note(specimen), tmp_path)
    left = {validator: [c for c in said if not is_explained(c, specimen.ds)] for validator, said in found.items()}
    assert {validator: said for validator, said in left.items() if said} == {}


def without_title(ds: Dataset) -> None:
    del ds.ConceptNameCodeSequence


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
@pytest.mark.parametrize(
    ("validator", "spoil"),
    [
        (validators.dciodvfy, without_title),
        (validators.dciodvfy, lambda ds: delattr(ds, "CurrentRequestedProcedureEvidenceSequence")),
        (validators.dsrdump, lambda ds: delattr(ds.ContentSequence[0], "RelationshipType")),
        (validators.pixelmed, lambda ds: setattr(ds.ConceptNameCodeSequence[0], "CodeValue", "113999")),
    ],
)
def test_each_validator_does_find_what_is_broken_in_a_rejection_note(validator, spoil, specimen, tmp_path):
    path = tmp_path / "broken.dcm"
    path.write_bytes(changed(spoil)(rejection_note(specimen).content))
    assert validator(path) != []


def without_rows(ds: Dataset) -> None:
    del ds.Rows


def without_relationship(ds: Dataset) -> None:
    del ds.ContentSequence[0].RelationshipType


def without_observer(ds: Dataset) -> None:
    ds.ContentSequence = [item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue != "121012"]


def with_something_foreign(ds: Dataset) -> None:
    ds.ContentSequence[0].ConceptNameCodeSequence[0].CodeValue = "113876"


def without_displayed_area(ds: Dataset) -> None:
    del ds.DisplayedAreaSelectionSequence


def cut_off(content: bytes) -> bytes:
    return content[:-100]


def changed(change: Callable[[Dataset], None]) -> Callable[[bytes], bytes]:
    def write(content: bytes) -> bytes:
        ds = pydicom.dcmread(BytesIO(content))
        change(ds)
        buffer = BytesIO()
        ds.save_as(buffer)
        return buffer.getvalue()

    return write


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
@pytest.mark.parametrize(
    ("validator", "kind", "spoil"),
    [
        (validators.dciodvfy, ResultKind.OVERLAY, changed(without_rows)),
        (validators.dciodvfy, ResultKind.LUNGS, changed(without_rows)),
        (validators.dciodvfy, ResultKind.HEATMAP, changed(without_rows)),
        (validators.dciodvfy, ResultKind.HEATVALUES, changed(without_rows)),
        (validators.dciodvfy, ResultKind.PRESENTATION, changed(without_displayed_area)),
        (validators.dciodvfy, ResultKind.REPORT, changed(without_relationship)),
        *((validators.dcmdump, kind, cut_off) for kind in ANALYSIS_KINDS),
        (validators.dsrdump, ResultKind.REPORT, changed(without_relationship)),
        (validators.pixelmed, ResultKind.REPORT, changed(without_observer)),
        (validators.pixelmed, ResultKind.REPORT, changed(with_something_foreign)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_each_validator_does_find_what_is_broken(validator, kind, spoil, specimen, tmp_path):
    path = tmp_path / "broken.dcm"
    path.write_bytes(spoil(specimen.of(kind).content))
    assert validator(path) != []


@pytest.mark.parametrize("specimen", ["odd: ordinary"], indirect=True)
def test_the_comparison_does_find_a_changed_pixel(specimen):
    overlay = pydicom.dcmread(BytesIO(specimen.of(ResultKind.OVERLAY).content))
    pixels = np.frombuffer(overlay.PixelData, np.uint8).copy()
    pixels[len(pixels) // 2] ^= 1
    overlay.PixelData = pixels.tobytes()
    buffer = BytesIO()
    overlay.save_as(buffer)
    assert data_set(buffer.getvalue()) != data_set(specimen.of(ResultKind.OVERLAY).content)


@pytest.mark.data
def test_every_real_source_is_among_them(data_folder):
    assert {path.name for path in (data_folder / "dicom" / "chest").iterdir()} == set(CHESTS)
