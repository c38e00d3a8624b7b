"""Composed objects judged by programs that nobody here wrote: dicom3tools' dciodvfy and dcmtk's dsrdump."""

from __future__ import annotations

import subprocess
from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset

from cxr_node.compose import compose_results
from cxr_node.records import LABELS, ResultKind
from cxr_node.source import read_dicom
from tests.composing import NOW, findings, radiograph, source

pytestmark = pytest.mark.peer

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

ODD_SOURCES = {
    "ordinary": {},
    "bare": {
        **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")),
        **dict.fromkeys(("AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "InstanceNumber", "Modality")),
        **dict.fromkeys(("SeriesInstanceUID", "PatientOrientation", "Manufacturer")),
    },
    "empty values": dict.fromkeys(("PatientName", "PatientID", "StudyDate", "AccessionNumber", "PatientOrientation"), ""),
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "Cyrillic": {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг^Анна"},
    "beyond its character set": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "山田^太郎"},
    "lossy": {"LossyImageCompression": "01", "LossyImageCompressionRatio": 12, "LossyImageCompressionMethod": "ISO_10918_1"},
    "Secondary Capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    "on its side": {"PatientOrientation": ["F", "R"], "TimezoneOffsetFromUTC": "+0545", "PatientAge": "003D"},
}


def written(folder, ds: Dataset, rad, **changes):
    """Paths of the overlay and the report."""
    paths = []
    for item in compose_results(ds, rad, findings(**changes), now=NOW):
        path = folder / f"{item.kind}.dcm"
        path.write_bytes(item.content)
        paths.append(path)
    return paths


def errors(program, path):
    """What dciodvfy calls an error; its exit status says nothing."""
    done = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "it said nothing at all, not even which object this is"
    return [line for line in lines if line.startswith("Error")]


def dump(program, path):
    """What dsrdump reads, and what it complains of; that it doesn't know every character set is its own affair."""
    done = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    complaints = [line for line in done.stderr.splitlines() if "Character" not in line]
    return done.stdout, complaints + [f"exit status {done.returncode}"] * bool(done.returncode)


@pytest.mark.parametrize("name", ODD_SOURCES)
def test_dciodvfy_finds_no_error_in_results_of_odd_sources(name, peer, tmp_path):
    for path in written(tmp_path, source(**ODD_SOURCES[name]), radiograph()):
        assert errors(peer("dciodvfy"), path) == []


@pytest.mark.parametrize("label", LABELS)
def test_dciodvfy_finds_no_error_whatever_is_found(label, peer, tmp_path):
    for path in written(tmp_path, source(), radiograph(), label=label):
        assert errors(peer("dciodvfy"), path) == []


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::UserWarning")  # what pydicom says of these files
@pytest.mark.parametrize("name", CHESTS)
def test_dciodvfy_finds_no_error_of_ours_in_results_of_real_sources(name, peer, data_folder, tmp_path):
    """An identifier that breaks its VR is copied as it is, and dciodvfy says of the source what it says of the result."""
    path = data_folder / "dicom" / "chest" / name
    read = read_dicom(path)
    of_the_source = {line for line in errors(peer("dciodvfy"), path) if "Accession Number" in line}
    summary = {"Error - Dicom dataset contains invalid data values for Value Representations"} if of_the_source else set()
    for result in written(tmp_path, read.ds, read.radiograph):
        assert set(errors(peer("dciodvfy"), result)) <= of_the_source | summary


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CHESTS)
def test_dsrdump_reads_reports_of_real_sources(name, peer, data_folder, tmp_path):
    read = read_dicom(data_folder / "dicom" / "chest" / name)
    _, report = written(tmp_path, read.ds, read.radiograph)
    text, complaints = dump(peer("dsrdump"), report)
    assert complaints == []
    assert "Comprehensive 3D SR Document" in text


@pytest.mark.parametrize("name", ODD_SOURCES)
def test_dsrdump_reads_what_the_report_says(name, peer, tmp_path):
    _, report = written(tmp_path, source(**ODD_SOURCES[name]), radiograph(), label="covid19_pneumonia")
    text, complaints = dump(peer("dsrdump"), report)
    assert complaints == []
    for part in (
        '(882784691000119100,SCT,"COVID-19 pneumonia")',
        '"Probability of COVID-19 pneumonia")="3.0" (%,UCUM,"percent")',
        '"Algorithm Name")="CXRNet"',
        "SCOORD:",
        "UNVERIFIED",
    ):
        assert part in text


def broken(path, change):
    ds = pydicom.dcmread(BytesIO(path.read_bytes()))
    change(ds)
    ds.save_as(path)
    return path


def without_conversion_type(ds):
    del ds.ConversionType


def without_relationship(ds):
    del ds.ContentSequence[0].RelationshipType


@pytest.mark.parametrize(
    ("kind", "change"), [(ResultKind.OVERLAY, without_conversion_type), (ResultKind.REPORT, without_relationship)]
)
def test_dciodvfy_does_find_a_missing_type_1_attribute(kind, change, peer, tmp_path):
    paths = dict(zip((ResultKind.OVERLAY, ResultKind.REPORT), written(tmp_path, source(), radiograph()), strict=True))
    assert errors(peer("dciodvfy"), broken(paths[kind], change)) != []


def test_dsrdump_does_find_a_broken_tree(peer, tmp_path):
    _, report = written(tmp_path, source(), radiograph())
    _, complaints = dump(peer("dsrdump"), broken(report, without_relationship))
    assert complaints != []


@pytest.mark.data
def test_every_real_source_was_tried(data_folder):
    assert {path.name for path in (data_folder / "dicom" / "chest").iterdir()} == set(CHESTS)
