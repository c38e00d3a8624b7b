"""The gate's half that reads the header and looks at the pixels as such."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare.quality import MIN_SIDE_PX, check_header, check_pixels
from tests.images import grey_image, ramp


def code(value: str = "", meaning: str = "") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def reasons(**attributes) -> tuple[str, ...]:
    with pytest.raises(Rejected) as caught:
        check_header(grey_image(ramp(), **attributes))
    return caught.value.reasons


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"BodyPartExamined": "", "ViewPosition": "", "PatientOrientation": ""},
        *(
            {"BodyPartExamined": part}
            for part in ("CHEST", "THORAX", "LUNG", "RIB", "RIBS", "CHESTABDOMEN", "OTHER", "UNKNOWN", "TORAX")
        ),
        *({"ViewPosition": view} for view in ("PA", "AP", "AP SUPINE", "PA_ERECT")),
        *({"Modality": modality} for modality in ("DX", "CR", "RG", "OT", "")),
        {"AnatomicRegionSequence": [code("816094009", "Chest")]},
        {"AnatomicRegionSequence": [code("51185008", "Poitrine")]},
        {"BodyPartExamined": "CHEST", "AnatomicRegionSequence": []},
        {"BodyPartExamined": "RIB", "AnatomicRegionSequence": [code("113197003", "Rib")]},
        {"ViewCodeSequence": [code("272479007", "postero-anterior")]},
        {"PatientSpeciesDescription": "Homo sapiens"},
        {"PatientSpeciesCodeSequence": [code("337915000", "Homo sapiens")]},
        {"StudyDescription": "CHEST PA AND LATERAL"},
        {"SeriesDescription": "CHEST PA/LAT"},
        {"SeriesDescription": "THORAX LAT", "ViewPosition": "PA"},
        {"PatientOrientation": ["R", "H"]},
    ],
    ids=str,
)
def test_lets_through_a_frontal_chest_and_what_says_nothing(attributes):
    check_header(grey_image(ramp(), **attributes))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        *(
            ({"BodyPartExamined": part}, f"The body part is {part}, not the chest.")
            for part in ("HIP", "EXTREMITY", "SKULL", "TSPINE", "ABDOMEN")
        ),
        ({"BodyPartExamined": "THORACIC_SPINE"}, "The body part is THORACIC SPINE, not the chest."),
        ({"AnatomicRegionSequence": [code("29836001", "Hip")]}, "The body part is HIP, not the chest."),
        *(
            ({"ViewPosition": view}, f"The view is {view}, not frontal (PA or AP).")
            for view in ("LL", "RL", "LATERAL", "LAT", "LAO", "RAO", "LPO", "RPO", "LLD", "L LAT")
        ),
        ({"ViewCodeSequence": [code("399173006", "left lateral")]}, "The view is LEFT LATERAL, not frontal (PA or AP)."),
        ({"ViewCodeSequence": [code("399173006")]}, "The view is lateral or oblique, not frontal (PA or AP)."),
        (
            {"ViewCodeSequence": [code("399312000", "antero-posterior oblique")]},
            "The view is ANTERO POSTERIOR OBLIQUE, not frontal (PA or AP).",
        ),
        (
            {"PatientOrientation": ["A", "F"]},
            "The picture is seen from the side (PatientOrientation), not from the front or back.",
        ),
        (
            {"SeriesDescription": "Thorax seitl. lateral"},
            "The examination's name says that the view is lateral or oblique, not frontal (PA or AP).",
        ),
        ({"PatientSpeciesDescription": "Canine"}, "The patient is an animal; the networks are trained on people only."),
        (
            {"PatientSpeciesCodeSequence": [code("448771007", "Canis lupus familiaris")]},
            "The patient is an animal; the networks are trained on people only.",
        ),
        ({"PatientBreedDescription": "Beagle"}, "The patient is an animal; the networks are trained on people only."),
        (
            {"AcquisitionDeviceProcessingDescription": "CANINE THORAX VD"},
            "The patient is an animal; the networks are trained on people only.",
        ),
        ({"Modality": "CT"}, "The modality is CT, not plain radiography (CR or DX)."),
        ({"NumberOfFrames": "7"}, "The object has several frames; only single radiographs are analysed."),
    ],
    ids=str,
)
def test_turns_away_what_the_header_gives_away(attributes, reason):
    assert reasons(**attributes) == (reason,)


def test_names_all_reasons():
    found = reasons(
        Modality="MR", BodyPartExamined="KNEE", ViewPosition="LL", PatientBreedDescription="Beagle", NumberOfFrames="2"
    )
    assert len(found) == 5
    assert all(reason[0].isupper() and reason.endswith(".") for reason in found)


def test_an_object_without_a_picture_is_turned_away():
    ds = grey_image(ramp())
    del ds.PixelData
    with pytest.raises(Rejected, match="no pixel data"):
        check_header(ds)


def test_free_text_is_not_repeated():
    text = "KNEE OF JOHN DOE, BORN 1 1 1970"
    assert "DOE" not in " ".join(reasons(AnatomicRegionSequence=[code("72696002", text)]))
    assert "DOE" not in " ".join(reasons(SeriesDescription="LATERAL DOE^JOHN"))


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        ({"Modality": "DOE JOHN"}, "The modality is another one, not"),
        ({"BodyPartExamined": "KNEE DOE JOHN"}, "The body part is KNEE, not the chest."),
        ({"ViewPosition": "DOE LATERAL JOHN"}, "The view is LATERAL, not frontal"),
        ({"ViewCodeSequence": [code("1", "LL DOE")]}, "The view is LL, not frontal"),
    ],
)
def test_a_name_where_a_term_belongs_is_quoted_nowhere(attributes, shown):
    (reason,) = reasons(**attributes)
    assert reason.startswith(shown)
    assert "DOE" not in reason


@pytest.mark.parametrize("part", ["THORACOLUMBAR", "THORACO LUMBAR SPINE", "CERVICO THORACIC SPINE"])
def test_a_spine_is_no_chest(part):
    assert reasons(AnatomicRegionSequence=[code("1", part)]) == (f"The body part is {part}, not the chest.",)


@pytest.mark.parametrize("shape", [(MIN_SIDE_PX - 1, 500), (500, MIN_SIDE_PX - 1), (1, 1)])
def test_turns_away_a_small_picture(shape):
    with pytest.raises(Rejected, match="too small"):
        check_pixels(np.random.default_rng(0).random(shape, np.float32))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((300, 300), 0.4, np.float32), "same grey"),
        (np.full((300, 300), np.nan, np.float32), "all of it is padding"),
        (0.4 + 0.002 * np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32), "same grey"),
        (np.kron(np.random.default_rng(0).integers(0, 2, (60, 60)), np.ones((5, 5))).astype(np.float32), "2 shades of grey"),
    ],
)
def test_turns_away_an_empty_picture(pixels, reason):
    with pytest.raises(Rejected, match=reason):
        check_pixels(pixels)


def test_lets_through_a_picture_with_padding():
    pixels = np.random.default_rng(0).random((MIN_SIDE_PX, 500), np.float32)
    pixels[:, :400] = np.nan
    check_pixels(pixels)


def chest_like(size: int = 300) -> np.ndarray:
    """Two dark lungs in a bright body."""
    row, column = np.mgrid[0:size, 0:size] / size
    grey = 0.75 + 0.2 * row
    for centre in (0.27, 0.74):
        grey -= 0.6 * np.exp(-(((column - centre) / 0.14) ** 2) - ((row - 0.42) / 0.3) ** 2)
    return (255 * np.clip(grey, 0, 1)).astype(np.uint8)
