"""Words of headers: body parts, views, animals, processed images, in the forms in which hospitals write them."""

from __future__ import annotations

import warnings

import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from cxr_node.errors import Rejected
from cxr_node.prepare.header import name_in
from cxr_node.prepare.quality import check_header
from tests.images import grey_image
from tests.unit.test_prepare_readable import STORED


def reasons(coded: dict[str, bytes] | None = None, **attributes) -> str:
    """The reasons of an image with these attributes; those of `coded` as a file has them, in the bytes of some character set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break their VR
        ds = grey_image(STORED, 12, **attributes)
    for keyword, value in (coded or {}).items():
        tag = Tag(tag_for_keyword(keyword))
        ds._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    try:
        check_header(ds)
    except Rejected as rejected:
        return " ".join(rejected.reasons)
    return ""


@pytest.mark.parametrize(
    "part", ["T?RAX", "TÒRAX", "TÓRAX", "Pecho", "PECHO", "2- TORAX", "PORT CHEST", "KLATKA", "грудь", "XYZ"]
)
def test_a_body_part_that_is_no_defined_term_says_nothing(part):
    assert reasons(BodyPartExamined=part) == ""


@pytest.mark.parametrize(
    "part", ["HIP", "LT KNEE", "HANDS", "L SPINE", "T-SPINE", "TSPINE", "LEG", "ABDOMEN", "SKULL", "Upper Arm"]
)
def test_a_defined_term_that_is_no_chest_is_turned_away(part):
    assert "body part" in reasons(BodyPartExamined=part)


@pytest.mark.parametrize(
    "view",
    ["LLAT", "RLAT", "LAT", "PROFIL", "PERFIL", "SEITLICH", "LATERALE", "LATÉRAL", "LAT?RAL", "LL", "ZIJDELINGS", "OBLIQUA"],
)
def test_a_view_from_the_side_is_turned_away_in_many_languages(view):
    assert "not frontal" in reasons(ViewPosition=view)


@pytest.mark.parametrize(
    ("view", "encoding", "declared"),
    [
        ("БОКОВАЯ", "utf-8", "ISO_IR 192"),
        ("БОКОВАЯ", "iso8859_5", "ISO_IR 144"),
        ("БОКОВАЯ", "utf-8", None),
        ("側面", "shift_jis", "ISO_IR 13"),
        ("侧位", "gb18030", "GB18030"),
        ("측면", "utf-8", "ISO_IR 100"),
        ("ΠΛΑΓΙΑ", "iso8859_7", "ISO_IR 126"),
        ("BOČNÁ", "iso8859_2", "ISO_IR 101"),
        ("SCHRÄG", "latin-1", "ISO_IR 100"),
        ("SKOŚNA", "utf-8", "ISO_IR 192"),
        *((word, "ascii", None) for word in ("PROFIEL", "DWARS", "SIDE", "SIVU", "OLDALIRANY", "LATDEC", "PA OBLIQUE")),
    ],
)
def test_a_view_from_the_side_in_letters_that_a_code_string_may_not_have(view, encoding, declared):
    assert "not frontal" in reasons({"ViewPosition": view.encode(encoding)}, SpecificCharacterSet=declared or "")


@pytest.mark.parametrize("view", ["PA", "AP", "", "FRENTE", "FACE", "STEHEND", "PORTABLE", "BEDSIDE", "AP/LAT", "VD", "LORDOTIC"])
def test_other_views_are_left_to_the_picture(view):
    assert reasons(ViewPosition=view) == ""


@pytest.mark.parametrize("name", ["CHEST CAT A", "CAT 2 CHEST PA", "CATARINA"])
def test_a_category_is_no_animal(name):
    assert reasons(SeriesDescription=name) == ""


@pytest.mark.parametrize("name", ["CAT THORAX", "CAT", "CANINE CHEST", "Dog thorax"])
def test_an_animal_is_turned_away(name):
    assert "animal" in reasons(SeriesDescription=name)


def test_a_patient_s_name_has_no_escape_sequences():
    ds = grey_image(STORED, 12, SpecificCharacterSet=["", "ISO 2022 IR 58"])
    value = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
    ds._dict[Tag("PatientName")] = RawDataElement(Tag("PatientName"), "PN", len(value), value, 0, False, True)
    assert name_in(ds) == "Zhang^XiaoDong=张^小东"


@pytest.mark.parametrize("name", ["CHEST PA/LAT", "thorax face et profil", "Torax frente y perfil", "Laterality corrected"])
def test_a_name_of_both_views_says_nothing_of_this_one(name):
    assert reasons(SeriesDescription=name) == ""


@pytest.mark.parametrize("species", ["Mensch", "HUMAIN", "Uomo", "Homo sapiens", "UNKNOWN", "N/A", "-", ""])
def test_people_in_other_languages_and_what_says_nothing_are_no_animals(species):
    assert reasons(PatientSpeciesDescription=species) == ""


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientSpeciesDescription": "Hund"},
        {"AnatomicalOrientationType": "QUADRUPED"},
        {"ResponsiblePersonRole": "OWNER"},
    ],
    ids=str,
)
def test_attributes_of_an_animal_are_found(attributes):
    assert "animal" in reasons(**attributes)


@pytest.mark.parametrize("name", ["Temporal subtraction", "DeltaView", "Tube and line enhancement", "PICC companion"])
def test_processed_copies_are_turned_away(name):
    assert "processed copy" in reasons(SeriesDescription=name)


@pytest.mark.parametrize("name", ["Chest bilateral view", "Thorax bilatéral", "RIBS UNILATERAL", "Lungs bi-lateral"])
def test_both_sides_are_no_view_from_the_side(name):
    assert reasons(SpecificCharacterSet="ISO_IR 100", SeriesDescription=name) == ""


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]},
        {"ImageType": ["DERIVED", "PRIMARY"], "SeriesDescription": "VolumeRAD Chest"},
    ],
    ids=str,
)
def test_a_slice_of_a_tomosynthesis_is_turned_away(attributes):
    assert "tomosynthesis" in reasons(**attributes)


def test_the_plain_radiograph_before_a_tomosynthesis_is_not():
    assert reasons(ImageType=["ORIGINAL", "PRIMARY"], SeriesDescription="VolumeRAD Chest Tomosynthesis") == ""


@pytest.mark.parametrize(
    "name",
    [
        *("Thorax pa knochensupprimiert", "Thorax ohne Knochen", "Thorax Weichteil", "suppression osseuse", "Supresión ósea"),
        *("soppressione ossea", "CHEST DE SOFT", "DES Bone", "tissus mous", "tejidos blandos", "SoftView", "Rib-free"),
    ],
)
def test_bones_or_soft_tissue_taken_out_is_turned_away_in_many_languages(name):
    assert "bone-suppressed" in reasons(SpecificCharacterSet="ISO_IR 100", SeriesDescription=name)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "", "BONE_SUPPRESSED"]},
        {"ImageType": ["DERIVED", "PRIMARY", "", "DES_TISSUE"]},
        {"ImageType": ["DERIVED", "PRIMARY", "ENERGY_SUB"]},
        {"ImageType": ["DERIVED", "PRIMARY", "SOFT TISSUE"]},
        {"ImageType": ["DERIVED", "SECONDARY", "BONE"]},
        {"SeriesDescription": "Bone suppressed chest"},
        {"SeriesDescription": "Soft Tissue"},
        {"SeriesDescription": "Dual Energy Bone"},
        {"DerivationDescription": "energy subtraction"},
    ],
    ids=str,
)
def test_bones_or_soft_tissue_taken_out_is_turned_away(attributes):
    assert "bone-suppressed" in reasons(**attributes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY"]},
        {"SeriesDescription": "BONE DETAIL"},
        {"SeriesDescription": "SOFT TISSUE NECK AND CHEST"},
        {"SeriesDescription": "CHEST TUBE PLACEMENT"},
        {"SeriesDescription": "DUAL ENERGY STANDARD"},
    ],
    ids=str,
)
def test_plain_radiographs_are_not(attributes):
    assert reasons(**attributes) == ""


def test_codes_of_another_vocabulary_say_nothing():
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "17", "99LOCAL", "Lunge"
    assert reasons(AnatomicRegionSequence=[code]) == ""
