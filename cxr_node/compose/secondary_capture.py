"""A picture as a Secondary Capture object: the overlay, or the notice that there is no result.

`identity` adds patient, study and equipment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from cxr_node.compose.identity import ResultIdentity
from cxr_node.compose.source_pixels import compression_of
from cxr_node.prepare.header import text
from cxr_node.records import MODEL_NAME

OVERLAY = "Resampled; heat map of a neural network and lung outlines drawn in; panel of results added"
NOTICE = "Notice in place of a result; shows nothing of the source image"
"""Values of Derivation Description."""

_ENCODERS = {RLELossless: "pylibjpeg", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
"""pydicom's plugins for each compression."""


def compose_secondary_capture(
    source: Dataset,
    picture: NDArray[np.uint8],
    place: ResultIdentity,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    description: str = OVERLAY,
    orientation: Sequence[str] | None = None,
) -> Dataset:
    """The picture as a Secondary Capture data set, not yet identified.

    Args:
        source: the image's header.
        picture: uint8 (h, w, 3), RGB, from `overlay`.
        place: the object's own UIDs and numbers.
        transfer_syntax_uid: Explicit VR Little Endian, or one of the lossless compressions that `_ENCODERS` names.
        description: Derivation Description.
        orientation: Patient Orientation; None: unknown.
    """
    ds = SCImage(
        np.ascontiguousarray(picture),
        "RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom requires a value of its list; the real one is set below
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=place.series_instance_uid,
        series_number=place.series_number,
        sop_instance_uid=place.sop_instance_uid,
        instance_number=place.instance_number,
        manufacturer=MODEL_NAME,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    ds["PatientOrientation"].value = None if orientation is None else list(orientation)
    modality = text(source, "Modality").upper()
    ds.Modality = modality if re.fullmatch("[A-Z0-9_ ]{1,16}", modality) else "OT"
    ds.BodyPartExamined = "CHEST"  # without it Laterality is required (PS3.3 C.7.3.1)
    ds.ConversionType = "WSD"  # made on a workstation (PS3.3 C.8.6.1)
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation = "YES"
    ds.DerivationDescription = description
    ds.SourceImageSequence = [_reference(source)]
    for keyword, value in compression_of(source).items():  # though it lies here uncompressed
        setattr(ds, keyword, value)
    if transfer_syntax_uid != ExplicitVRLittleEndian:
        ds.compress(transfer_syntax_uid, encoding_plugin=_ENCODERS[UID(transfer_syntax_uid)], generate_instance_uid=False)
    return ds


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    purpose = Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code.value, code.scheme_designator, code.meaning
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.SpatialLocationsPreserved = "NO"
    return item
