"""Removes patient data from a source's header, so that results composed from it contain none.

The Basic Application Confidentiality Profile of PS3.15 annex E, applied by dicom-anonymizer to the few attributes that
composing reads; all others are dropped. It cannot remove burned-in text, and the results say so: text may remain in the overlay,
which shows the picture. On request `prepare.burned_text` blanks the text that it finds.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.errors import CxrNodeError

DUMMY_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""Creation date of objects without patient data: a real date could identify a patient (PS3.15 table E.1-1)."""

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
"""Attributes that composing reads. The sequences contain LUTs."""


TEXT_MAY_REMAIN = "Burned-in text was not searched for: it may name the patient, and the overlay shows it."
TEXT_BLACKED = (
    "Text that was found burned into the picture outside the lungs is blacked in the overlay; what wasn't found, or lies on the "
    "lungs, may remain and may name the patient."
)
_METHODS = {False: "Burned-in text may remain: not looked for", True: "Burned-in text blacked where found: some may remain"}
"""Values of De-identification Method (LO, at most 64 characters), in every result and in the report."""


def deidentified(source: Dataset, *, blank_text: bool = False) -> Dataset:
    """A header without patient data; equal UIDs get equal replacements as long as this process runs.

    Args:
        source: left as it is.
        blank_text: whether burned-in text is blanked where it is found; the header says so.

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
    twin.DeidentificationMethod = ["PS3.15 Basic Application Confidentiality Profile", _METHODS[blank_text]]
    profile = Dataset()
    profile.CodeValue, profile.CodingSchemeDesignator = "113100", "DCM"
    profile.CodeMeaning = "Basic Application Confidentiality Profile"
    twin.DeidentificationMethodCodeSequence = [profile]
    return twin


def shows_text(source: Dataset) -> bool:
    """Whether the header says that text is burned into the pixels, which may name the patient."""
    return str(source.get("BurnedInAnnotation") or "").upper() == "YES"
