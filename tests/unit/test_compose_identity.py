"""Result objects: whose they are, what their UIDs derive from, and that composing twice makes the same bytes.

Over 300 lines: one set of identities, looked at from all sides.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import replace
from datetime import timedelta
from io import BytesIO

import pydicom
import pytest
from highdicom import ContributingEquipment
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID
from pydicom.valuerep import PersonName

from cxr_node.compose import compose_not_analysed, compose_results
from cxr_node.compose.encode import encode
from cxr_node.dicom.uids import derived_uid
from cxr_node.records import ANALYSIS_KINDS, MODEL_NAME, ResultKind
from tests.compose_inputs import MODEL, NOW, SMALL, findings, radiograph, source

OVERLAY, REPORT = ResultKind.OVERLAY, ResultKind.REPORT
EVERY_KIND = pytest.mark.parametrize("kind", list(ANALYSIS_KINDS))


def compose(ds=None, *, now=NOW, model=MODEL, **options):
    ds = source() if ds is None else ds
    return compose_results(ds, radiograph(), findings(model=model), now=now, overlay=SMALL, **options)


def read(ds=None, kind=OVERLAY, **options):
    """The object of a kind, read back from its bytes."""
    (item,) = compose(ds, kinds=[kind], **options)
    return pydicom.dcmread(BytesIO(item.content))


def as_received(ds):
    """A data set as it comes from a file: values are bytes until they are asked for."""
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer, force=True)


def series_of(ds=None, kind=OVERLAY, **options):
    return read(ds, kind, **options).SeriesInstanceUID


def test_a_derived_uid_is_a_uuid_of_version_8():
    uid = derived_uid("instance", "1.2.3")
    assert UID(uid).is_valid
    assert len(uid) <= 64
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert number.version == 8
    assert number.variant == uuid.RFC_4122


def test_a_derived_uid_keeps_its_parts_apart():
    assert derived_uid("1.2", "3") != derived_uid("1.23", "") != derived_uid("1", ".23")


def test_a_derived_uid_never_changes_between_releases():
    """Results already in an archive are replaced, not doubled, when an image is analysed again by the same model."""
    assert derived_uid("instance", "1.2.3") == "2.25.196447109196310386926576323914091864826"


def test_the_overlay_comes_before_the_report():
    assert [item.kind for item in compose()] == [OVERLAY, REPORT]


@pytest.mark.parametrize("kinds", [(OVERLAY,), (REPORT,), ()])
def test_makes_only_the_kinds_asked_for(kinds):
    assert [item.kind for item in compose(kinds=kinds)] == list(kinds)


def test_composing_twice_gives_the_same_bytes():
    assert compose() == compose()


def test_another_date_makes_another_instance_and_changes_nothing_else():
    for first, second in zip(compose(), compose(now=NOW + timedelta(days=1, hours=1)), strict=True):
        one, other = (pydicom.dcmread(BytesIO(item.content)) for item in (first, second))
        assert one.SOPInstanceUID != other.SOPInstanceUID
        changed = {element.keyword for element in one if element != other.get(element.tag)}
        told_by_uid = {"SOPInstanceUID", "ContentSequence", "CurrentRequestedProcedureEvidenceSequence"}
        rest = changed - told_by_uid - {"ContributingEquipmentSequence"}
        assert all("Date" in word or "Time" in word for word in rest)


def test_what_is_announced_is_what_the_file_holds():
    for item in compose():
        ds = pydicom.dcmread(BytesIO(item.content))
        assert item.content[128:132] == b"DICM"
        assert (item.sop_instance_uid, item.sop_class_uid) == (ds.SOPInstanceUID, ds.SOPClassUID)
        assert item.sop_instance_uid == ds.file_meta.MediaStorageSOPInstanceUID
        assert item.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_uids_differ_by_kind_model_content_and_source():
    variants = [
        compose(),
        compose(model=replace(MODEL, version="1.2.1")),
        compose(model=replace(MODEL, digest="f" * 64)),
        compose(model=replace(MODEL, name="Other")),
        compose(content_digest="1"),
        compose(content_digest="2"),
        compose(source(SOPInstanceUID="1.2.826.0.1.3680043.8.498.1.4")),
    ]
    uids = [item.sop_instance_uid for variant in variants for item in variant]
    assert len(set(uids)) == 2 * len(variants)


@EVERY_KIND
def test_stays_in_the_study_in_a_new_series(kind):
    ds = read(kind=kind)
    assert ds.StudyInstanceUID == source().StudyInstanceUID
    assert ds.SeriesInstanceUID != source().SeriesInstanceUID


def test_images_of_one_series_share_the_series_of_their_overlays():
    second = source(SOPInstanceUID="1.2.826.0.1.3680043.8.498.1.4", InstanceNumber=6)
    assert series_of(second) == series_of()
    assert (read().InstanceNumber, read(second).InstanceNumber) == (5, 6)


def test_series_differ_by_kind_source_series_model_and_corrected_patient():
    uids = [
        series_of(),
        series_of(kind=REPORT),
        series_of(source(SeriesInstanceUID="1.2.826.0.1.3680043.8.498.9")),
        series_of(model=replace(MODEL, version="1.2.1")),
        series_of(source(PatientID="T-2")),
        series_of(source(StudyDescription="corrected")),
    ]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({}, (91002, 5)),
        ({"SeriesNumber": None, "InstanceNumber": None}, (91000, 1)),
        ({"SeriesNumber": -4, "InstanceNumber": 0}, (91000, 1)),
        ({"SeriesNumber": 12345}, (9112345, 5)),
        ({"SeriesNumber": 2**31 - 1, "InstanceNumber": 2**31 - 1}, (91000, 2**31 - 1)),
    ],
)
def test_numbers_follow_the_source_as_far_as_they_can(given, numbers):
    ds = read(source(**given))
    assert (ds.SeriesNumber, ds.InstanceNumber) == numbers


@EVERY_KIND
def test_says_what_made_it(kind):
    ds = read(kind=kind)
    assert ds.Manufacturer == ds.ManufacturerModelName == MODEL_NAME
    assert isinstance(ds.SoftwareVersions, str)
    assert "CXRNet 1.2.0" in ds.SoftwareVersions
    assert ds.DeviceSerialNumber == MODEL.digest[:16]
    assert ds.SeriesDescription.endswith(": AI result, not for primary diagnosis")
    assert len(ds.SeriesDescription) <= 64


def test_says_what_it_is_in_what_a_narrow_list_of_series_shows():
    notices = compose_not_analysed(source(), ["A reason."], MODEL, kinds=tuple(ResultKind), now=NOW)
    not_analysed = {pydicom.dcmread(BytesIO(item.content)).SeriesDescription for item in notices}
    shown = {str(kind): read(kind=kind).SeriesDescription[:25] for kind in ANALYSIS_KINDS}
    assert {kind: text.partition(":")[0] for kind, text in shown.items()} == {
        **{"overlay": "Overlay", "report": "Report", "lungs": "Lungs", "heatmap": "Heat map"},
        **{"heatvalues": "Heat values", "presentation": "Presentation state"},
    }
    assert all(": AI" in text for text in shown.values())
    assert {text[:25].partition(":")[0] for text in not_analysed} == {"Not analysed"}


def test_what_took_the_image_is_said_as_highdicom_says_it():
    said = {
        **{"ManufacturerModelName": "DR 1", "SoftwareVersions": ["1", "2"], "DeviceSerialNumber": "9", "StationName": "DR1"},
        **{"InstitutionName": "Clinic", "InstitutionalDepartmentName": "Radiology", "InstitutionAddress": "Street 1"},
        **{"AcquisitionDateTime": "20260304150102"},
    }
    expected = ContributingEquipment.for_image_acquisition(source(**said))
    assert len(expected) == 3 + len(said)
    given = read(source(**said)).ContributingEquipmentSequence[0]
    assert encode(given) == encode(expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StationName", "DR1 of the second floor"),
        ("ManufacturerModelName", "DR " + "1" * 64),
        ("InstitutionName", "Clinic" * 20),
        ("InstitutionAddress", "Street 1 " * 200),
        ("AcquisitionDateTime", "yesterday"),
        ("AcquisitionDateTime", "20261399"),
    ],
)
def test_an_invalid_value_costs_what_took_the_image_nothing_but_itself(keyword, value):
    said = {
        **{"ManufacturerModelName": "DR 1", "SoftwareVersions": ["1", "2"], "DeviceSerialNumber": "9", "StationName": "DR1"},
        **{"InstitutionName": "Clinic", "InstitutionAddress": "Street 1", "AcquisitionDateTime": "20260304150102"},
    }
    ds = source(**said)
    whole = read(ds).ContributingEquipmentSequence[0]
    ds[keyword] = pydicom.DataElement(keyword, ds[keyword].VR, value, validation_mode=0)
    given = read(ds).ContributingEquipmentSequence[0]
    lost = "ContributionDateTime" if keyword == "AcquisitionDateTime" else keyword
    assert lost in whole
    del whole[lost]
    assert given == whole


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_software_versions_the_valid_ones_are_said():
    given = read(source(SoftwareVersions=["1" * 80, "2"])).ContributingEquipmentSequence[0]
    assert given.SoftwareVersions == "2"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_long_name_of_a_maker_is_cut():
    assert read(source(Manufacturer="M" * 70)).ContributingEquipmentSequence[0].Manufacturer == "M" * 64


@EVERY_KIND
def test_names_the_modality_and_the_algorithm_as_contributing_equipment(kind):
    modality, algorithm = read(kind=kind).ContributingEquipmentSequence
    assert modality.Manufacturer == "Detector Works"
    assert modality.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert algorithm.ManufacturerModelName == MODEL_NAME
    assert algorithm.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert "CXRNet 1.2.0" in algorithm.ContributionDescription


def test_a_source_of_an_unknown_maker_leaves_the_algorithm_alone():
    assert len(read(source(Manufacturer=None)).ContributingEquipmentSequence) == 1


@EVERY_KIND
def test_copies_patient_and_study(kind):
    given = source(PatientAge="066Y", IssuerOfPatientID="Hospital", StudyDescription="Thorax")
    ds = read(given, kind)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "IssuerOfPatientID"):
        assert ds[keyword].value == given[keyword].value
    for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"):
        assert ds[keyword].value == given[keyword].value


def test_copies_sequences_without_sharing_them():
    item = pydicom.Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = "1.2.3", "ISO"
    given = source(IssuerOfPatientIDQualifiersSequence=[item])
    assert read(given).IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"


@EVERY_KIND
def test_private_attributes_in_sequences_stay_behind(kind):
    item, below = pydicom.Dataset(), pydicom.Dataset()
    for one in (item, below):
        one.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "private")
    below.UniversalEntityID, below.UniversalEntityIDType = "1.2.3", "ISO"
    item.PatientID, item.IssuerOfPatientIDQualifiersSequence = "T-2", [below]
    given = source(OtherPatientIDsSequence=[item])
    ds = read(given, kind)
    assert ds.OtherPatientIDsSequence[0].IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"
    assert not any(element.tag.is_private for element in ds.iterall())
    assert any(element.tag.is_private for element in given.iterall())


def test_leaves_the_source_as_it_was():
    given = source(SpecificCharacterSet="ISO_IR 100", PatientSex="X", PatientName="Müßig^Jörg")
    before = copy.deepcopy(given)
    compose(given)
    assert given == before


TYPE_2 = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"),
    *("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
]


@EVERY_KIND
@pytest.mark.parametrize("lacking", [None, ""], ids=["absent", "empty"])
def test_what_the_source_lacks_is_present_and_empty(kind, lacking):
    ds = read(source(**dict.fromkeys(TYPE_2, lacking)), kind)
    assert all(keyword in ds and not ds[keyword].value for keyword in TYPE_2)


def test_a_source_without_a_series_still_gets_both_results():
    given = source(SeriesInstanceUID=None, SeriesNumber=None, InstanceNumber=None, Modality=None, PatientOrientation=None)
    report = read(given, REPORT)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert all(UID(item.SeriesInstanceUID).is_valid for item in evidence)
    assert read(given).Modality == "OT"


@pytest.mark.parametrize(
    ("keyword", "given", "kept"),
    [
        ("PatientBirthDate", "d14a028c2a3a", ""),
        ("PatientBirthDate", "19601301", ""),
        ("StudyDate", "1993.02.24", "19930224"),
        ("StudyTime", "noon", ""),
        ("PatientSex", "X", ""),
        ("AccessionNumber", "A" * 40, "A" * 40),
        ("PatientName", "Retired Form", "Retired Form"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_value_is_emptied_unless_archives_match_by_it(keyword, given, kept):
    ds = source()
    ds[keyword] = pydicom.DataElement(ds[keyword].tag, ds[keyword].VR, given, validation_mode=0)
    for kind in (OVERLAY, REPORT):
        assert str(read(as_received(ds), kind)[keyword].value or "") == kept


@pytest.mark.parametrize(
    ("offset", "date", "time"),
    [("+1000", "20260305", "011617.250000"), ("-0530", "20260304", "094617.250000"), (None, "20260304", "151617.250000")],
)
def test_dates_are_in_the_time_zone_that_the_object_names(offset, date, time):
    ds = read(source(TimezoneOffsetFromUTC=offset))
    assert ds.get("TimezoneOffsetFromUTC") == offset
    assert (ds.ContentDate, ds.ContentTime) == (date, time)
    assert (ds.SeriesDate, ds.InstanceCreationTime) == (date, time)


@pytest.mark.parametrize("offset", ["+9999", "-1400", "+0199", "0100", "local"])
def test_a_time_zone_that_there_is_not_is_not_copied(offset):
    ds = read(source(TimezoneOffsetFromUTC=offset))
    assert "TimezoneOffsetFromUTC" not in ds
    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "151617.250000")


@EVERY_KIND
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_several_values_where_one_is_allowed_the_first_is_copied(kind):
    several = {
        keyword: ["A", "B"] for keyword in ("StudyID", "StudyDescription", "Manufacturer", "StationName", "SoftwareVersions")
    }
    given = source(
        **several, ReferringPhysicianName="Ward^Three\\Ward^Four", StudyDate=["20260101", "20260102"], PatientSex=["M", "F"]
    )
    ds = read(as_received(given), kind)
    assert (ds.StudyDate, ds.PatientSex) == ("20260101", "M")
    assert (ds.StudyID, ds.StudyDescription, ds.ReferringPhysicianName) == ("A", "A", "Ward^Three")
    acquisition = ds.ContributingEquipmentSequence[0]
    assert (acquisition.Manufacturer, acquisition.StationName, acquisition.SoftwareVersions) == ("A", "A", ["A", "B"])


@EVERY_KIND
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_archives_match_by_is_copied_with_all_its_values(kind):
    ds = read(as_received(source(PatientID=["1", "2"], AccessionNumber=["A", "B"], PatientName="A^B\\C^D")), kind)
    assert (ds.PatientID, ds.AccessionNumber, ds.get_item("PatientName").value.rstrip()) == (["1", "2"], ["A", "B"], b"A^B\\C^D")


NAMES = {
    "German": ("ISO_IR 100", "Müßig^Jörg"),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг^Анна"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese half width": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Ångström^Ødegård=王^小東"),
}


@EVERY_KIND
@pytest.mark.parametrize("language", NAMES)
def test_names_survive_in_their_character_set(language, kind):
    declared, name = NAMES[language]
    received = as_received(source(SpecificCharacterSet=declared, PatientName=name))
    sent_bytes = received.get_item("PatientName").value
    ds = read(received, kind)
    assert ds.get_item("PatientName").value == sent_bytes
    assert ds.SpecificCharacterSet == declared
    assert ds.PatientName == name


@pytest.mark.parametrize("name", ["张^小东", "Zhang^XiaoDong=张^小东"])
def test_a_name_that_can_t_be_written_in_its_character_set_becomes_utf_8(name):
    given = source(SpecificCharacterSet="ISO_IR 192", PatientName=name)
    received = as_received(given)
    received.SpecificCharacterSet = ["", "ISO 2022 IR 58"]
    ds = read(received)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == name


@EVERY_KIND
def test_a_name_keeps_the_character_set_that_holds_each_of_its_parts(kind):
    names = ["", "ISO 2022 IR 58"]
    name = PersonName(b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab", convert_encodings(names))
    ds = read(source(SpecificCharacterSet=names, PatientName=name), kind)
    assert ds.SpecificCharacterSet == names
    assert ds.PatientName == name


@EVERY_KIND
def test_a_text_beyond_its_character_set_becomes_utf_8(kind):
    ds = read(source(SpecificCharacterSet="ISO_IR 100", PatientName="山田^太郎"), kind)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == "山田^太郎"


@EVERY_KIND
def test_a_patient_without_declared_character_set_keeps_the_bytes_of_the_name(kind):
    ds = read(source(PatientName="Müßig^Jörg"), kind)
    assert "SpecificCharacterSet" not in ds
    assert ds.get_item("PatientName").value.strip() == "Müßig^Jörg".encode("latin-1")


@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")
def test_an_unknown_character_set_becomes_utf_8():
    received = as_received(source(PatientName="Müßig^Jörg"))
    received.SpecificCharacterSet = "ISO_IR 999"
    ds = read(received)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName.family_name.startswith("M")


@EVERY_KIND
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_copied_into_every_result_is_capped(kind):
    endless = source()
    usual = len(compose(endless, kinds=[kind])[0].content)
    for keyword in ("PatientName", "StudyDescription", "PatientID", "Manufacturer", "ManufacturerModelName", "InstitutionName"):
        setattr(endless, keyword, "N" * 2_000_000)
    other = pydicom.Dataset()
    other.PatientID = "N" * 2_000_000
    endless.OtherPatientIDsSequence = [other]
    item = pydicom.Dataset()
    item.RequestedProcedureDescription = "x"
    endless.RequestAttributesSequence = [item] * 20_000
    (made,) = compose(endless, kinds=[kind])
    assert len(made.content) < usual + 50_000
    assert str(read(endless, kind).PatientName).startswith("NNNN")


@EVERY_KIND
@pytest.mark.parametrize("text", ["ﾑﾈ^ﾚﾝﾄｹﾞﾝ", "ﾑﾈ=PA", "ﾑﾈ"])
def test_half_width_katakana_beside_ascii_survive_in_a_text(kind, text):
    """Only in names is each part encoded by itself; pydicom replaces what it can't mix by question marks."""
    ds = as_received(source(SpecificCharacterSet="ISO_IR 13"))
    content = text.encode("shift_jis")
    content += b" " * (len(content) % 2)
    ds._dict[Tag("StudyDescription")] = RawDataElement(Tag("StudyDescription"), "LO", len(content), content, 0, False, True)
    assert read(ds, kind).StudyDescription == text
