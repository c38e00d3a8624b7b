"""Every kind of result over a matrix of widths, orientations, windows and character sets, judged by validators, and the
presentation state applied by dcmtk.
"""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from cxr_node.compose import compose_results
from cxr_node.records import ANALYSIS_KINDS, ComposedObject, Radiograph, ResultKind, Sides, SidesBy
from tests import validators
from tests.acceptance.test_compose_validators import changed, is_explained
from tests.compose_inputs import NOW, ORIENTATIONS, findings, lying
from tests.conftest import find_peer
from tests.images import lut_item
from tests.unit.test_compose_identity import as_received

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # what pydicom says of odd sources
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("validators"),  # PixelMed reads its rules once a process, in ten seconds of processor time
]

WIDTHS = tuple(range(512, 520))
"""Every remainder of a division by 8."""
LYING: tuple[tuple[str, str] | None, ...] = (*ORIENTATIONS, None)
"""Every way that a frontal radiograph can lie; None: the header doesn't say, and the picture doesn't show it."""

CHINESE = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
"""A name as PS3.5 annex K writes it; pydicom can't encode it."""

_WHOLE = {"WindowCenter": "2048", "WindowWidth": "4096"}
WINDOWS: dict[str, dict[str, Any]] = {
    "none": {},
    "one": _WHOLE,
    "a bad one first": {"WindowCenter": ["128", "2048"], "WindowWidth": ["256", "4096"]},
    "linear exact": {**_WHOLE, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {**_WHOLE, "VOILUTFunction": "SIGMOID"},
    "a VOI LUT of 12 bits that says 16": {"VOILUTSequence": [lut_item(0, 16, list(range(4096)))]},
    "a Modality LUT": {
        "ModalityLUTSequence": [lut_item(0, 16, [16 * value + 15 for value in range(4096)])],
        **{"WindowCenter": "32768", "WindowWidth": "65536"},
    },
    "rescaled, with a shutter": {
        **{"RescaleSlope": "2", "RescaleIntercept": "-1000", "RescaleType": "US", "WindowCenter": "3096", "WindowWidth": "8192"},
        **{"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 20, "ShutterRightVerticalEdge": 500},
        **{"ShutterUpperHorizontalEdge": 30, "ShutterLowerHorizontalEdge": 560, "ShutterPresentationValue": 0},
    },
}
CHARACTER_SETS: dict[str, dict[str, Any]] = {
    "none": {"PatientName": "Adams^John"},
    "Latin 1": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
    "Cyrillic": {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг^Анна"},
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "Korean": {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞=홍^길동"},
    "Chinese, ISO 2022": {"SpecificCharacterSet": ["", "ISO 2022 IR 58"], "PatientName": CHINESE},
    "Chinese, GB18030": {"SpecificCharacterSet": "GB18030", "PatientName": "Wang^XiaoDong=王^小东"},
    "UTF-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Buc^Jérôme=山田^太郎"},
}

UNABLE = {"Chinese, ISO 2022": ("pixelmed",)}
"""Validators that end with an error of their own over a character set; dcmtk and dicom3tools read it."""

_NAME = Tag("PatientName")

MATRIX = [
    (WIDTHS[n % 8], LYING[n % 9], list(WINDOWS)[(3 * n + n // 8) % 8], list(CHARACTER_SETS)[(5 * n + n // 8) % 8])
    for n in range(24)
]
"""Not every combination, but every value of each axis with several of every other."""


def specimen(place: tuple[int, tuple[str, str] | None, str, str]) -> tuple[Dataset, Radiograph, list[ComposedObject]]:
    """A source of the matrix, the radiograph that it is rendered to, and all its results."""
    width, orientation, window, character_set = place
    photometric = "MONOCHROME1" if width % 2 else "MONOCHROME2"
    attributes = {**WINDOWS[window], **CHARACTER_SETS[character_set]}
    name = attributes.pop("PatientName")
    drawn, shown, _ = lying(orientation or ("L", "F"), (600, width), photometric, **attributes)
    if orientation is None:
        drawn.PatientOrientation = None
    if isinstance(name, str):
        drawn.PatientName = name
    ds = as_received(drawn)
    ds.file_meta = drawn.file_meta
    if isinstance(name, bytes):
        ds._dict[_NAME] = RawDataElement(_NAME, "PN", len(name), name, 0, False, True)
    said = Sides(SidesBy.UNKNOWN if orientation is None else SidesBy.HEADER)
    return ds, shown, compose_results(ds, shown, findings(sides=said), kinds=tuple(ResultKind), now=NOW)


def test_the_matrix_has_every_value_of_each_axis():
    for axis, values in enumerate((WIDTHS, LYING, WINDOWS, CHARACTER_SETS)):
        assert {place[axis] for place in MATRIX} == set(values)


@pytest.mark.parametrize("place", MATRIX, ids=str)
def test_no_validator_finds_anything_wrong(place, tmp_path):
    ds, _, results = specimen(place)
    assert {item.kind for item in results} == set(ANALYSIS_KINDS)
    ours = {}
    for item in results:
        for validator, complaints in validators.verdicts(item, tmp_path, UNABLE.get(place[3], ())).items():
            if remaining := [line for line in complaints if not is_explained(line, ds)]:
                ours[f"{validator} of the {item.kind}"] = remaining
    assert ours == {}


@pytest.mark.parametrize("place", MATRIX, ids=str)
def test_results_say_the_patient_s_name_as_the_source_does(place):
    _, _, results = specimen(place)
    given = CHARACTER_SETS[place[3]]
    for item in results:
        read = pydicom.dcmread(BytesIO(item.content), stop_before_pixels=True)
        assert read.get("SpecificCharacterSet") == given.get("SpecificCharacterSet")
        name = given["PatientName"]
        assert (read.get_item(_NAME).value.rstrip(b" ") if isinstance(name, bytes) else read.PatientName) == name


def shown_by_dcmtk(ds: Dataset, state: bytes, folder: Path) -> np.ndarray:
    """The greys of an image under a presentation state, uint8 (rows, columns); the graphics are left out."""
    image, presentation, picture = (folder / name for name in ("image.dcm", "state.dcm", "picture.pgm"))
    ds.save_as(image, enforce_file_format=True)
    presentation.write_bytes(state)
    subprocess.run([find_peer("dcmp2pgm"), "-p", presentation, image, picture], check=True, capture_output=True, timeout=120)
    return np.asarray(cv2.imread(str(picture), cv2.IMREAD_UNCHANGED))


def difference(place: tuple[int, tuple[str, str] | None, str, str], state: bytes, folder: Path) -> float:
    """How far what dcmtk shows is from what the overlay shows, in the mean of 255 greys inside the shutter."""
    ds, shown, _ = specimen(place)
    seen = ~np.isnan(shown.pixels)
    return float(np.abs(shown_by_dcmtk(ds, state, folder).astype(float) - 255 * shown.pixels)[seen].mean())


def state_of(place: tuple[int, tuple[str, str] | None, str, str]) -> bytes:
    return next(item.content for item in specimen(place)[2] if item.kind == ResultKind.PRESENTATION)


@pytest.mark.parametrize("place", [place for place in MATRIX if place[2] != "sigmoid"], ids=str)  # dcmtk knows no sigmoid
def test_dcmtk_shows_the_radiograph_under_its_presentation_state_as_the_overlay_does(place, tmp_path):
    assert difference(place, state_of(place), tmp_path) < 1.5


@pytest.mark.parametrize("place", MATRIX[:2], ids=str)
def test_the_comparison_does_find_another_window(place, tmp_path):
    def darken(ds: Dataset) -> None:
        voi = Dataset()
        voi.WindowCenter, voi.WindowWidth = "9000", "9000"
        ds.SoftcopyVOILUTSequence = [voi]

    assert difference(place, changed(darken)(state_of(place)), tmp_path) > 20
