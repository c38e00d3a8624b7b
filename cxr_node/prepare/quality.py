"""Checks header and pixels: is this a frontal chest radiograph of a person?

`analyse` judges what only the image content shows (a lateral view without a header, a CT slice, no lungs). A silent header is
no reason to reject an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare import words
from cxr_node.prepare.geometry import orientation
from cxr_node.prepare.header import as_list, folded
from cxr_node.prepare.known_terms import shown_modality, shown_part, shown_view
from cxr_node.prepare.pixel_header import check_pixel_header

MIN_SIDE_PX = 128

_MIN_GREY_LEVELS = 16
_MIN_DEVIATION = 0.01
"""Of 0..1. A blank exposure has noise only."""

_MODALITIES = frozenset({"", "CR", "DX", "RG", "DR", "XR", "OT", "SC"})
"""Projection radiography (PS3.3 C.7.3.1.1.1), names that are written for it, and what scanners of films write."""

_UNSAID = frozenset({"", "OTHER", "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "NONE", "NA", "BODY"})
_SNOMED = frozenset({"SCT", "SRT", "SNM3", "99SDM"})
_CHEST_CODES = frozenset(
    {
        *("816094009", "416550000", "416775004", "416152001", "416319003", "417437006"),  # chest, and with its neighbours
        *("51185008", "302551006", "43799004", "39607008", "181216001", "113197003"),  # thorax, lung, rib
        *("T-D3000", "T-D3200", "T-28000", "T-11300", "R-FAB55", "R-FAB56"),  # the same in SNOMED RT
    }
)

_LATERAL_CODES = frozenset(
    {
        *("399067008", "399173006", "399198007", "399352003", "399260004", "30730003"),  # lateral, sagittal
        *("399182000", "399184004", "399236003", "399312000", "399059000", "399160007", "260427002", "260426006"),  # oblique
        *("399135007", "399006002", "399356000", "399038007", "399132005", "399004004", "399061009", "399110001"),
        *("R-10236", "R-10228", "R-10232", "R-10220", "R-10222", "R-10224", "R-10226"),  # SNOMED RT
    }
)
"""Of CID 4010."""

_HUMAN_CODES = frozenset({"337915000", "L-85003", "L-85B00"})


def check_header(ds: Dataset) -> None:
    """Reject what the header says is not a frontal chest radiograph of a person, or can't be analysed.

    Args:
        ds: the header; PixelData must be in it, of whatever length.

    Raises:
        Rejected: with every reason that is found.
    """
    reasons: list[str] = []
    try:
        check_pixel_header(ds)
    except Rejected as rejected:
        reasons += rejected.reasons
    reasons += _wrong_modality(ds)
    reasons += _not_a_person(ds)
    reasons += _not_a_chest(ds)
    reasons += _not_frontal(ds)
    reasons += _not_plain(ds)
    if reasons:
        raise Rejected(*reasons)


def check_pixels(pixels: NDArray[np.float32]) -> None:
    """Reject pictures that are too small or show nothing.

    Args:
        pixels: float32 (rows, columns) in 0..1, NaN where padded.

    Raises:
        Rejected: with the reason.
    """
    rows, columns = pixels.shape
    if min(rows, columns) < MIN_SIDE_PX:
        raise Rejected(f"The picture is too small: {rows} x {columns} pixels; each side needs at least {MIN_SIDE_PX}.")
    sample = pixels[:: max(1, rows // 512), :: max(1, columns // 512)]
    sample = sample[~np.isnan(sample)]
    if sample.size == 0:
        raise Rejected("The picture is empty: all of it is padding.")
    if float(sample.std()) < _MIN_DEVIATION:
        raise Rejected("The picture is empty: it has the same grey everywhere.")
    levels = np.unique(sample).size
    if levels < _MIN_GREY_LEVELS:
        raise Rejected(f"The picture is not a radiograph: it has only {levels} shades of grey, like text or a drawing.")


def _wrong_modality(ds: Dataset) -> Iterator[str]:
    modality = _text(ds, "Modality")
    if modality not in _MODALITIES:
        yield f"The modality is {shown_modality(modality)}, not plain radiography (CR or DX)."


def _not_a_person(ds: Dataset) -> Iterator[str]:
    species = _text(ds, "PatientSpeciesDescription")
    codes, meanings = _codes(ds, "PatientSpeciesCodeSequence")
    coded_human = bool(codes & _HUMAN_CODES) or any(words.HUMAN.search(meaning) for meaning in meanings)
    no_person = not words.HUMAN.search(species) and not words.NO_SPECIES.search(species)
    said_animal = no_person or ((codes or meanings) and not coded_human)
    said_animal = said_animal or _text(ds, "AnatomicalOrientationType") == "QUADRUPED"
    breed = _text(ds, "PatientBreedDescription") or as_list(ds.get("PatientBreedCodeSequence")) or _text(ds, "PatientSexNeutered")
    owned = _text(ds, "ResponsiblePersonRole") == "OWNER"
    if said_animal or breed or owned or any(words.ANIMAL.search(text) for text in _technique(ds)):
        yield "The patient is an animal; the networks are trained on people only."


def _not_a_chest(ds: Dataset) -> Iterator[str]:
    part = _text(ds, "BodyPartExamined")
    codes, meanings = _codes(ds, "AnatomicRegionSequence")
    if words.CHEST.search(part) or codes & _CHEST_CODES or any(words.CHEST.search(meaning) for meaning in meanings):
        return
    # A value that is not a defined term says nothing: it may mean chest in another language, or have lost its accents.
    named = [name for name in (part, *meanings) if words.names_another_part(name)]
    schemes = {_text(item, "CodingSchemeDesignator") for item in as_list(ds.get("AnatomicRegionSequence"))}
    if named or (codes and schemes & _SNOMED):
        yield f"The body part is {shown_part(named[0] if named else '')}, not the chest."


def _not_frontal(ds: Dataset) -> Iterator[str]:
    view = _text(ds, "ViewPosition")
    codes, meanings = _codes(ds, "ViewCodeSequence")
    for text in (view, *meanings):
        from_the_side = words.LATERAL.search(text) or words.VIEW_FROM_THE_SIDE.search(text)
        if words.OBLIQUE.search(text) or (from_the_side and not words.FRONTAL.search(text)):
            yield f"The view is {shown_view(text)}, not frontal (PA or AP)."
            return
    if codes & _LATERAL_CODES:
        yield "The view is lateral or oblique, not frontal (PA or AP)."
        return
    ends = orientation(ds)
    if ends is not None and {"A", "P"} & set(ends):
        yield "The picture is seen from the side (PatientOrientation), not from the front or back."
        return
    if view in _UNSAID and not codes:
        # Only the description of this image counts: a study is often named after both of its views.
        told = [text for text in _technique(ds) if words.LATERAL.search(text) or words.OBLIQUE.search(text)]
        if told and not any(words.FRONTAL.search(text) for text in _technique(ds)):
            yield "The examination's name says that the view is lateral or oblique, not frontal (PA or AP)."


def _not_plain(ds: Dataset) -> Iterator[str]:
    """Bones or soft tissue taken out of the picture, by software or by a second exposure; or something else put in."""
    types = [folded(ds, value) for value in as_list(ds.get("ImageType"))[2:]]
    told = [
        _text(ds, keyword) for keyword in ("SeriesDescription", "DerivationDescription", "AcquisitionDeviceProcessingDescription")
    ]
    if any(words.BONE_OR_SOFT_TISSUE_TYPE.search(value) for value in types) or any(map(words.BONE_OR_SOFT_TISSUE.search, told)):
        yield (
            "The image is bone-suppressed, or the bone or soft-tissue image of a dual-energy exposure: "
            "the networks are trained on plain radiographs only; send the original."
        )
    elif any(map(words.TOMOSYNTHESIS.search, (*types, *(told if _text(ds, "ImageType") == "DERIVED" else ())))):
        yield "The image is a slice of a tomosynthesis: the networks are trained on plain radiographs only."
    elif any(map(words.OTHERWISE_PROCESSED.search, (*types, *told))):
        yield (
            "The image is a processed copy of a radiograph (a subtraction, or enhanced lines and tubes): "
            "the networks are trained on plain radiographs only; send the original."
        )


def _technique(ds: Dataset) -> list[str]:
    """The machine's protocol for this image, in capitals. Never shown: free text may contain names."""
    texts = [_text(ds, keyword) for keyword in ("AcquisitionDeviceProcessingDescription", "ProtocolName", "SeriesDescription")]
    return [text for text in (*texts, *_codes(ds, "PerformedProtocolCodeSequence")[1]) if text]


def _codes(ds: Dataset, keyword: str) -> tuple[frozenset[str], list[str]]:
    """Code values and meanings, in capitals, of a code sequence."""
    items = [item for item in as_list(ds.get(keyword)) if isinstance(item, Dataset)]
    values = frozenset(text for item in items if (text := _text(item, "CodeValue")))
    return values, [text for item in items if (text := _text(item, "CodeMeaning"))]


def _text(ds: Dataset, keyword: str) -> str:
    return re.sub(r"[_\s]+", " ", folded(ds, next(iter(as_list(ds.get(keyword))), ""))).strip()
