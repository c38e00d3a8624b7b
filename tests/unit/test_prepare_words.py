"""Words of headers: body parts, views, animals, processed images, in the forms in which hospitals write them."""

from __future__ import annotations

import warnings

import pytest
from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare.quality import check_header
from tests.images import grey_image
from tests.unit.test_prepare_readable import STORED


def reasons(**attributes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break their VR
        ds = grey_image(STORED, 12, **attributes)
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


@pytest.mark.parametrize("view", ["PA", "AP", "", "FRENTE", "FACE", "STEHEND", "PORTABLE"])
def test_other_views_are_left_to_the_picture(view):
    assert reasons(ViewPosition=view) == ""


@pytest.mark.parametrize("name", ["CHEST CAT A", "CAT 2 CHEST PA", "CATARINA"])
def test_a_category_is_no_animal(name):
    assert reasons(SeriesDescription=name) == ""


@pytest.mark.parametrize("name", ["CAT THORAX", "CAT", "CANINE CHEST", "Dog thorax"])
def test_an_animal_is_turned_away(name):
    assert "animal" in reasons(SeriesDescription=name)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "", "BONE_SUPPRESSED"]},
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
