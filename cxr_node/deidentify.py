"""A source's header without patient data, so that what is composed of it has none either.

The Basic Application Confidentiality Profile of PS3.15 annex E, applied by dicom-anonymizer to the few attributes that
composing reads; all others are left behind. What is burned into the pixels is beyond it.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.errors import CxrNodeError

DUMMY_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""When objects without patient data say that they were made: a date leads to a patient (PS3.15 table E.1-1)."""

_NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "SeriesNumber", "InstanceNumber", "Modality", "Manufacturer", "ManufacturerModelName"),
    *("PatientOrientation", "BodyPartExamined", "Rows", "Columns", "PhotometricInterpretation", "SamplesPerPixel"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "PixelAspectRatio", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""What composing reads of a source. The sequences hold tables of greys."""


def deidentified(source: Dataset) -> Dataset:
    """A header without patient data; the same UIDs become the same others for as long as this process runs.

    Args:
        source: left as it is.

    Raises:
        CxrNodeError: dicom-anonymizer is not installed.
    """
    try:
        from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
    except ImportError as error:
        raise CxrNodeError("--deidentify needs dicom-anonymizer: pip install 'cxr-node[deidentify]'.") from error
    twin = Dataset()
    for keyword in _NEEDED:
        if keyword in source:
            twin[keyword] = copy.deepcopy(source[keyword])
    for table in (*twin.get("VOILUTSequence", ()), *twin.get("ModalityLUTSequence", ())):
        table.pop("LUTExplanation", None)  # free text
    twin.file_meta = FileMetaDataset()
    twin.file_meta.TransferSyntaxUID = getattr(source, "file_meta", {}).get("TransferSyntaxUID") or ExplicitVRLittleEndian
    anonymize_dataset(twin, base_rules_gen=lambda: initialize_actions("dicomfields_2026c"))
    twin.PatientID = f"DEIDENTIFIED-{twin.StudyInstanceUID[-12:]}"  # an archive must not take all of them for one patient
    twin.PatientBirthDate = ""
    twin.StudyDate, twin.StudyTime = f"{DUMMY_TIME:%Y%m%d}", f"{DUMMY_TIME:%H%M%S}"  # the library's year 1 is no valid date
    twin.PatientIdentityRemoved = "YES"
    twin.DeidentificationMethod = "PS3.15 Basic Application Confidentiality Profile"
    profile = Dataset()
    profile.CodeValue, profile.CodingSchemeDesignator = "113100", "DCM"
    profile.CodeMeaning = "Basic Application Confidentiality Profile"
    twin.DeidentificationMethodCodeSequence = [profile]
    return twin


def shows_text(source: Dataset) -> bool:
    """Whether the header says that text is burned into the pixels, which may name the patient."""
    return str(source.get("BurnedInAnnotation") or "").upper() == "YES"
