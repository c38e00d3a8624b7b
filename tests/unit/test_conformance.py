"""docs/conformance.md says what the code does: its tables are read and compared."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files
from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_description, keyword_for_tag, tag_for_keyword
from pydicom.uid import UID

from cxr_node.commitment.datasets import COMMITMENT, PUSH_MODEL
from cxr_node.compose import compose_results, identity
from cxr_node.deliver.request import EXPECTED, StoreOutcome
from cxr_node.receive.intake import admission
from cxr_node.records import ANALYSIS_KINDS, Greys, ResultKind
from cxr_node.settings import OverlaySettings
from tests.compose_inputs import NOW, findings, radiograph, source
from tests.conftest import REPOSITORY

VERIFICATION = "1.2.840.10008.1.1"
STATUSES = {value for name, value in vars(admission).items() if name.isupper() and isinstance(value, int)}


def table(first_column: str) -> list[list[str]]:
    """The rows of the one table whose first column has this title."""
    lines = (REPOSITORY / "docs" / "conformance.md").read_text("utf-8").splitlines()
    [start] = [number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_names_every_sop_class_that_is_accepted():
    classes = {VERIFICATION, PUSH_MODEL, *admission.RADIOGRAPHS, *admission.RESULTS}
    assert sorted(row[1] for row in table("SOP class accepted")) == sorted(classes)


def test_names_the_transfer_syntaxes_that_are_accepted_in_their_order():
    assert [row[1] for row in table("Transfer syntax accepted")] == list(admission.TRANSFER_SYNTAXES)


def test_names_what_is_proposed_for_each_kind_of_result():
    rows = table("SOP class proposed")
    kinds = {row[5]: (row[1], row[4]) for row in rows if row[5]}
    assert kinds == {str(kind): offer for kind, offer in EXPECTED.items()}
    assert (COMMITMENT[0], COMMITMENT[1]) in {(row[1], row[4]) for row in rows}
    for row in rows:
        assert UID(row[1]).name.startswith(row[0])
        assert UID(row[4]).name.startswith(row[3])


def test_names_the_compressions_of_the_overlay():
    named = {row[0]: row[1] for row in table("`overlay.compression`")}
    known = OverlaySettings.model_fields["compression"].annotation.__args__
    assert named == {name: OverlaySettings(compression=name).transfer_syntax_uid for name in known}


def test_names_every_status_that_is_answered():
    assert {int(row[0], 16) for row in table("Status of C-STORE responses")} == STATUSES


def test_names_the_statuses_under_which_an_object_counts_as_sent():
    rows = table("Status of C-STORE responses received")
    named = set()
    for row in rows:
        if row[1].startswith("sent"):
            first, _, last = row[0].partition(" to ")
            named |= set(range(int(first, 16), int(last or first, 16) + 1))
    assert named == {status for status in range(0x10000) if StoreOutcome(status).stored}


def test_names_the_attributes_that_are_copied():
    rows = {row[0]: row[1] for row in table("Attribute copied")}
    assert list(rows) == [dictionary_description(tag_for_keyword(keyword)) for keyword in identity._COPIED]
    assert {name for name, kind in rows.items() if kind == "2"} == {
        dictionary_description(tag_for_keyword(keyword)) for keyword in identity._TYPE_2
    }


def test_names_every_private_code():
    codes = tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))
    private = {
        (entry["value"], entry["meaning"])
        for group in codes.values()
        for entry in group.values()
        if isinstance(entry, dict) and entry["scheme"] == codes["scheme"]["designator"]
    }
    assert {(row[0], row[1]) for row in table("Private code")} == private


def composed(ds: Dataset) -> dict[str, Dataset]:
    predecessor = Dataset()
    for name, uid in (("Study", ds.StudyInstanceUID), ("Series", "1.2.3.4"), ("SOP", "1.2.3.5")):
        setattr(predecessor, f"{name}InstanceUID", uid)
    predecessor.SOPClassUID = EXPECTED[ResultKind.REPORT][0]
    shown = replace(radiograph(), greys=Greys(window=(100.0, 200.0)))
    items = compose_results(ds, shown, findings(), kinds=tuple(ResultKind), predecessor=predecessor, now=NOW)
    return {str(item.kind): pydicom.dcmread(BytesIO(item.content)) for item in items}


RICH = {
    **{"SpecificCharacterSet": "ISO_IR 100", "PixelSpacing": [0.1, 0.1], "RescaleSlope": "1", "RescaleIntercept": "0"},
    **{"WindowCenter": "100", "WindowWidth": "200", "PhotometricInterpretation": "MONOCHROME2"},
    **{"LossyImageCompression": "01", "LossyImageCompressionRatio": "10", "LossyImageCompressionMethod": "ISO_10918_1"},
}
"""What a source may say for a result to have every attribute that it can have."""


@pytest.mark.parametrize("kind", [str(kind) for kind in ANALYSIS_KINDS])
def test_names_every_attribute_of_a_result(kind):
    named = {row[0]: row[1] for row in (*table("Attribute of every result"), *table(f"Attribute of `{kind}`"))}
    ds = composed(source(**RICH))[kind]
    of_its_own = {element.tag for element in ds} - {tag_for_keyword(keyword) for keyword in identity._COPIED}
    assert named == {dictionary_description(tag): f"({tag.group:04X},{tag.element:04X})" for tag in of_its_own}


@pytest.mark.parametrize("kind", [str(kind) for kind in ANALYSIS_KINDS])
def test_states_the_numbers_of_a_result(kind):
    ds = composed(source(**RICH))[kind]
    rows = [row for row in table(f"Attribute of `{kind}`") if row[2].isdecimal()]
    assert {row[0]: row[2] for row in rows} == {row[0]: str(ds[row[1].strip("()").replace(",", "")].value) for row in rows}


def test_a_result_of_a_bare_source_has_no_other_attributes():
    rich, bare = composed(source(**RICH)), composed(source(SeriesNumber=None, PatientOrientation=None, Manufacturer=None))
    for kind, ds in bare.items():
        assert {keyword_for_tag(element.tag) for element in ds} <= {keyword_for_tag(element.tag) for element in rich[kind]}
